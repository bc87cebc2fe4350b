"""Singular values and ranks of softmax attention matrices at any N, without forming them.

* Exact, from log-sum-exps L_i(t) = log sum_j exp(t l_ij) and one product:  |A|_F^2 = sum_i exp(L_i(2) - 2 L_i(1)),
  entropy_i = L_i(1) - scale q_i.(A K)_i,  N_eff,i = exp(2 L_i(1) - L_i(2)).
* Top singular values: block Krylov (`accel.krylov`).
* sum f(s) over the rest: stochastic Lanczos quadrature (`accel.krylov`). For f(s) = s, whose kink at zero is what makes
  the quadrature of Roy and Vetterli's rank slow, the Gauss and the Gauss-Radau rule err to opposite sides, in the ratio
  1:-2 when the density of singular values is flat at zero, so that (2 Gauss + Radau)/3 is used. Sum s^2 of the rest is
  known exactly and serves as control variate.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from scipy.special import xlogy
from torch import Tensor, nn

from accel.attend import attend
from accel.errors import AccelError
from accel.krylov import AttentionOperator, quadrature, top_singular_triplets
from accel.patch import record
from accel.policies import Context
from accel.provenance import provenance
from accel.sites import sites
from meanfield.ranks import spectrum_ranks

LONG_NAMES = {
    "singular_value": "singular values of the attention matrix, descending",
    "frobenius": "Frobenius norm of the attention matrix",
    "stable_rank": "stable rank, |A|_F^2 / s_1^2",
    "participation_ratio": "participation ratio, (sum s^2)^2 / sum s^4",
    "effective_rank": "effective rank (Roy and Vetterli), exp entropy of s / sum s",
    "effective_rank_energy": "effective rank of the energies, exp entropy of s^2 / sum s^2",
    "entropy": "mean entropy of the rows",
}
DENSE_UP_TO = 1200
"""method="auto" forms the matrix up to this N: exact, and the faster one there on a CPU core."""
ROW_FORWARDS = 2
"""Attention forwards that `row_statistics` takes."""
NOISE = 8
"""Rounding of the products, in units of eps s_1: singular values are known to about this."""


@dataclass(frozen=True)
class RowStatistics:
    """Exact row statistics of attention matrices: entropy and n_eff (H, N), frobenius (H,)."""

    entropy: Tensor
    n_eff: Tensor
    frobenius: Tensor


def row_statistics(q: Tensor, k: Tensor, *, scale: float | None = None) -> RowStatistics:
    """Row entropies (nats), effective numbers of keys 1/sum_j A_ij^2, and Frobenius norms, in float64.

    q, k are (H, N, D). Exact: two log-sum-exps and one product with V = K.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    q, k = q[None].double(), k[None].double()
    mean_key, lse = attend(q, k, k, scale=scale)
    log_square = attend(q, k, k, scale=2 * scale)[1] - 2 * lse
    entropy = lse - scale * (q * mean_key).sum(-1)
    return RowStatistics(entropy[0], torch.exp(-log_square)[0], torch.exp(log_square).sum(-1).sqrt()[0])


def _entropic(s: np.ndarray) -> np.ndarray:
    """s log s, with 0 log 0 = 0."""
    return xlogy(s, s)


def _ranks(top: np.ndarray, rest: np.ndarray, frobenius2: float) -> np.ndarray:
    """(PR, effective rank, its energy version) from the leading singular values and the sums over the rest.

    `rest` holds sums of (s, s log s, s^2 log s^2, s^4).
    """
    s1 = top.sum() + rest[0]
    s1log = _entropic(top).sum() + rest[1]
    s2log = _entropic(top**2).sum() + rest[2]
    s4 = (top**4).sum() + rest[3]
    return np.array([frobenius2**2 / s4, s1 * math.exp(-s1log / s1), frobenius2 * math.exp(-s2log / frobenius2)])


def _controlled(sums: np.ndarray, known: float | None) -> np.ndarray:
    """Mean of the probes' first four sums, corrected by regression on the fifth, the energy, of known mean."""
    mean, energy = sums[:, :4].mean(0), sums[:, 4]
    centred = energy - energy.mean()
    if known is None or len(energy) < 4 or not centred.any():
        return mean
    return mean + centred @ (sums[:, :4] - mean) / (centred @ centred) * (known - energy.mean())


def _probed(top: np.ndarray, rules: list[np.ndarray], frobenius2: float, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """`_ranks` and standard errors, from sums over the rest (probes, 5) by Gauss, by Radau, and by Gauss with noise.

    The error joins in quadrature the jackknife over probes; a sixth of the distance between Gauss and Radau (the bias
    that their combination leaves was at most a quarter of it, mostly below a tenth); and the rounding of the products.
    """
    known = frobenius2 - (top**2).sum()
    if known < 100 * eps * frobenius2:  # the difference is rounding: no control
        known = None

    def ranks(sums: np.ndarray) -> np.ndarray:
        return _ranks(top, _controlled(sums, known), frobenius2)

    gauss, radau, noisy = rules
    sums = (2 * gauss + radau) / 3
    value, n = ranks(sums), len(sums)
    left_out = np.array([ranks(sums[kept]) for kept in ~np.eye(n, dtype=bool)])
    jackknife = np.sqrt((n - 1) / n * ((left_out - left_out.mean(0)) ** 2).sum(0))
    bias, rounding = (ranks(gauss) - ranks(radau)) / 6, ranks(noisy) - ranks(gauss)
    return value, np.sqrt(jackknife**2 + bias**2 + rounding**2 + (16 * eps * value) ** 2)


def _matrix_free(
    q, k, scale, width, count, iterations, deflate, steps, probes, generator, ranks
) -> tuple[dict[str, np.ndarray], float]:
    """The schema's variables for a few heads, (H,) each and singular_value (H, count); and the cost in forwards."""
    heads, tokens = q.shape[:2]
    operator = AttentionOperator(q, k, scale, width)

    def normal(columns: int) -> Tensor:
        draw = torch.randn(heads, tokens, columns, generator=generator, device=generator.device, dtype=torch.float64)
        return draw.to(q)

    s, v, residual, increment = top_singular_triplets(operator, normal(min(width, tokens)), iterations)
    found = {
        "singular_value": s[:, :count].cpu().numpy(),
        "singular_value_se": increment[:, :count].cpu().numpy(),
        "singular_value_residual": residual[:, :count].double().cpu().numpy(),
    }
    if not ranks:
        return found, operator.forwards
    rows = row_statistics(q, k, scale=scale)
    deflate = min(deflate, s.shape[-1])
    top, frobenius2 = s[:, :deflate].cpu().numpy(), rows.frobenius.square().cpu().numpy()
    values, errors = np.empty((heads, 3)), np.zeros((heads, 3))
    if tokens == deflate:
        values[:] = [_ranks(t, np.zeros(4), f) for t, f in zip(top, frobenius2, strict=True)]
    else:
        gauss, weight, radau, radau_weight = quadrature(
            operator, v[..., :deflate], normal(probes), min(steps, tokens - deflate)
        )
        rules, eps = [], torch.finfo(q.dtype).eps
        noisy = gauss + NOISE * eps * top[:, 0, None, None]
        for nodes, w in ((gauss, weight), (radau, radau_weight), (noisy, weight)):
            functions = (nodes, _entropic(nodes), _entropic(nodes**2), nodes**4, nodes**2)
            rules.append((tokens - deflate) * np.stack([(w * f).sum(-1) for f in functions], -1))
        for h in range(heads):
            values[h], errors[h] = _probed(top[h], [rule[h] for rule in rules], frobenius2[h], eps)
    found["frobenius"] = np.sqrt(frobenius2)
    found["stable_rank"] = frobenius2 / top[:, 0] ** 2
    found["entropy"] = rows.entropy.mean(-1).cpu().numpy()
    for i, name in enumerate(("participation_ratio", "effective_rank", "effective_rank_energy")):
        found[name], found[f"{name}_se"] = values[:, i], errors[:, i]
    return found, operator.forwards + ROW_FORWARDS


def _dense(q: Tensor, k: Tensor, scale: float, count: int) -> dict[str, np.ndarray]:
    """The naive twin: the matrices in float64, all singular values, the definitions."""
    A = torch.softmax(q.double() @ k.double().mT * scale, dim=-1)
    s = torch.linalg.svdvals(A).cpu().numpy()
    return {
        "singular_value": s[:, :count],
        "frobenius": np.linalg.norm(s, axis=-1),
        **spectrum_ranks(s),
        "entropy": -torch.special.xlogy(A, A).sum(-1).mean(-1).cpu().numpy(),
    }


def _heads_at_once(q: Tensor, columns: int) -> int:
    """Heads whose work arrays fit in about 1 GiB (CPU: one head at a time, the kernels use the cores anyway)."""
    if q.device.type == "cpu":
        return 1
    return max(1, min(q.shape[0], 2**30 // (q.shape[1] * columns * q.element_size())))


def attention_spectrum(
    q: Tensor,
    k: Tensor,
    *,
    generator: torch.Generator,
    count: int = 10,
    scale: float | None = None,
    method: str = "matrix-free",
    ranks: bool = True,
    probes: int = 32,
    steps: int = 32,
    iterations: int | None = None,
    deflate: int = 32,
    dtype: torch.dtype = torch.float32,
    advance: Callable[[int], None] | None = None,
) -> xr.Dataset:
    """Spectra of A = softmax(q k^T scale) for each head: the schema's variables over (head, k).

    q, k: (H, N, D), any float dtype, upcast to `dtype` for the products; row statistics, small matrices and method
    "dense" are float64. scale defaults to D**-0.5. `count` is the number of singular values (dimension k).

    "matrix-free": memory O(N (64 (iterations+1) + 2 steps probes)) for a head. Exact to rounding: frobenius, entropy.
    Converged: singular_value and stable_rank. `singular_value_residual` bounds the distance to an exact one, and
    `singular_value_se` is what the last Krylov step added, more than what is left as a rule. Stochastic:
    participation_ratio, effective_rank, effective_rank_energy, with `_se` (probes, and for the ranks the scale of the
    quadrature bias, which at 32 steps was up to 1.2 % of effective_rank at N=2000; and rounding, which in float32
    limits nearly collapsed heads: take dtype=torch.float64 there). attrs `attention_forwards`: the cost of a head in
    units of 4 N^2 D operations, some 80 with ranks (NaN for "dense", which decomposes).

    ranks=False: the singular values alone, from blocks of max(D, 2 count) columns and 4 iterations instead of 5: 11
    forwards for 16 values at D = 64 (22 at D = 16), right within 1e-4 (experiments/spectra_at_scale.py).
    "dense": the N x N matrix in float64, all exact. "auto": dense for N <= 1200, else matrix-free. `advance(heads)` is
    called as heads are finished.
    """
    if q.ndim != 3 or q.shape != k.shape:
        raise AccelError(f"q and k must both be (heads, tokens, dim), got {tuple(q.shape)} and {tuple(k.shape)}")
    heads, tokens, dim = q.shape
    if not (torch.isfinite(q).all() and torch.isfinite(k).all()):
        raise AccelError("q or k holds NaN or infinity; check the model's weights, its input and its precision")
    if method not in ("matrix-free", "dense", "auto"):
        raise AccelError(f'method="{method}" is unknown; use "matrix-free", "dense" or "auto"')
    if not 1 <= count <= tokens:
        raise AccelError(f"{count} singular values asked of a matrix with N={tokens}; ask between 1 and {tokens}")
    if iterations is None:
        iterations = 5 if ranks else 4
    if min(probes, steps) < 2 or iterations < 0 or deflate < 1:
        raise AccelError(f"{probes=}, {steps=}, {iterations=}, {deflate=}: need at least 2, 2, 0 and 1")
    if method == "auto":
        method = "dense" if tokens <= DENSE_UP_TO else "matrix-free"
    scale = dim**-0.5 if scale is None else scale
    width = max(64 if ranks else 1, dim, 2 * count)
    group = _heads_at_once(q, width * (iterations + 4) + 2 * steps * probes * ranks)
    parts, forwards = [], float("nan")
    with torch.no_grad():
        for first in range(0, heads, group):
            qs, ks = (x[first : first + group].detach().to(dtype) for x in (q, k))
            if method == "dense":
                parts.append(_dense(qs, ks, scale, count))
            else:
                part, forwards = _matrix_free(
                    qs, ks, scale, width, count, iterations, deflate, steps, probes, generator, ranks
                )
                parts.append(part)
            if advance:
                advance(qs.shape[0])
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for name in LONG_NAMES.keys() & found.keys():
        found.setdefault(f"{name}_se", np.zeros_like(found[name]))
    found.setdefault("singular_value_residual", np.zeros_like(found["singular_value"]))
    return _dataset(found, method).assign_attrs(attention_forwards=forwards)


def _dataset(found: dict[str, np.ndarray], method: str) -> xr.Dataset:
    data = xr.Dataset({name: (("head", "k")[: value.ndim], value) for name, value in found.items()})
    for name, long_name in LONG_NAMES.items():
        if name not in found:
            continue
        units = "nat" if name == "entropy" else "1"
        data[name].attrs = {"long_name": long_name, "units": units}
        data[f"{name}_se"].attrs = {"long_name": f"standard error of the {name} over probes (0: exact)", "units": units}
    data["singular_value_se"].attrs["long_name"] = "what the last Krylov step added to the singular value (0: exact)"
    data["singular_value_residual"].attrs = {"long_name": "|A v - s u|, distance to an exact one at most", "units": "1"}
    heads, count = found["singular_value"].shape
    data = data.assign_coords(head=np.arange(heads), k=np.arange(count))
    data["head"].attrs = {"long_name": "attention head", "units": "1"}
    data["k"].attrs = {"long_name": "index of the singular value, from the largest", "units": "1"}
    return data.assign_attrs(method=method)


def measure_spectra(
    model: nn.Module,
    images: Tensor,
    *,
    k: int = 10,
    probes: int = 32,
    steps: int = 32,
    generator: torch.Generator,
    method: str = "matrix-free",
    dtype: torch.dtype = torch.float32,
    progress: bool = True,
) -> xr.Dataset:
    """Spectra of every global attention matrix in one forward: the Spectra schema over (layer, head, k).

    images: (1, S, 3, H, W), one scene. The forward runs once; each layer is measured inside its own attention call
    and its q, k are dropped, so that memory does not grow with depth. Inside a `patch` it measures the q, k that the
    patched model forms, before the policy. Accuracy and methods: `attention_spectrum`. The progress bar goes to
    stderr. AccelError for a batch of scenes, NaN in q or k, and a model without known sites.
    """
    if images.ndim != 5 or images.shape[0] != 1:
        raise AccelError(f"images have shape {tuple(images.shape)}; give one scene, (1, frames, 3, height, width)")
    depth = len(sites(model))
    layers: dict[int, xr.Dataset] = {}
    seen = {}
    columns = (TextColumn("spectra, layer x head"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task("spectra", total=None)

        def measure(context: Context, q: Tensor, key: Tensor, value: Tensor) -> None:
            bar.update(task, total=depth * q.shape[1])
            seen.update(tokens=q.shape[2], device=str(q.device), dtype=str(q.dtype).removeprefix("torch."))
            try:
                layers[context.layer] = attention_spectrum(
                    q[0],
                    key[0],
                    generator=generator,
                    count=k,
                    method=method,
                    probes=probes,
                    steps=steps,
                    dtype=dtype,
                    advance=lambda heads: bar.advance(task, heads),
                )
            except AccelError as error:
                raise AccelError(f"layer {context.layer}: {error}") from error

        with torch.no_grad(), record(model, measure):
            model(images)
    order = sorted(layers)
    data = xr.concat([layers[layer] for layer in order], dim="layer").assign_coords(layer=order)
    data["layer"].attrs = {"long_name": "global-attention layer", "units": "1"}
    for name in data.data_vars:
        data[name] = data[name].transpose("layer", "head", ...)
    origin = provenance(device=seen["device"], dtype=dtype, seed=generator.initial_seed())
    return data.assign_attrs(
        tokens=seen["tokens"], frames=images.shape[1], probes=probes, model_dtype=seen["dtype"], **origin
    )
