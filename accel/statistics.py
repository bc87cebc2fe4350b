"""Statistics of one global-attention layer from its q, k, v, from which errors at any number of frames follow.

For a query i the keys fall into seven classes: itself, and {own frame, frame 0, other frames} x {special, patch}.
Frame 0 is apart because policies may keep it whole and because a model may give it tokens of its own. With

    mass_a = sum_{j in a} A_ij,    o_a = sum_{j in a} A_ij v_j / mass_a

every class-wise reweighting of the keys has the output sum_a w_a o_a, so that its squared error is a quadratic form in
the Gram matrix of the o_a. Where frames are exchangeable, sums over other frames scale with their number, and nothing
else changes: this carries the statistics from a probe of S_0 frames to S. What a policy does within the classes is in
`accel.error_terms`.
The rows of a sample of queries are formed, never the N x N matrix. All in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from accel.layout import TokenLayout
from accel.policies import Context, Policy

CLASSES = ("self", "own_special", "own_patch", "first_special", "first_patch", "other_special", "other_patch")
"""Classes of keys as seen from a query; "own" is without the query itself, "first" is empty for queries in frame 0."""
VECTORS = (*CLASSES, "mean", "patch_mean")
"""What the Gram matrix is of: class outputs, the mean value of all tokens, and that of the patches outside frame 0."""
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
    gram (H, Q, vector, vector)     inner products of VECTORS (an empty class has the zero vector)
    patch_logit (H, Q)              mean logit over the patches outside frame 0, minus the log-sum-exp
    """
    queries = queries.to(q.device)
    group = key_classes(layout, queries)
    masks = [(group == a).double() for a in range(len(CLASSES))]
    outside = layout.grid(device=q.device)[1:].flatten()
    if not len(outside):
        outside = torch.arange(layout.tokens, device=q.device)
    found: dict[str, list[Tensor]] = {name: [] for name in ("mass", "gram", "patch_logit")}
    for head in range(q.shape[0]):
        keys, values = k[head].double(), v[head].double()
        logits = q[head, queries].double() @ keys.mT * q.shape[-1] ** -0.5
        logits = logits - logits.logsumexp(-1, keepdim=True)
        weight = logits.exp()
        mass = torch.stack([(weight * mask).sum(-1) for mask in masks], -1)
        vectors = [(weight * mask) @ values / mass[:, a, None].clamp_min(_TINY) for a, mask in enumerate(masks)]
        vectors += [values[index].mean(0).expand(len(queries), -1) for index in (slice(None), outside)]
        stacked = torch.stack(vectors, 1)
        found["mass"].append(mass)
        found["gram"].append(stacked @ stacked.mT)
        found["patch_logit"].append(logits[:, outside].mean(-1))
    return {name: torch.stack(parts) for name, parts in found.items()}


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
