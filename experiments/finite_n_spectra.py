"""Claim: the finite-N law gives the ranks of softmax attention between uniform directions, dilute rows and beyond.

`python -m experiments.finite_n_spectra [--grid development | held-out | large | matrix-free]`.
Dense spectra of softmax(kappa cos) with s^2 = kappa^2/D up to 2 ln N are measured once and kept in the .nc file; a run
resumes there. The form of the law was chosen while looking at the development grid; the held-out grid has other D and N
and was measured afterwards, once. Compared: the law of the limit of many tokens (free features) and the law with damped
kernel and heavy tails. Targets in s^2 <= ln(N)/2: effective rank within 3 %, stable rank within 2 %.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
import xarray as xr
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from experiments.verdict import Verdict, report
from meanfield import PopulationLaw, spectrum_ranks, sphere_law


@dataclass(frozen=True)
class Grid:
    """Matrices to measure: dimensions, shares s^2 / ln N (the law's regimes change at .5 and 2), seeds for each N."""

    dims: tuple[int, ...]
    shares: tuple[float, ...]
    seeds: dict[int, int]
    first_seed: int = 0


GRIDS = {
    "development": Grid(
        (3, 4, 8, 16, 32, 64),
        (0.04, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.4, 2.0),
        {500: 4, 1000: 2, 2000: 1, 4000: 1},
    ),
    "held-out": Grid((3, 6, 12, 24, 48, 64), (0.15, 0.35, 0.5, 0.85, 1.6), {700: 4, 1500: 4, 3000: 2}, first_seed=100),
    "large": Grid((3, 8, 24, 64), (0.25, 0.5), {8000: 1}, first_seed=200),
    "matrix-free": Grid((3, 4, 8, 24, 64), (0.25, 0.5), {20_000: 1}, first_seed=300),
}
DENSE = 10_000
"""Above so many tokens the matrix is never formed: only the stable rank is measured, and all ranks where D is small."""
MEASURES = ("effective_rank", "effective_rank_energy", "stable_rank", "participation_ratio")
FREE = "free features"
LAWS = (FREE, "damped, heavy tails")


def measure(dim: int, tokens: int, kappa: float, seed: int) -> dict[str, float]:
    """Rank measures of one matrix, from the eigenvalues of its Gram matrix in float64; NaN what is not resolved."""
    rng = np.random.default_rng([dim, tokens, seed, int(1000 * kappa)])
    q, k = rng.standard_normal((2, tokens, dim))
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    k /= np.linalg.norm(k, axis=1, keepdims=True)
    if tokens > DENSE:
        return measure_in_blocks(q, kappa * k, columns=900 if dim <= 4 else 16, rng=rng)
    a = torch.softmax(torch.tensor(q) @ torch.tensor(kappa * k).T, -1)
    squares = torch.linalg.eigvalsh(a.T @ a).clamp(min=0.0).numpy()
    return {name: float(value) for name, value in spectrum_ranks(np.sqrt(squares)).items()}


def measure_in_blocks(q: np.ndarray, k: np.ndarray, *, columns: int, rng: np.random.Generator) -> dict[str, float]:
    """The same from block subspace iteration and the exact energy, without the N x N matrix.

    Ranks of the whole spectrum are NaN unless the values beyond `columns` add less than 1e-3 to the sum of all.
    """
    tokens = len(q)
    basis = rng.standard_normal((tokens, columns))
    for _ in range(2 if columns > 100 else 6):
        basis = np.linalg.qr(basis)[0]
        product, energy = np.zeros_like(basis), 0.0
        for start in range(0, tokens, 1000):
            rows = np.exp(q[start : start + 1000] @ k.T)
            rows /= rows.sum(1, keepdims=True)
            energy += float((rows**2).sum())
            product += rows.T @ (rows @ basis)
        squares = np.clip(np.linalg.eigvalsh(basis.T @ product)[::-1], 0.0, None)
        basis = product
    values = np.sqrt(squares)
    rest = np.sqrt(max(energy - squares.sum(), 0.0) * (tokens - columns))
    ranks = {name: float(value) for name, value in spectrum_ranks(values).items()}
    if rest > 1e-3 * values.sum():
        ranks = dict.fromkeys(ranks, np.nan)
    return ranks | {"stable_rank": energy / squares[0]}


def cases(grid: Grid) -> list[tuple[int, int, float, int]]:
    """(dim, tokens, kappa, seed) of the grid, small matrices first."""
    return [
        (dim, tokens, float(np.sqrt(dim * share * np.log(tokens))), grid.first_seed + seed)
        for tokens, seeds in grid.seeds.items()
        for seed in range(seeds)
        for dim in grid.dims
        for share in grid.shares
    ]


def measured(grid: Grid, path: Path) -> xr.Dataset:
    """The measurements of the grid, those in `path` and the missing ones, which are written there as they come."""
    done: dict[tuple[int, int, float, int], dict[str, float]] = {}
    if path.exists():
        old = xr.load_dataset(path, engine="h5netcdf")
        for i in range(old.sizes["case"]):
            row = old.isel(case=i)
            key = (int(row.dim), int(row.tokens), round(float(row.kappa), 9), int(row.seed))
            done[key] = {name: float(row[name]) for name in MEASURES}
    path.parent.mkdir(parents=True, exist_ok=True)
    wanted = [(dim, tokens, round(kappa, 9), seed) for dim, tokens, kappa, seed in cases(grid)]
    missing = [(key, case) for key, case in zip(wanted, cases(grid), strict=True) if key not in done]
    for index, (key, case) in enumerate(track(missing, "measuring")):
        done[key] = measure(*case)
        if index % 10 == 9 or index == len(missing) - 1:
            as_dataset(done).to_netcdf(path, engine="h5netcdf")
    return as_dataset({key: done[key] for key in wanted})


def as_dataset(done: dict[tuple[int, int, float, int], dict[str, float]]) -> xr.Dataset:
    """One row per measured matrix."""
    keys = list(done)
    columns = {name: ("case", np.array([done[key][name] for key in keys])) for name in MEASURES}
    names = ("dim", "tokens", "kappa", "seed")
    coordinates = {name: ("case", np.array([key[i] for key in keys])) for i, name in enumerate(names)}
    return xr.Dataset(columns, coords=coordinates, attrs={"matrices": "softmax(kappa cos), uniform directions"})


def compared(data: xr.Dataset) -> xr.Dataset:
    """Law over measured (law, point) of every measure, over points (dim, tokens, kappa): means of the seeds."""
    points = sorted({(int(d), int(n), float(k)) for d, n, k in zip(data.dim, data.tokens, data.kappa, strict=True)})
    ratio = np.empty((len(LAWS), len(MEASURES), len(points)))
    for i, (dim, tokens, kappa) in enumerate(track(points, "predicting")):
        same = (data.dim == dim) & (data.tokens == tokens) & (np.abs(data.kappa - kappa) < 1e-6)
        law = sphere_law(kappa, dim)
        limit = PopulationLaw(law.sigma, law.multiplicity).ranks(tokens)
        here = law.at(tokens).ranks(tokens)
        for j, name in enumerate(MEASURES):
            mean = float(data[name].values[same.values].mean())
            ratio[:, j, i] = float(limit[name]) / mean, float(here[name]) / mean
    dim, tokens, kappa = np.array(points).T
    return xr.Dataset(
        {"ratio": (("law", "measure", "point"), ratio)},
        coords={
            "law": list(LAWS),
            "measure": list(MEASURES),
            "dim": ("point", dim.astype(int)),
            "tokens": ("point", tokens.astype(int)),
            "kappa": ("point", kappa),
            "share": ("point", kappa**2 / dim / np.log(tokens), {"long_name": "s^2/ln N"}),
        },
    )


def main(
    grid: Annotated[str, typer.Option(help="development, held-out, large or matrix-free.")] = "development",
    out: Annotated[Path | None, typer.Option(help="Prefix of the .json, .nc and .png files.")] = None,
) -> None:
    """Print law against measurement, and the verdicts."""
    if grid not in GRIDS:
        raise typer.BadParameter(f"--grid {grid} is not one of {', '.join(GRIDS)}")
    out = out or Path("experiments/results") / f"finite_n_spectra_{grid.replace('-', '_')}"
    data = measured(GRIDS[grid], out.with_suffix(".nc"))
    result = compared(data)
    share = result.share.values
    regimes = {"s^2 <= ln(N)/2": share < 0.501, "ln(N)/2 < s^2 <= 2 ln N": share >= 0.501}
    table = Table("s^2", "law", *MEASURES, title="error of the law in per cent: median / largest")
    numbers = {}
    for regime, chosen in regimes.items():
        if not chosen.any():
            continue
        for law in LAWS:
            error = 100.0 * np.abs(result.ratio.sel(law=law).values[:, chosen] - 1.0)
            numbers[f"{regime}, {law}"] = {
                name: {"median": float(np.nanmedian(e)), "largest": float(np.nanmax(e))}
                for name, e in zip(MEASURES, error, strict=True)
            }
            table.add_row(regime, law, *(f"{np.nanmedian(e):.2f} / {np.nanmax(e):.1f}" for e in error))
    Console().print(table)
    figure(result).savefig(out.with_suffix(".png"), dpi=120)
    verdicts = []
    for name, threshold in (("effective_rank", 0.03), ("stable_rank", 0.02)):
        error = np.abs(result.ratio.sel(law=LAWS[1], measure=name).values[share < 0.501] - 1.0)
        for word, value in (("largest", np.nanmax(error)), ("median", np.nanmedian(error))):
            claim = f"{word} error of the {name.replace('_', ' ')} for s^2 <= ln(N)/2"
            verdicts.append(Verdict(claim, float(value), threshold, bool(value <= threshold)))
    report(verdicts, out.with_suffix(".json"), grid=grid, errors=numbers, matrices=int(data.sizes["case"]))


def figure(result: xr.Dataset) -> Figure:
    """Ratio law/measured against s^2/ln N: one column per D, effective rank above, stable rank below."""
    fig = Figure(figsize=(15.0, 6.0), layout="constrained")
    dims, counts = (sorted(set(result[name].values.tolist())) for name in ("dim", "tokens"))
    axes = fig.subplots(2, len(dims), sharex=True, sharey="row")
    for column, dim in enumerate(dims):
        for row, name in enumerate(("effective_rank", "stable_rank")):
            axis = axes[row, column]
            for index, tokens in enumerate(counts):
                chosen = (result.dim.values == dim) & (result.tokens.values == tokens)
                x = result.share.values[chosen]
                for law, style in zip(LAWS, (":", "-"), strict=True):
                    y = result.ratio.sel(law=law, measure=name).values[chosen]
                    label = f"N = {tokens}, {law}" if column == 0 and row == 0 else None
                    axis.plot(x, y, style, marker="." if style == "-" else None, color=f"C{index}", label=label)
            target = 0.03 if row == 0 else 0.02
            axis.axhspan(1.0 - target, 1.0 + target, color="0.9", zorder=0)
            axis.axvline(0.5, color="k", lw=0.8)
            axis.axvline(2.0, color="k", lw=0.8, ls="--")
            axis.set_xscale("log")
            axis.set_xticks((0.1, 0.5, 2.0), labels=("0.1", "0.5", "2"))
            axis.minorticks_off()
            axis.set_ylim((0.93, 1.15) if row == 0 else (0.9, 1.4))
            if row == 0:
                axis.set_title(f"D = {dim}")
            else:
                axis.set_xlabel("s² / ln N")
        axes[0, 0].set_ylabel("effective rank, law / measured")
        axes[1, 0].set_ylabel("stable rank, law / measured")
    fig.legend(loc="outside lower center", ncols=len(counts))
    fig.suptitle("Lines: s² = ½ ln N (solid), 2 ln N (dashed); grey: target")
    return fig


if __name__ == "__main__":
    typer.run(main)
