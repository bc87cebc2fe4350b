"""Claim: how fast tokens collapse with depth depends on where they are normalised, with the exponents of the theory.

`python -m experiments.rank_vs_depth [--seeds 6] [--out experiments/results/rank_vs_depth]`. Tokens start i.i.d. uniform
on the sphere and pass layers of attention (or the continuous flow, where the law is about continuous time). For every
model and seed a straight line through the last half of the depths gives the exponent of the spread g = 1 - mean cosine,
of W2 to the best Dirac on the sphere, and of the token ranks minus 1. A claim holds when the mean over seeds is within
10 per cent of the theory. Every interval is a 95 % Student interval over seeds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
import xarray as xr
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import t as student

from accel.provenance import provenance
from experiments.verdict import Verdict, report
from meanfield import equiangular_token_ranks
from meanfield.measure import unit
from meanfield.particles import Dynamics, simulate
from meanfield.steppers import RungeKutta, rk4

TOLERANCE = 0.1
"""Relative: the share by which a fitted exponent may miss the theory."""

RANKS = ("stable_rank", "participation_ratio", "effective_rank_energy", "effective_rank")
RANK_LABELS = ("stable rank", "participation ratio", "effective rank of energies", "effective rank")


@dataclass(frozen=True)
class Case:
    """A model with the claimed exponents: value ~ exp(-exponent * clock(depth))."""

    name: str
    dynamics: Dynamics
    layers: int
    clock: Callable[[np.ndarray], np.ndarray]
    law: str
    exponents: dict[str, float]
    flow: RungeKutta | None = None
    tokens: int = 128
    dim: int = 64

    def run(self, seed: int) -> xr.Dataset:
        """Observables of one seed at 40 depths that are even on the clock."""
        rng = np.random.default_rng(seed)
        x = unit(rng.standard_normal((self.tokens, self.dim)))
        depths = np.arange(1, self.layers + 1)
        even = np.linspace(self.clock(depths[:1])[0], self.clock(depths[-1:])[0], 40)
        record = np.unique(depths[np.abs(self.clock(depths)[:, None] - even).argmin(0)])
        data = simulate(x, self.dynamics, layers=self.layers, flow=self.flow, rng=rng, record=record.tolist()).data
        for kind in ("between", "within"):
            share = data[f"{kind}_energy"] / data.radius**2
            data[f"{kind}_share"] = share.assign_attrs(long_name=f"variance {kind} frames over r^2", units="1")
        return data

    def exponent(self, depth: np.ndarray, values: np.ndarray) -> float:
        """Minus the slope of ln value against the clock over depths beyond half of the layers."""
        late = depth >= self.layers / 2
        return float(-np.polyfit(self.clock(depth[late]), np.log(values[late]), 1)[0])


def cases() -> list[Case]:
    """The rows of the table, docs/theory/notes.md 1.2, 2.2 and 5."""
    log, time = np.log, np.asarray
    pre = {"spread": 2.0, "w2_to_dirac": 1.0}
    post = {"spread": 2.0, "w2_to_dirac": 1.0}
    random = {"spread": 1.0, "w2_to_dirac": 0.5}
    layer = {name: 2.0 * np.log(2.0) * share for name, share in (("spread", 1.0), ("w2_to_dirac", 0.5))}
    sqrt = {"spread": 4.0, "w2_to_dirac": 2.0}
    frames = {"between_share": 1.0, "within_share": 2.0}
    return [
        Case("Post-LN flow", Dynamics("post-ln"), 12, time, "exp(-e t)", post, rk4(0.1)),
        Case("Post-LN layers", Dynamics("post-ln"), 20, time, "exp(-e L)", layer),
        Case("sqrt scaling flow", Dynamics("sqrt"), 80, lambda t: np.sqrt(t + 1.0), "exp(-e sqrt t)", sqrt, rk4(0.2)),
        Case("Pre-LN layers", Dynamics("pre-ln"), 400, log, "L^-e", pre),
        Case("Peri-LN layers", Dynamics("peri-ln"), 400, log, "L^-e", pre),
        Case("Pre-LN random V", Dynamics("pre-ln", coherence=0.0), 400, log, "L^-e", random, tokens=64, dim=256),
        Case("Pre-LN token noise", Dynamics("pre-ln", noise=0.5), 800, log, "L^-e", random),
        Case("Pre-LN frames 1:1", Dynamics("pre-ln", frames=8), 400, log, "L^-e", frames),
        Case("Pre-LN LayerScale .01", Dynamics("pre-ln", gain=0.01), 24, log, "L^-e", {}),
    ]


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % Student interval of the mean."""
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def rank_exponents(case: Case, data: xr.Dataset) -> dict[str, float]:
    """What the claimed law of g makes of the ranks: the equiangular closed form along g(L) through the last point."""
    depth = data.layer.values[1:]
    clock = case.clock(depth)
    last = float(data.spread.isel(layer=-1).mean())
    g = np.minimum(last * np.exp(-case.exponents["spread"] * (clock - clock[-1])), 1.0)
    ranks = equiangular_token_ranks(case.tokens, g, case.dim)
    return {f"token_{name}": case.exponent(depth, ranks[name] - 1.0) for name in RANKS}


def main(
    seeds: Annotated[int, typer.Option(min=2, help="Independent starts.")] = 6,
    out: Annotated[Path, typer.Option(help="Prefix of the .json, .nc and .png files.")] = Path(
        "experiments/results/rank_vs_depth"
    ),
) -> None:
    """Print fitted against claimed exponents with verdicts, and write the numbers and the figure."""
    table = Table("model", "law", "quantity", "claimed", "fitted", "95 % interval", title="exponents e of the collapse")
    runs, verdicts, fits = {}, [], {}
    for case in track(cases(), "simulating"):
        runs[case.name] = data = xr.concat([case.run(seed) for seed in range(seeds)], dim="seed")
        depth = data.layer.values[1:]
        claimed = dict(case.exponents)
        if "spread" in claimed and case.law == "L^-e":
            claimed |= rank_exponents(case, data)
        for name, expected in (claimed or {"spread": 0.0}).items():
            values = (data[name] - 1.0 if name.startswith("token_") else data[name]).values[:, 1:]
            fitted = np.array([case.exponent(depth, row) for row in values])
            low, high = interval(fitted)
            fits[f"{case.name}: {name}"] = {"claimed": expected, "fitted": fitted.tolist()}
            table.add_row(
                case.name, case.law, name, f"{expected:.3f}", f"{fitted.mean():.3f}", f"[{low:.3f}, {high:.3f}]"
            )
            if claimed:
                holds = bool(abs(fitted.mean() / expected - 1.0) <= TOLERANCE)
                text = f"{case.name}: exponent of {name} within 10 % of {expected:.3g}"
                verdicts.append(Verdict(text, float(fitted.mean()), expected, holds, (low, high)))
            else:
                text = f"{case.name}: no power law within {case.layers} layers, exponent of g below .5"
                verdicts.append(Verdict(text, float(fitted.mean()), 0.5, bool(high < 0.5), (low, high)))
    Console().print(table)
    data = xr.concat(
        [run.assign_coords(model=name) for name, run in runs.items()],
        dim="model",
        join="outer",
        combine_attrs="override",
    )
    data.attrs = provenance() | {"seeds": f"0 to {seeds - 1}", "beta": 1.0}
    out.parent.mkdir(parents=True, exist_ok=True)
    data.to_netcdf(out.with_suffix(".nc"), engine="h5netcdf")
    figure(runs).savefig(out.with_suffix(".png"), dpi=130)
    report(verdicts, out.with_suffix(".json"), exponents=fits, seeds=seeds)


def figure(runs: dict[str, xr.Dataset]) -> Figure:
    """Exponential laws, power laws of g and of W2, and the token ranks of Pre-LN; bands are the range over seeds."""
    fig = Figure(figsize=(12, 8.5), layout="constrained")
    (exponential, power), (distance, ranks) = fig.subplots(2, 2)

    def curve(ax, data: xr.DataArray, label: str, x=None, **style) -> None:
        data = data.isel(layer=slice(1, None))
        x = data.layer if x is None else x(data.layer)
        (line,) = ax.plot(x, data.mean("seed"), label=label, **style)
        ax.fill_between(x, data.min("seed"), data.max("seed"), color=line.get_color(), alpha=0.2, lw=0)

    def reference(ax, start: float, stop: float, value: float, power: float) -> None:
        x = np.array([start, stop])
        ax.plot(x, value * (x / stop) ** -power, "k--", lw=0.8)
        middle = np.sqrt(start * stop)
        ax.annotate(f"slope -{power:g}", (middle, value * (middle / stop) ** -power), fontsize=8, ha="right", va="top")

    listed = {case.name: case for case in cases()}
    exponential.plot([0, 24], [1, np.exp(-24)], "k--", lw=0.8, label="exp(-clock)")
    for name, factor, label in (
        ("Post-LN flow", 2.0, "Post-LN flow, clock 2 t"),
        ("Post-LN layers", 2.0 * np.log(2.0), "Post-LN layers, clock 2 L ln 2"),
        ("sqrt scaling flow", 4.0, "sqrt scaling flow, clock 4 (sqrt(t + 1) - 1)"),
    ):
        clock = listed[name].clock
        curve(exponential, runs[name].spread, label, x=lambda t, c=clock, f=factor: f * (c(t) - c(np.zeros(1))))
    exponential.set(yscale="log", xlabel="clock of the law (dimensionless)", ylabel="spread g = 1 - mean cosine")
    exponential.set_title("exponential collapse", fontsize=10)
    models = [name for name, case in listed.items() if case.law == "L^-e"]
    for ax, quantity in ((power, "spread"), (distance, "w2_to_dirac")):
        for name in models:
            curve(ax, runs[name][quantity], name)
        factor = 1.0 if quantity == "spread" else 0.5
        for name, slope, shift in (("Pre-LN layers", 2.0, 0.6), ("Pre-LN random V", 1.0, 2.0)):
            end = shift * float(runs[name][quantity].isel(layer=-1).mean())
            reference(ax, 40.0, 400.0, end, slope * factor)
        ax.set(xscale="log", yscale="log", xlabel="layers L")
    power.set(ylabel="spread g = 1 - mean cosine")
    power.set_title("algebraic collapse", fontsize=10)
    distance.set(ylabel="W2 to the best Dirac on the sphere (chordal)")
    case, data = listed["Pre-LN layers"], runs["Pre-LN layers"]
    closed = equiangular_token_ranks(case.tokens, data.spread.mean("seed").values[1:].clip(0.0, 1.0), case.dim)
    for name, label in zip(RANKS, RANK_LABELS, strict=True):
        curve(ranks, data[f"token_{name}"] - 1.0, label)
        ranks.plot(data.layer[1:], closed[name] - 1.0, "k:", lw=1.0)
    ranks.plot([], [], "k:", label="closed form at the measured g")
    ranks.set(xscale="log", yscale="log", xlabel="layers L", ylabel="token rank - 1")
    ranks.set_title("token ranks under Pre-LN", fontsize=10)
    for ax in (exponential, power, distance, ranks):
        ax.legend(fontsize=7)
    return fig


if __name__ == "__main__":
    typer.run(main)
