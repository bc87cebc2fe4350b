"""Claim: under alternating frame and global attention the variance between frames decays as L^{-2 a_g/(a_g + a_f)}.

`python -m experiments.alternating_exponent [--seeds 8] [--layers 600]`. Particles: x <- x + a_f A_frame theta, then
x <- x + a_g A theta, Pre-LN, V = I, beta = 1, random frames and tokens. The law (meanfield.recursion) says O(1/L)
between frames only at equal gains, and L^-2 within frames. Per seed ln(D/r^2) = A - e ln(L + L_0) is fitted to the
layers after the first tenth (L_0 because r = (a_f + a_g)(L + L_0) near collapse); 95 % intervals by Student's t over
the seeds. Criterion, fixed beforehand: the whole interval within .02 of the formula. Baseline: "O(1/L), exponent 1,
always".
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
from scipy.optimize import least_squares
from scipy.stats import t as student

from experiments.verdict import Verdict, report
from meanfield import Recursion
from meanfield.recursion import asymptotic_exponents

RATIOS = (4.0, 2.0, 1.0, 0.5, 0.25)
"""a_g/a_f, at a_g + a_f = 2."""
FRAMES, PER_FRAME, DIM, BETA = 8, 12, 64, 1.0
MARGIN = 0.02
MODES = ("between", "within")


def gains(ratio: float) -> tuple[float, float]:
    """(a_f, a_g)."""
    return 2.0 / (1.0 + ratio), 2.0 * ratio / (1.0 + ratio)


def directions(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def attend(theta: np.ndarray) -> np.ndarray:
    """Softmax attention among the tokens of each group, (..., n, d)."""
    weights = np.exp(BETA * (theta @ np.swapaxes(theta, -1, -2) - 1.0))
    return weights @ theta / weights.sum(-1, keepdims=True)


def simulate(ratio: float, layers: int, rng: np.random.Generator) -> np.ndarray:
    """D_b/r^2 and D_w/r^2 after each layer, (layers, 2)."""
    frame, everywhere = gains(ratio)
    mean, of_frame, of_token = (rng.standard_normal((*s, DIM)) for s in ((1, 1), (FRAMES, 1), (FRAMES, PER_FRAME)))
    x = directions(mean + of_frame + of_token)
    shares = np.empty((layers, 2))
    for layer in range(layers):
        x = x + frame * attend(directions(x))
        x = x + everywhere * attend(directions(x).reshape(-1, DIM)).reshape(x.shape)
        centre = x.mean(1)
        between = ((centre - centre.mean(0)) ** 2).sum(-1).mean()
        within = ((x - centre[:, None]) ** 2).sum(-1).mean()
        shares[layer] = np.array([between, within]) / (x**2).sum(-1).mean()
    return shares


def fitted_exponent(share: np.ndarray) -> float:
    """e of ln(share) = A - e ln(L + L_0) over the layers after the first tenth."""
    depth = np.arange(1, share.size + 1)[share.size // 10 :]
    target = np.log(share[share.size // 10 :])
    fit = least_squares(lambda p: p[0] - p[1] * np.log(depth + p[2]) - target, [0.0, 1.0, 0.0], x_scale=[1, 1, 10])
    return float(fit.x[1])


def main(
    seeds: Annotated[int, typer.Option(min=3)] = 8,
    layers: Annotated[int, typer.Option(min=100)] = 600,
    out: Annotated[Path, typer.Option(help="Prefix of the .json, .nc and .png files.")] = Path(
        "experiments/results/alternating_exponent"
    ),
) -> None:
    """Print fitted exponents against the formula and the baseline, and write the numbers."""
    shares = np.array(
        [
            [simulate(ratio, layers, np.random.default_rng([seed, index])) for seed in range(seeds)]
            for index, ratio in enumerate(track(RATIOS, "simulating"))
        ]
    )
    exponents = np.array([[[fitted_exponent(run[:, m]) for m in range(2)] for run in runs] for runs in shares])
    half = student.ppf(0.975, seeds - 1) * exponents.std(1, ddof=1) / np.sqrt(seeds)
    formula = np.array([asymptotic_exponents(Recursion(*gains(ratio))) for ratio in RATIOS])
    data = xr.Dataset(
        {
            "share": (("ratio", "seed", "layer", "mode"), shares),
            "exponent": (("ratio", "seed", "mode"), exponents),
            "mean": (("ratio", "mode"), exponents.mean(1)),
            "half_interval": (("ratio", "mode"), half),
            "formula": (("ratio", "mode"), formula),
        },
        coords={"ratio": list(RATIOS), "layer": np.arange(1, layers + 1), "mode": list(MODES)},
        attrs={"frames": FRAMES, "tokens_per_frame": PER_FRAME, "dim": DIM, "beta": BETA, "seeds": seeds},
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    data.to_netcdf(out.with_suffix(".nc"), engine="h5netcdf")
    figure(data).savefig(out.with_suffix(".png"), dpi=130)
    table = Table("a_g/a_f", "mode", "fitted, 95 %", "formula", "error", "error of exponent 1", title="depth exponents")
    verdicts = []
    for i, ratio in enumerate(RATIOS):
        for m, mode in enumerate(MODES):
            mean, error = data["mean"].values[i, m], half[i, m]
            worst = abs(mean - formula[i, m]) + error
            table.add_row(
                f"{ratio:g}",
                mode,
                f"{mean:.4f} ± {error:.4f}",
                f"{formula[i, m]:.4f}",
                f"{mean - formula[i, m]:+.4f}",
                f"{mean - 1.0:+.4f}",
            )
            claim = f"a_g/a_f = {ratio:g}: exponent {mode} frames within {MARGIN} of {formula[i, m]:.4g}, 95 % interval"
            interval = (float(mean - error), float(mean + error))
            verdicts.append(Verdict(claim, float(worst), MARGIN, bool(worst <= MARGIN), interval))
    Console().print(table)
    means = data["mean"].values
    report(
        verdicts,
        out.with_suffix(".json"),
        ratios=RATIOS,
        fitted=means.tolist(),
        half_interval=half.tolist(),
        formula=formula.tolist(),
        baseline_error_between=np.abs(means[:, 0] - 1.0).tolist(),
        seeds=seeds,
        layers=layers,
    )


def figure(data: xr.Dataset) -> Figure:
    """Shares against depth with the predicted slopes, and fitted exponents against the formula."""
    fig = Figure(figsize=(13, 4.3), layout="constrained")
    left, middle, right = fig.subplots(1, 3)
    depth = data["layer"].values
    colours = [f"C{i}" for i in range(data.sizes["ratio"])]
    for ax, mode in ((left, "between"), (middle, "within")):
        for colour, ratio in zip(colours, data["ratio"].values, strict=True):
            now = data.sel(ratio=ratio, mode=mode)
            share = np.exp(np.log(now["share"]).mean("seed")).values
            exponent = float(now["formula"])
            ax.loglog(depth, share, color=colour, label=f"$a_g/a_f$ = {ratio:g}")
            late = depth >= depth[-1] / 6
            line = 1.25 * share[-1] * (depth[late] / depth[-1]) ** -exponent
            ax.loglog(depth[late], line, "--", color=colour, lw=1)
        ax.set(title=f"variance {mode} frames", xlabel="layers L", ylabel=f"$D_{mode[0]}/r^2$ (share of energy)")
        ax.legend(fontsize=7, title="dashed: predicted slope", title_fontsize=7)
    ratio = np.geomspace(0.2, 5.0, 100)
    right.semilogx(ratio, 2 * ratio / (1 + ratio), "k-", label="$2a_g/(a_g+a_f)$, between")
    right.semilogx(ratio, np.full_like(ratio, 2.0), "k:", label="2, within")
    right.semilogx(ratio, np.ones_like(ratio), "r--", label="baseline: always O(1/L)")
    for mode, marker in (("between", "o"), ("within", "s")):
        now = data.sel(mode=mode)
        right.errorbar(
            data["ratio"], now["mean"], now["half_interval"], fmt=marker, capsize=4, label=f"particles, {mode} (95 %)"
        )
    right.set(title="depth exponent", xlabel="gain ratio $a_g/a_f$", ylabel="exponent e in $L^{-e}$", ylim=(0, 2.3))
    right.set_xticks(data["ratio"].values, [f"{x:g}" for x in data["ratio"].values])
    right.minorticks_off()
    right.legend(fontsize=7, loc="lower right")
    return fig


if __name__ == "__main__":
    typer.run(main)
