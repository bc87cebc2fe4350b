"""Claims: merging non-redundant tokens accelerates the collapse, removing unbalanced redundancy slows it, and the
theory tells which: the initial rate (`meanfield.reductions.collapse.merging_change`) or, at a later time, the exact
recursion of equiangular tokens (`meanfield.reductions.redundant_spread`).

`python -m experiments.merging_and_collapse [--seeds 8] [--out experiments/results/merging_and_collapse]`. Pre-LN
particles (V = I, logits beta cos, gain .1) with random, nearly equiangular directions: p N tokens are near-copies of
one direction, the others distinct. Merging gives the copies one key without their mass and averages the distinct
tokens in groups of m. Baseline: merging always slows, as the abstract of 2512.21691 states.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
import xarray as xr
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.special import softmax
from scipy.stats import t as student

from experiments.verdict import Verdict, report
from meanfield.reductions import collapse, redundant_spread

TOKENS, DIM, SPREAD, GAIN, JITTER = 128, 128, 0.9, 0.1, 0.05
SINGLES = (8, 16, 32, 64, 96, 120)
GROUPS = (1, 2, 4, 8)
BETAS = (1.0, 2.0, 3.0, 4.0, 6.0)
TIMES = (GAIN, 1.0, 2.0)


def start(singles: int, rng: np.random.Generator) -> np.ndarray:
    """Unit tokens (N, d): the single ones first, then the near-copies of one direction; mean cosine 1 - SPREAD."""
    common = rng.standard_normal(DIM)
    directions = np.sqrt(1.0 - SPREAD) * common + np.sqrt(SPREAD) * rng.standard_normal((singles + 1, DIM))
    copies = directions[-1] + JITTER * rng.standard_normal((TOKENS - singles, DIM))
    return _unit(np.vstack([directions[:-1], copies]))


def spreads(tokens: np.ndarray, singles: int, beta: float, group: int | None) -> np.ndarray:
    """1 - mean cosine between the distinct directions at the start and at TIMES; `group` None does not merge."""
    x, found = tokens, [_spread(tokens, singles)]
    for layer in range(1, round(max(TIMES) / GAIN) + 1):
        unit = _unit(x)
        keys = unit
        if group is not None:
            merged = unit[:singles].reshape(-1, group, DIM).mean(1)
            keys = np.vstack([merged, unit[singles:].mean(0)])
        x = x + GAIN * softmax(beta * unit @ keys.T, axis=1) @ keys
        if any(abs(layer * GAIN - time) < GAIN / 2 for time in TIMES):
            found.append(_spread(x, singles))
    return np.array(found)


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean over seeds."""
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def measure(seeds: int) -> xr.Dataset:
    """Spreads of all settings and seeds, and the predicted change of kappa."""
    cases = [(singles, beta) for singles in SINGLES for beta in BETAS]
    shape = (seeds, len(SINGLES), len(BETAS), len(GROUPS) + 1, len(TIMES) + 1)
    values = np.zeros(shape)
    for singles, beta in track(cases, "particles"):
        i, j = SINGLES.index(singles), BETAS.index(beta)
        for seed in range(seeds):
            tokens = start(singles, np.random.default_rng([seed, singles]))
            for k, group in enumerate((None, *GROUPS)):
                values[seed, i, j, k] = spreads(tokens, singles, beta, group)
    redundancy = 1.0 - np.array(SINGLES) / TOKENS
    change = collapse.merging_change(
        TOKENS, SPREAD, np.array(BETAS)[:, None], redundancy[:, None, None], np.array(GROUPS)
    )
    measured = np.log(values[..., :1, 1:] / values[..., :1, :1]) - np.log(values[..., 1:, 1:] / values[..., 1:, :1])
    dims = ("seed", "redundancy", "beta", "group", "time")
    return xr.Dataset(
        {
            "change": (dims, measured),
            "predicted": (dims[1:4], change),
            "recursion": (dims[1:], recursion()),
            "unmerged": (("seed", *dims[1:3], "stage"), values[..., 0, :]),
        },
        coords={"redundancy": redundancy, "beta": list(BETAS), "group": list(GROUPS), "time": list(TIMES)},
        attrs={"tokens": TOKENS, "dim": DIM, "spread": SPREAD, "gain": GAIN, "jitter": JITTER},
    )


def recursion() -> np.ndarray:
    """The change of -ln(1 - gamma) by merging at TIMES, (redundancy, beta, group, time), of equiangular tokens."""
    rows = [round(time / GAIN) for time in TIMES]
    change = np.zeros((len(SINGLES), len(BETAS), len(GROUPS), len(TIMES)))
    for i, singles in enumerate(SINGLES):
        for j, beta in enumerate(BETAS):
            exact, *merged = (
                redundant_spread(singles, TOKENS - singles, SPREAD, beta, m, gain=GAIN, layers=rows[-1])[rows]
                for m in (None, *GROUPS)
            )
            change[i, j] = np.log(exact / np.array(merged))
    return change


def main(
    seeds: Annotated[int, typer.Option(min=3)] = 8,
    out: Annotated[Path, typer.Option(help="Prefix of the .json, .nc and .png files.")] = Path(
        "experiments/results/merging_and_collapse"
    ),
) -> None:
    """Print the sign of what merging does to the collapse, predicted and measured, and write the numbers."""
    data = measure(seeds)
    mean = data["change"].mean("seed")
    predicted = data["predicted"]
    shares, later, baseline = {}, {}, {}
    for time in TIMES:
        measured = mean.sel(time=time)
        shares[time] = float(((measured > 0) == (predicted > 0)).mean())
        later[time] = float(((measured > 0) == (data["recursion"].sel(time=time) > 0)).mean())
        baseline[time] = float((measured < 0).mean())
    table = Table("beta", "p", *(f"m = {m}" for m in GROUPS), title="change of -ln(1 - gamma) by merging, t = 1")
    for beta in BETAS:
        for p in data["redundancy"].values:
            row = mean.sel(beta=beta, redundancy=p, time=1.0).values
            guess = data["recursion"].sel(beta=beta, redundancy=p, time=1.0).values
            cells = (f"{x:+.3f}{'' if (x > 0) == (g > 0) else ' (wrong)'}" for x, g in zip(row, guess, strict=True))
            table.add_row(f"{beta:g}", f"{p:.3f}", *cells)
    Console(width=110).print(table)
    summary = Table(
        "t",
        "recursion",
        "initial rate",
        "always slows (baseline)",
        "always accelerates",
        title=f"share of {predicted.size} settings",
    )
    for time in TIMES:
        summary.add_row(
            f"{time:g}",
            f"{later[time]:.3f}",
            f"{shares[time]:.3f}",
            f"{baseline[time]:.3f}",
            f"{1 - baseline[time]:.3f}",
        )
    Console().print(summary)
    slow = data["change"].sel(redundancy=0.9375, beta=3.0, group=1, time=1.0).values
    fast = data["change"].sel(redundancy=1.0 - SINGLES[-1] / TOKENS, beta=3.0, group=4, time=1.0).values
    verdicts = [
        Verdict(
            "removing unbalanced redundancy (p = .94, beta = 3) slows: change of -ln(1 - gamma) at t = 1 below zero",
            float(slow.mean()),
            0.0,
            interval(slow)[1] < 0.0,
            interval(slow),
        ),
        Verdict(
            "merging distinct tokens in groups of 4 (p = .06, beta = 3) accelerates: the same above zero",
            float(fast.mean()),
            0.0,
            interval(fast)[0] > 0.0,
            interval(fast),
        ),
    ]
    for time in TIMES:
        bar = max(baseline[time], 1.0 - baseline[time])
        for name, share in (("initial rate", shares[time]), ("recursion", later[time])):
            claim = f"share of signs at t = {time:g} predicted by the {name}, above both constant answers"
            verdicts.append(Verdict(claim, share, bar, share > bar))
    out.parent.mkdir(parents=True, exist_ok=True)
    data.to_netcdf(out.with_suffix(".nc"), engine="h5netcdf")
    figure(data).savefig(out.with_suffix(".png"), dpi=120)
    report(
        verdicts,
        out.with_suffix(".json"),
        sign_right_initial_rate=shares,
        sign_right_recursion=later,
        always_slows=baseline,
        seeds=seeds,
    )


def figure(data: xr.Dataset) -> Figure:
    """Measured signs over redundancy and group size with the predicted line p*(m), a panel for each beta."""
    fig = Figure(figsize=(14, 3.6), layout="constrained")
    axes = fig.subplots(1, len(BETAS), sharey=True)
    mean = data["change"].mean("seed").sel(time=1.0)
    sizes = np.geomspace(1.0, GROUPS[-1], 40)
    singles = np.array(SINGLES)
    for ax, beta in zip(axes, BETAS, strict=True):
        line = [TOKENS * (1 - collapse.critical_redundancy(TOKENS, SPREAD, beta, m)) for m in sizes]
        ax.plot(sizes, np.maximum(line, 1.0), "k-", label="initial rate changes sign")
        for sign, colour, marker, label in ((1, "tab:red", "^", "accelerates"), (-1, "tab:blue", "v", "slows")):
            for i, count in enumerate(singles):
                row = mean.sel(beta=beta).isel(redundancy=i)
                chosen = [m for m in GROUPS if sign * float(row.sel(group=m)) > 0]
                name = label if i == 0 else None
                guess = data["recursion"].sel(beta=beta, time=1.0).isel(redundancy=i)
                face = [colour if sign * float(guess.sel(group=m)) > 0 else "white" for m in chosen]
                ys = [count] * len(chosen)
                ax.scatter(chosen, ys, c=face, edgecolors=colour, marker=marker, s=45, zorder=3, label=name)
        ax.set(xscale="log", yscale="log", title=f"β = {beta:g}", xlabel="group size m")
        ax.set_xticks(GROUPS, [str(m) for m in GROUPS])
        ax.set_ylim(5, 200)
        ax.minorticks_off()
    axes[0].set_ylabel(f"distinct tokens (1 - p) N of N = {TOKENS}")
    axes[0].set_yticks(SINGLES, [str(s) for s in SINGLES])
    fig.legend(*axes[-1].get_legend_handles_labels(), fontsize=7, loc="outside right upper")
    fig.suptitle(
        "What merging does to the collapse: particles at t = 1 (markers; hollow: recursion wrong), initial rate (line)",
        fontsize=10,
    )
    return fig


def _unit(tokens: np.ndarray) -> np.ndarray:
    return tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)


def _spread(tokens: np.ndarray, singles: int) -> float:
    unit = _unit(tokens)
    directions = _unit(np.vstack([unit[:singles], unit[singles:].mean(0)]))
    count = len(directions)
    return 1.0 - float(((directions.sum(0) ** 2).sum() - count) / (count * (count - 1.0)))


if __name__ == "__main__":
    typer.run(main)
