"""Claim: closed populations and the law of classes give the effective rank of softmax attention within 10 per cent.

`python -m experiments.gaussian_spectra [--out experiments/results/gaussian_spectra]`. Dense SVD against the plain
finite-N law and against the law of classes, for Gaussian queries and keys (equal and unequal covariance), clusters of
directions, queries with a mean (sinks) and content under RoPE. One draw each.
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

from experiments.verdict import Verdict, report
from meanfield.closed_forms import gaussian_qk_ranks
from meanfield.finite_n import PopulationLaw, sphere_ranks
from meanfield.gaussian_spectrum import gaussian_ranks, geometric_population
from meanfield.mixtures import cluster_law
from meanfield.ranks import effective_rank, spectrum_ranks
from meanfield.rope import averaged_covariance, rotate

TARGET = 0.1
FRACTIONS = (0.1, 0.4, 0.7, 1.0)
"""Logit variance in units of ln(N)/2."""


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


def measure_gaussian(rng: np.random.Generator, tokens: list[int], dims: tuple[int, ...]) -> list[dict]:
    """Rows for equal covariances."""
    rows = []
    for n, dim in track([(n, dim) for n in tokens for dim in dims], "equal c"):
        for fraction in FRACTIONS if n < 4000 else (0.5,):
            c = np.full(dim, fraction * 0.5 * np.log(n) / dim)
            measured = spectrum_ranks(singular_values(gaussian_attention(rng, n, c)))
            law = gaussian_ranks(n, c)
            rows.append(_row(f"D={dim}", n, c, measured, law, plain_rank(c, n)))
    return rows


def measure_unequal(rng: np.random.Generator, n: int) -> list[dict]:
    """Rows for unequal covariances."""
    shapes = {
        "0.8^a, D=16": 0.8 ** np.arange(16),
        "1/a, D=32": 1.0 / np.arange(1, 33),
        "a^-1/2, D=64": np.arange(1, 65) ** -0.5,
        "4 of 32 sixfold": np.where(np.arange(32) < 4, 6.0, 1.0),
    }
    rows = []
    for (name, shape), variance in track([(s, v) for s in shapes.items() for v in (0.3, 1.0, 2.0)], "unequal c"):
        c = variance * shape / shape.sum()
        measured = spectrum_ranks(singular_values(gaussian_attention(rng, n, c)))
        rows.append(_row(name, n, c, measured, gaussian_ranks(n, c), plain_rank(c, n)))
    return rows


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


def measure_sinks(rng: np.random.Generator, n: int) -> list[tuple[float, float, float]]:
    """(|m|^2, measured, closed) leading singular values for D = 4, c = .1 and a query mean of growing length."""
    c, out = np.full(4, 0.1), []
    for square in (0.0, 0.25, 0.5, 1.0, 1.5, 2.0):
        mean = np.zeros(4)
        mean[0] = np.sqrt(square)
        s = singular_values(gaussian_attention(rng, n, c, mean))
        out.append((square, float(s[0]), float(gaussian_qk_ranks(c, mean)["leading_singular_value"])))
    return out


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
    tokens: Annotated[list[int] | None, typer.Option(help="Numbers of tokens; 500 if not given.")] = None,
    out: Annotated[Path, typer.Option(help="Prefix of the .json, .nc and .png files.")] = Path(
        "experiments/results/gaussian_spectra"
    ),
) -> None:
    """Print measured and predicted effective ranks and write the numbers."""
    rng = np.random.default_rng(0)
    tokens = tokens or [500]
    groups = {
        "equal covariance, D = 8 to 64": measure_gaussian(rng, tokens, (8, 16, 32, 64)),
        "equal covariance, D = 3, 4": measure_gaussian(rng, [n for n in tokens if n < 4000], (3, 4)),
        "unequal covariance": measure_unequal(rng, tokens[0]),
        "clusters": measure_clusters(rng, tokens[0]),
    }
    sinks, rope = measure_sinks(rng, 2000), measure_rope(rng, tokens[0])
    for title, rows in groups.items():
        table = Table(
            "case", "N", "s^2", "measured", "plain law / measured", "new law / measured", "SR ratio", title=title
        )
        for row in rows:
            cells = (row["plain"] / row["measured"], row["law"] / row["measured"], row["stable_ratio"])
            table.add_row(
                row["case"],
                str(row["tokens"]),
                f"{row['variance']:.2f}",
                f"{row['measured']:.1f}",
                *(f"{x:.3f}" for x in cells),
            )
        Console().print(table)
    print("sinks, |m|^2: measured, closed s_1:", "; ".join(f"{m:g}: {a:.3f}, {b:.3f}" for m, a, b in sinks))
    print("RoPE:", ", ".join(f"{name} {value:.1f}" for name, value in rope.items()))
    worst = {name: max(abs(row["law"] / row["measured"] - 1.0) for row in rows) for name, rows in groups.items()}
    worst["sinks with |m|^2 up to 1 (s_1)"] = max(abs(b / a - 1.0) for m, a, b in sinks if m <= 1.0)
    worst["RoPE, uniform content"] = abs(rope["uniform law"] / rope["uniform with"] - 1.0)
    worst["RoPE, anisotropic content, averaged covariance"] = abs(
        rope["anisotropic with law"] / rope["anisotropic with"] - 1.0
    )
    verdicts = [Verdict(f"largest relative error, {name}", v, TARGET, v < TARGET) for name, v in worst.items()]
    rows = [row | {"group": name} for name, group in groups.items() for row in group]
    out.parent.mkdir(parents=True, exist_ok=True)
    data = xr.Dataset({key: ("row", [row[key] for row in rows]) for key in rows[0]})
    data.to_netcdf(out.with_suffix(".nc"), engine="h5netcdf")
    figure(groups, sinks).savefig(out.with_suffix(".png"), dpi=120)
    report(verdicts, out.with_suffix(".json"), rows=rows, sinks=sinks, rope=rope)


def figure(groups: dict[str, list[dict]], sinks: list[tuple[float, float, float]]) -> Figure:
    """Predicted over measured effective rank against the measured one, and the leading singular value of a sink."""
    fig = Figure(figsize=(12, 4.2), layout="constrained")
    left, middle, right = fig.subplots(1, 3)
    for index, (name, rows) in enumerate(groups.items()):
        measured = np.array([row["measured"] for row in rows])
        for ax, key in ((left, "plain"), (middle, "law")):
            ax.semilogx(measured, [row[key] / row["measured"] for row in rows], "os^D"[index], ms=5, label=name)
    for ax, title in ((left, "independent features (clusters: uniform sphere)"), (middle, "law of classes")):
        ax.axhspan(1.0 - TARGET, 1.0 + TARGET, color="0.9")
        ax.axhline(1.0, color="k", lw=0.8)
        ax.set(xlabel="measured effective rank (dense SVD)", ylabel="predicted / measured", title=title)
    left.set_yscale("log")
    middle.set_ylim(0.7, 1.3)
    middle.legend(fontsize=7)
    square, measured, closed = np.array(sinks).T
    right.semilogy(square, measured, "ko", label="dense SVD, N = 2000")
    right.semilogy(square, closed, "k-", label="closed form, N = infinity")
    right.set(xlabel="squared query mean |m|^2", ylabel="leading singular value", title="sink: D = 4, c = 0.1")
    right.legend(fontsize=7)
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
        "tokens": n,
        "variance": float(c.sum()),
        "measured": float(measured["effective_rank"]),
        "law": float(law["effective_rank"]),
        "plain": float(plain),
        "stable_ratio": float(law["stable_rank"] / measured["stable_rank"]),
    }


if __name__ == "__main__":
    typer.run(main)
