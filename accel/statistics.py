"""Statistics of one global-attention layer from its q, k, v, from which errors at any number of frames follow.

For a query i the keys fall into seven classes: itself, and {own frame, frame 0, other frames} x {special, patch}.
Frame 0 is apart because policies may keep it whole and because a model may give it tokens of its own. With

    mass_a = sum_{j in a} A_ij,    o_a = sum_{j in a} A_ij v_j / mass_a

every class-wise reweighting of the keys has the output sum_a w_a o_a, so that its squared error is a quadratic form in
the Gram matrix of the o_a. Sampling noise needs sum_{j in a} A_ij^2 |v_j - c|^2, which the same Gram matrix gives once
the A^2-weighted means of v join it. Where frames are exchangeable, sums over other frames scale with their number, and
nothing else changes: this carries the statistics from a probe of S_0 frames to S.
The rows of a sample of queries are formed, never the N x N matrix. All in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from accel.layout import TokenLayout
from accel.policies import Context, Policy, Subsample

CLASSES = ("self", "own_special", "own_patch", "first_special", "first_patch", "other_special", "other_patch")
"""Classes of keys as seen from a query; "own" is without the query itself, "first" is empty for queries in frame 0."""
PATCH_CLASSES = ("own_patch", "first_patch", "other_patch")
VECTORS = (*CLASSES, *(f"{name}_squared" for name in PATCH_CLASSES), "mean", "patch_mean")
"""What the Gram matrix is of: class outputs, A^2-weighted mean values of the patch classes, the mean value of all
tokens, and that of the patches outside frame 0."""
_TINY = 1e-300


def sample_queries(layout: TokenLayout, count: int, generator: torch.Generator) -> Tensor:
    """Token indices, count // frames (at least one) random ones of each frame, ascending: LongTensor (Q,)."""
    per_frame = min(max(1, count // layout.frames), layout.tokens_per_frame)
    device = generator.device
    chosen = [torch.randperm(layout.tokens_per_frame, generator=generator, device=device) for _ in range(layout.frames)]
    return torch.cat([table[:per_frame].sort().values + s * layout.tokens_per_frame for s, table in enumerate(chosen)])


def key_classes(layout: TokenLayout, queries: Tensor) -> Tensor:
    """The class of every key seen from each query, an index into CLASSES: LongTensor (Q, N)."""
    frame = layout.frame_of(device=queries.device)
    patch = torch.ones(layout.tokens, dtype=torch.long, device=queries.device)
    patch[layout.special_index(device=queries.device)] = 0
    own = frame[queries][:, None] == frame[None]
    group = torch.where(own, 1, torch.where(frame[None] == 0, 3, 5)) + patch
    group[torch.arange(len(queries), device=queries.device), queries] = 0
    return group


def query_statistics(q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, queries: Tensor) -> dict[str, Tensor]:
    """Class statistics of sampled queries; q, k, v (H, N, D), logits q.k D**-0.5. Exact, float64, on q's device.

    mass (H, Q, class)              share of the attention
    squared (H, Q, patch class)     sum of A^2
    square_energy (H, Q, patch class)   sum of A^2 |v|^2 over sum of A^2
    gram (H, Q, vector, vector)     inner products of VECTORS (an empty class has the zero vector)
    patch_logit (H, Q)              mean logit over the patches outside frame 0, minus the log-sum-exp
    """
    queries = queries.to(q.device)
    group = key_classes(layout, queries)
    masks = [(group == a).double() for a in range(len(CLASSES))]
    patches = [CLASSES.index(name) for name in PATCH_CLASSES]
    outside = layout.grid(device=q.device)[1:].flatten()
    if not len(outside):
        outside = torch.arange(layout.tokens, device=q.device)
    found: dict[str, list[Tensor]] = {name: [] for name in ("mass", "squared", "square_energy", "gram", "patch_logit")}
    for head in range(q.shape[0]):
        keys, values = k[head].double(), v[head].double()
        logits = q[head, queries].double() @ keys.mT * q.shape[-1] ** -0.5
        logits = logits - logits.logsumexp(-1, keepdim=True)
        weight = logits.exp()
        mass = torch.stack([(weight * mask).sum(-1) for mask in masks], -1)
        vectors = [(weight * mask) @ values / mass[:, a, None].clamp_min(_TINY) for a, mask in enumerate(masks)]
        square = [weight.square() * masks[a] for a in patches]
        squared = torch.stack([x.sum(-1) for x in square], -1)
        vectors += [x @ values / squared[:, a, None].clamp_min(_TINY) for a, x in enumerate(square)]
        energy = values.square().sum(-1)
        vectors += [values[index].mean(0).expand(len(queries), -1) for index in (slice(None), outside)]
        stacked = torch.stack(vectors, 1)
        found["mass"].append(mass)
        found["squared"].append(squared)
        found["square_energy"].append(torch.stack([x @ energy for x in square], -1) / squared.clamp_min(_TINY))
        found["gram"].append(stacked @ stacked.mT)
        found["patch_logit"].append(logits[:, outside].mean(-1))
    return {name: torch.stack(parts) for name, parts in found.items()}


def key_masses(policy: Subsample, layout: TokenLayout, queries: Tensor) -> Tensor:
    """The mass that `Subsample` with fill "mass" gives every key for each query, (Q, N): 0 for a dropped one."""
    chosen = policy.select(layout, device=queries.device)
    mass = torch.zeros(layout.tokens, dtype=torch.float64, device=queries.device)
    mass[chosen.kept] = chosen.mass.double()
    table = mass.repeat(len(queries), 1)
    rows, own = torch.arange(len(queries), device=queries.device), chosen.dropped[queries].double()
    table[rows, chosen.stand_in[queries]] -= own
    table[rows, queries] += own
    return table


def shared_noise(
    q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, queries: Tensor, options: Sequence[Policy]
) -> float:
    """How far the sampling errors of two frames agree: mean <d_s, d_s'> / mean |d_s|^2, s and s' not the query's own.

    d_s = sum_{j in s} A_ij (m_j - 1)(v_j - o_i) is what frame s adds to the error when its keys get the masses m of a
    grid. The grid is the same in all frames, so these do not average out like independent ones: the squared sum over n
    frames is n (1 + (n - 1) c) |d|^2. q, k, v (H, N, D); mean over the windows of the options; 0 without any. The
    output o is itself an average over few frames, which biases c low: by half at 4 frames on the testbed.
    """
    strides = sorted({p.window for p in options if isinstance(p, Subsample) and p.stride > 1})
    if not strides or layout.frames < 3:
        return 0.0
    queries = queries.to(q.device)
    masses = [key_masses(Subsample(window=w, fill="mass", keep_first_frame=False), layout, queries) for w in strides]
    others = (
        layout.frame_of(device=q.device)[queries][:, None] != torch.arange(layout.frames, device=q.device)
    ).double()
    n, shape = layout.frames - 1, (-1, layout.frames, layout.tokens_per_frame)
    pairs, squares = torch.zeros(len(strides)).double(), torch.zeros(len(strides)).double()
    for head in range(q.shape[0]):
        weight = torch.softmax(q[head, queries].double() @ k[head].double().mT * q.shape[-1] ** -0.5, -1)
        values = v[head].double()
        out = weight @ values
        for i, mass in enumerate(masses):
            change = (weight * (mass - 1)).reshape(shape)
            d = torch.einsum("qsp,spd->qsd", change, values.reshape(*shape[1:], -1))
            d = (d - change.sum(-1)[..., None] * out[:, None]) * others[..., None]
            each, total = d.square().sum((1, 2)), d.sum(1).square().sum(-1)
            pairs[i] += ((total - each) / (n * (n - 1))).sum().cpu()
            squares[i] += (each / n).sum().cpu()
    return float((pairs / squares.clamp_min(_TINY)).mean())


def relative_error(out: Tensor, exact: Tensor) -> float:
    """Relative rms error |out - exact| / |exact| over all elements; 0 when both vanish."""
    error, size = ((x.double().square().sum().sqrt()).item() for x in (out.double() - exact.double(), exact))
    return error / size if size else float(error > 0)


def option_errors(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: TokenLayout,
    options: Sequence[Policy],
    *,
    context: Context | None = None,
) -> list[float]:
    """Relative rms error of the attention output of each option on these q, k, v (B, H, N, D)."""
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    return [
        0.0 if p.name == "exact" else relative_error(p.attend(q, k, v, layout, context=context), exact) for p in options
    ]


def mean_statistics(q: Tensor, k: Tensor) -> dict[str, Tensor]:
    """Per head (H,), from q, k (H, N, D): query_mean = |mean q|^2 / mean |q|^2, key_mean likewise, logit_mean, and
    logit_variance, the variance over the keys averaged over the queries (s^2 of the theory). Exact, O(N D^2)."""
    q, k = q.double(), k.double()
    tokens, dim = q.shape[-2:]
    mean_q, mean_k = q.mean(-2), k.mean(-2)
    second = q.mT @ q / tokens
    covariance = k.mT @ k / tokens - mean_k[..., :, None] * mean_k[..., None, :]
    return {
        "query_mean": mean_q.square().sum(-1) / q.square().sum(-1).mean(-1),
        "key_mean": mean_k.square().sum(-1) / k.square().sum(-1).mean(-1),
        "logit_mean": (mean_q * mean_k).sum(-1) / dim**0.5,
        "logit_variance": ((second * covariance).sum((-1, -2)) / dim).clamp_min(0),
    }


def token_energies(x: Tensor, layout: TokenLayout) -> tuple[float, float, float]:
    """(M, D_b, D_w) of tokens x (N, C): |mean|^2, mean square of frame means about it, of tokens about theirs."""
    frames = x.double().reshape(layout.frames, layout.tokens_per_frame, -1)
    mean = frames.mean((0, 1))
    means = frames.mean(1)
    between = (means - mean).square().sum(-1).mean()
    within = (frames - means[:, None]).square().sum(-1).mean()
    return mean.square().sum().item(), between.item(), within.item()
