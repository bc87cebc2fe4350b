"""The statistics of a sample from which the errors of reductions follow."""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy.special import logsumexp, softmax

from meanfield._checks import Array
from meanfield.reductions.sample import AttentionSample, Labels


def statistics(sample: AttentionSample) -> xr.Dataset:
    """Per query, with A the softmax weights, l the logits, o the output and vbar the mean value:

    weighted_spread Q = sum A^2 |v - o|^2, value_spread V_A = sum A |v - o|^2, value_variance sigma_v^2 = mean
    |v - vbar|^2, mean_offset B^2 = |vbar - o|^2, effective_keys N_eff = 1/sum A^2, logit_std s over the keys,
    mean_ratio phi = exp(mean l)/mean exp l, slope |c|^2 with c = Cov(v, l)/s (zero where s = 0), residual
    sigma_v^2 - |c|^2. With `groups`: block_std s_b, the deviation of the group means of l; block_slope
    |Cov(v_b, l_b)/s_b|^2; block_residual and inner_variance, the variance of v between (less the slope) and within
    groups; block_squares sum_b (sum_b A)^2; group_logit_variance, the A-weighted mean of the variance of l within
    groups. With `frames` and `query_frames`: own_mass rho and rest_offset |o_rest - o_own|^2 (zero when
    no other frame has mass). Dims (query,);
    exact, O(n N C).
    """
    weights, logits = sample.weights, sample.logits
    centred = sample.values - sample.mean_value
    offset = sample.outputs - sample.mean_value
    distance = squared_distances(sample)
    variance = np.full(len(weights), (centred**2).sum(1).mean())
    std, slope = _regression(logits, centred, np.full(len(sample.keys), 1.0 / len(sample.keys)))
    shifted = logits - logits.max(1, keepdims=True)
    found = {
        "weighted_spread": (weights**2 * distance).sum(1),
        "value_spread": (weights * distance).sum(1),
        "value_variance": variance,
        "mean_offset": (offset**2).sum(1),
        "effective_keys": 1.0 / (weights**2).sum(1),
        "logit_std": std,
        "mean_ratio": np.minimum(np.exp(shifted.mean(1)) / np.exp(shifted).mean(1), 1.0),
        "slope": slope,
        "residual": np.maximum(variance - slope, 0.0),
    }
    if sample.groups is not None:
        found |= _group_statistics(sample, centred)
    if sample.frames is not None and sample.query_frames is not None:
        own = own_mask(sample)
        mass, other = (weights * own).sum(1), (weights * ~own).sum(1)
        if np.any(mass == 0.0):
            raise ValueError("a query's own frame holds none of its attention mass; give every query's frame keys")
        inside = (weights * own) @ sample.values / mass[:, None]
        rest = (weights * ~own) @ sample.values / np.where(other > 0.0, other, 1.0)[:, None]
        apart = np.where(other > 0.0, ((rest - inside) ** 2).sum(1), 0.0)
        found |= {"own_mass": mass / (mass + other), "rest_offset": apart}
    return xr.Dataset({name: ("query", values) for name, values in found.items()})


def squared_distances(sample: AttentionSample) -> Array:
    """|v_j - o_i|^2, (n, N)."""
    values, outputs = sample.values - sample.mean_value, sample.outputs - sample.mean_value
    squares = (values**2).sum(1) + (outputs**2).sum(1)[:, None] - 2.0 * outputs @ values.T
    return np.maximum(squares, 0.0)


def own_mask(sample: AttentionSample) -> np.ndarray:
    """Whether a key lies in the query's frame, (n, N)."""
    return sample.labels("query_frames")[:, None] == sample.labels("frames")


def membership(labels: Labels) -> Array:
    """Indicator matrix (G, N) of the groups, in the order of their labels."""
    return (np.unique(labels)[:, None] == labels).astype(np.float64)


def group_shares(sample: AttentionSample) -> tuple[Array, Array]:
    """Weights (G, N) of the keys in their group's mean, and ln of the groups' masses (G,)."""
    member = membership(sample.labels("groups")) > 0.0
    log_mass = np.zeros(len(sample.keys)) if sample.log_mass is None else sample.log_mass
    masked = np.where(member, log_mass, -np.inf)
    return softmax(masked, axis=1), logsumexp(masked, axis=1)


def _group_statistics(sample: AttentionSample, centred: Array) -> dict[str, Array]:
    member = membership(sample.labels("groups"))
    size = member.sum(1)
    means = sample.logits @ member.T / size
    block_values = member @ centred / size[:, None]
    share = size / size.sum()
    std, slope = _regression(means, block_values, share)
    between = share @ (block_values**2).sum(1)
    masses = sample.weights @ member.T
    inside = np.maximum((sample.logits**2) @ member.T / size - means**2, 0.0)
    return {
        "block_std": std,
        "block_slope": slope,
        "block_residual": np.maximum(between - slope, 0.0),
        "inner_variance": np.full(len(means), max((centred**2).sum(1).mean() - between, 0.0)),
        "block_squares": (masses**2).sum(1),
        "group_logit_variance": (masses * inside).sum(1),
    }


def _regression(logits: Array, values: Array, share: Array) -> tuple[Array, Array]:
    """Deviation s of the logits and |Cov(v, l)/s|^2, with the keys weighted by `share`; values are centred."""
    centred = logits - (logits @ share)[:, None]
    std = np.sqrt((centred**2) @ share)
    covariance = (centred * share) @ values
    flat = std < 1e-12 * (1.0 + np.abs(logits).max(1))
    return std, np.where(flat, 0.0, (covariance**2).sum(1) / np.where(flat, 1.0, std) ** 2)
