"""Claim: closed populations and the law of classes give the effective rank of softmax attention within 10 per cent.

`python -m experiments.gaussian_spectra [--grid development | held-out]`. Dense spectra against the plain finite-N law
and against the law of classes, for Gaussian queries and keys of equal and unequal covariance (means over seeds). The
form of the law was chosen while looking at the development grid, which also has clusters of directions, queries with a
mean (sinks) and content under RoPE (one draw each); the held-out grid has other D, N, shapes and seeds and was measured
once, afterwards.
"""

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
from scipy.linalg import eigvalsh
from scipy.sparse.linalg import svds
from scipy.special import softmax

from experiments.verdict import Verdict, report
from meanfield.closed_forms import gaussian_qk_ranks
from meanfield.finite_n import PopulationLaw
from meanfield.gaussian_spectrum import gaussian_ranks, geometric_population, sink_leading
from meanfield.mixtures import cluster_law
from meanfield.qk_norm import sphere_ranks
from meanfield.ranks import effective_rank, spectrum_ranks
from meanfield.rope import averaged_covariance, rotate

TARGET = 0.1


@dataclass(frozen=True)
class Grid:
    """Equal covariances: dims x fractions of s^2 = ln(N)/2, {N: seeds}; unequal ones: shapes of c_a x s^2 at one N."""

    dims: tuple[int, ...]
    fractions: tuple[float, ...]
    seeds: dict[int, int]
    shapes: dict[str, np.ndarray]
    shape_tokens: int
    first_seed: int = 0


GRIDS = {
    "development": Grid(
        (3, 4, 8, 16, 32, 64),
        (0.1, 0.4, 0.7, 1.0),
        {500: 4},
        {
            "0.8^a, D=16": 0.8 ** np.arange(16),
            "1/a, D=32": 1.0 / np.arange(1, 33),
            "a^-1/2, D=64": np.arange(1, 65) ** -0.5,
            "4 of 32 sixfold": np.where(np.arange(32) < 4, 6.0, 1.0),
        },
        500,
    ),
    "held-out": Grid(
        (3, 5, 12, 24, 48),
        (0.2, 0.5, 0.8, 1.0),
        {1000: 4, 2000: 2, 4000: 1},
        {
            "0.7^a, D=24": 0.7 ** np.arange(24),
            "a^-3/4, D=48": np.arange(1, 49) ** -0.75,
            "2 of 16 fourfold": np.where(np.arange(16) < 2, 4.0, 1.0),
        },
        1000,
        first_seed=100,
    ),
}
MEASURES = ("effective_rank", "effective_rank_energy", "stable_rank", "participation_ratio")


def gaussian_attention(rng: np.random.Generator, n: int, c: np.ndarray, mean: np.ndarray | float = 0.0) -> np.ndarray:
    """Softmax of z.y for z ~ N(mean, diag c), y ~ N(0, I)."""
    z = mean + np.sqrt(c) * rng.standard_normal((n, c.size))
    return softmax(z @ rng.standard_normal((n, c.size)).T, axis=1)


def singular_values(attention: np.ndarray) -> np.ndarray:
    return np.linalg.svd(attention, compute_uv=False)


def plain_rank(c: np.ndarray, n: int) -> float:
    """Effective rank by the law with independent features, NaN where its population diverges."""
    if c.max() >= 0.5:
        return np.nan
    return float(PopulationLaw(*geometric_population(c)).ranks(n)["effective_rank"])


def gaussian_row(case: str, n: int, c: np.ndarray, seeds: range) -> dict:
    """Law and mean over seeds for one covariance."""
    draws = []
    for seed in seeds:
        rng = np.random.default_rng([c.size, n, seed, int(1000 * c.sum())])
        attention = gaussian_attention(rng, n, c)
        squares = eigvalsh(attention.T @ attention, overwrite_a=True, check_finite=False)
        draws.append(spectrum_ranks(np.sqrt(np.maximum(squares, 0.0))))
    measured = {name: float(np.mean([draw[name] for draw in draws])) for name in MEASURES}
    return _row(case, n, c, measured, gaussian_ranks(n, c), plain_rank(c, n))


def measure_gaussian(grid: Grid) -> list[dict]:
    """Rows for equal covariances; above N = 2000 only every second D and fraction."""
    cases = [
        (n, dim, fraction)
        for n in grid.seeds
        for dim in grid.dims[:: 1 if n <= 2000 else 2]
        for fraction in grid.fractions[1 if n > 2000 else 0 :: 1 if n <= 2000 else 2]
    ]
    seeds = {n: range(grid.first_seed, grid.first_seed + count) for n, count in grid.seeds.items()}
    return [
        gaussian_row(f"D={dim}", n, np.full(dim, fraction * 0.5 * np.log(n) / dim), seeds[n])
        for n, dim, fraction in track(cases, "equal c")
    ]


def measure_unequal(grid: Grid) -> list[dict]:
    """Rows for unequal covariances."""
    n = grid.shape_tokens
    seeds = range(grid.first_seed, grid.first_seed + grid.seeds[n])
    cases = [(name, shape, variance) for name, shape in grid.shapes.items() for variance in (0.3, 1.0, 2.0)]
    return [
        gaussian_row(name, n, variance * shape / shape.sum(), seeds)
        for name, shape, variance in track(cases, "unequal c")
    ]


def measure_clusters(rng: np.random.Generator, n: int) -> list[dict]:
    """Rows for K clusters around orthogonal or random centres; the plain law is the uniform sphere."""
    cases = [
        (16, 4, 0.2, 6.0, True),
        (16, 4, 0.5, 6.0, True),
        (32, 8, 0.3, 8.0, False),
        (32, 8, 0.6, 8.0, False),
        (64, 8, 0.5, 8.0, False),
        (32, 4, 0.1, 10.0, True),
        (16, 4, 0.8, 4.0, False),
        (32, 16, 0.4, 6.0, False),
    ]
    rows = []
    for dim, count, spread, kappa, orthogonal in track(cases, "clusters"):
        centres = rng.standard_normal((count, dim))
        centres = np.linalg.qr(centres.T)[0].T if orthogonal else centres
        centres /= np.linalg.norm(centres, axis=1, keepdims=True)
        (q, q_share), (k, k_share) = (_clustered(rng, n, centres, spread) for _ in range(2))
        measured = spectrum_ranks(singular_values(softmax(kappa * q @ k.T, axis=1)))
        cosines = np.clip(centres @ centres.T, -1.0, 1.0)
        law = cluster_law(kappa, dim, spread, cosines, q_share, k_share).ranks(n)
        name = f"D={dim}, K={count}, g={spread}, kappa={kappa:g}"
        uniform = float(sphere_ranks(n, kappa, dim)["effective_rank"])
        rows.append(_row(name, n, np.array([kappa**2 / dim]), measured, law, uniform))
    return rows


def measure_sinks() -> list[dict[str, float]]:
    """Leading singular values for D = 4 and a query mean of growing length: rms of 8 draws, their
    relative scatter, limit, finite N."""
    rows = []
    for n in (500, 2000):
        for scale in (0.1, 0.02):
            for square in (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0):
                c, mean = np.full(4, scale), np.array([np.sqrt(square), 0.0, 0.0, 0.0])
                draws = []
                for seed in range(8):
                    a = gaussian_attention(np.random.default_rng([n, seed, int(100 * square)]), n, c, mean)
                    draws.append(svds(a, k=1, v0=np.ones(n), return_singular_vectors=False)[0])
                rows.append(
                    {
                        "tokens": n,
                        "c": scale,
                        "squared_mean": square,
                        "measured": float(np.sqrt(np.mean(np.square(draws)))),
                        "scatter": float(np.std(draws) / np.mean(draws)),
                        "limit": float(gaussian_qk_ranks(c, mean)["leading_singular_value"]),
                        "finite": sink_leading(n, c, mean),
                    }
                )
    return rows


def measure_rope(rng: np.random.Generator, n: int) -> dict[str, float]:
    """Effective ranks with and without RoPE: uniform directions and anisotropic Gaussian content, D = 32."""
    dim, positions = 32, rng.integers(1, 38, size=(n, 2)).astype(float)
    q, k = rng.standard_normal((2, n, dim))
    q, k = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, k))
    turned = [rotate(x, positions) for x in (q, k)]
    c = np.where(np.arange(dim) % 2 == 0, 0.06, 0.002)
    c[np.arange(dim) % 16 >= 8] = 0.002
    z, y = np.sqrt(c) * rng.standard_normal((n, dim)), rng.standard_normal((n, dim))
    averaged = np.linalg.eigvalsh(averaged_covariance(np.diag(c), positions))
    values = {
        "uniform without": softmax(5.0 * q @ k.T, axis=1),
        "uniform with": softmax(5.0 * turned[0] @ turned[1].T, axis=1),
        "anisotropic without": softmax(z @ y.T, axis=1),
        "anisotropic with": softmax(rotate(z, positions) @ rotate(y, positions).T, axis=1),
    }
    ranks = {name: float(effective_rank(singular_values(a))) for name, a in values.items()}
    ranks["uniform law"] = float(sphere_ranks(n, 5.0, dim)["effective_rank"])
    ranks["anisotropic without law"] = gaussian_ranks(n, c)["effective_rank"]
    ranks["anisotropic with law"] = gaussian_ranks(n, averaged)["effective_rank"]
    return ranks


def main(
    grid: Annotated[str, typer.Option(help="development or held-out.")] = "development",
    out: Annotated[Path | None, typer.Option(help="Prefix of the .json, .nc and .png files.")] = None,
) -> None:
    """Print measured and predicted ranks and write the numbers."""
    if grid not in GRIDS:
        raise typer.BadParameter(f"--grid {grid} is not one of {', '.join(GRIDS)}")
    out = out or Path("experiments/results") / f"gaussian_spectra_{grid.replace('-', '_')}"
    chosen = GRIDS[grid]
    equal = measure_gaussian(chosen)
    groups = {
        "equal covariance, D >= 8": [row for row in equal if row["dim"] >= 8],
        "equal covariance, D < 8": [row for row in equal if row["dim"] < 8],
        "unequal covariance": measure_unequal(chosen),
    }
    others, worst = {}, {}
    if grid == "development":
        rng = np.random.default_rng(0)
        groups["clusters"] = measure_clusters(rng, 500)
        others = {"sinks": measure_sinks(), "rope": measure_rope(rng, 500)}
        rope = others["rope"]
        dilute = [row for row in others["sinks"] if row["squared_mean"] <= 1.0]
        worst = {
            "sinks with |m|^2 up to 1 (s_1)": max(abs(row["finite"] / row["measured"] - 1.0) for row in dilute),
            "RoPE, uniform content": abs(rope["uniform law"] / rope["uniform with"] - 1.0),
            "RoPE, anisotropic content": abs(rope["anisotropic with law"] / rope["anisotropic with"] - 1.0),
        }
    for title, rows in groups.items():
        print_table(title, rows)
    for row in others.get("sinks", []):
        print("sink:", ", ".join(f"{name} {value:.3f}" for name, value in row.items()))
    print("RoPE:", ", ".join(f"{name} {value:.1f}" for name, value in others.get("rope", {}).items()))
    errors = {name: {key: [abs(row[key] - 1.0) for row in rows] for key in MEASURES} for name, rows in groups.items()}
    summary = {
        name: {key: {"median": float(np.median(e)), "largest": float(max(e))} for key, e in error.items()}
        for name, error in errors.items()
    }
    for name, values in summary.items():
        cells = (f"{key} {100 * v['median']:.1f} / {100 * v['largest']:.1f}" for key, v in values.items())
        print(f"{name}, error in per cent, median / largest:", ", ".join(cells))
    worst = {name: values["effective_rank"]["largest"] for name, values in summary.items()} | worst
    verdicts = [Verdict(f"largest relative error, {name}", v, TARGET, v < TARGET) for name, v in worst.items()]
    for name in list(groups)[:3]:
        for word, value in summary[name]["stable_rank"].items():
            claim = f"{word} relative error of the stable rank, {name}"
            verdicts.append(Verdict(claim, value, TARGET, value < TARGET))
    rows = [row | {"group": name} for name, group in groups.items() for row in group]
    out.parent.mkdir(parents=True, exist_ok=True)
    data = xr.Dataset({key: ("row", [row[key] for row in rows]) for key in rows[0]})
    data.to_netcdf(out.with_suffix(".nc"), engine="h5netcdf")
    figure(groups, grid).savefig(out.with_suffix(".png"), dpi=120)
    report(verdicts, out.with_suffix(".json"), grid=grid, errors=summary, rows=rows, **others)


def print_table(title: str, rows: list[dict]) -> None:
    """Effective rank measured, and every law over measured."""
    table = Table(
        "case", "N", "s^2", "effective rank", "plain law", *(f"{name}, law" for name in MEASURES), title=title
    )
    for row in rows:
        ratios = (f"{row[key]:.3f}" for key in ("plain", *MEASURES))
        table.add_row(row["case"], str(row["tokens"]), f"{row['variance']:.2f}", f"{row['measured']:.1f}", *ratios)
    Console().print(table)


def figure(groups: dict[str, list[dict]], grid: str) -> Figure:
    """Law over measured against s^2/ln N: plain law and law of classes, then the second moments."""
    fig = Figure(figsize=(14, 4.4), layout="constrained")
    panels = (
        ("plain", "effective rank, independent features"),
        ("effective_rank", "effective rank, law of classes"),
        ("stable_rank", "stable rank, law of classes"),
        ("participation_ratio", "participation ratio, law of classes"),
    )
    for ax, (key, title) in zip(fig.subplots(1, 4), panels, strict=True):
        for index, (name, rows) in enumerate(groups.items()):
            share = [row["variance"] / np.log(row["tokens"]) for row in rows]
            ax.plot(share, [row[key] for row in rows], "os^D"[index], ms=5, mfc="none", label=name)
        ax.axhspan(1.0 - TARGET, 1.0 + TARGET, color="0.9", zorder=0)
        ax.axhline(1.0, color="k", lw=0.8)
        ax.set(xlabel="s² / ln N", ylabel="law / measured (dense)", title=title)
        if key == "plain":
            ax.set_yscale("log")
        else:
            ax.set_ylim((0.7, 1.3) if key == "effective_rank" else (0.5, 2.0))
    handles, labels = ax.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    fig.suptitle(f"{grid} grid; grey: 10 per cent")
    return fig


def _clustered(rng: np.random.Generator, n: int, centres: np.ndarray, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """n directions at squared distance `spread` from their centre's span, and the shares of the clusters."""
    label = rng.integers(len(centres), size=n)
    u = rng.standard_normal((n, centres.shape[1]))
    u -= (u * centres[label]).sum(1, keepdims=True) * centres[label]
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    share = np.bincount(label, minlength=len(centres)) / n
    return np.sqrt(1.0 - spread) * centres[label] + np.sqrt(spread) * u, share


def _row(case: str, n: int, c: np.ndarray, measured: dict, law: dict, plain: float) -> dict:
    return {
        "case": case,
        "dim": c.size,
        "tokens": n,
        "variance": float(c.sum()),
        "measured": float(measured["effective_rank"]),
        "plain": float(plain / measured["effective_rank"]),
        **{name: float(law[name] / measured[name]) for name in MEASURES},
    }


if __name__ == "__main__":
    typer.run(main)
