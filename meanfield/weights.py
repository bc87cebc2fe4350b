"""Parameters of the rank prediction from the weights alone: no probe, no image.

What is assumed is that tokens enter each block as isotropic directions, LN(x) ~ N(0, I_C); trained tokens are not (they
share a mean and span few dimensions), so this is a prior, and a probe is better wherever there is one.

Logits of a head (QK-LayerNorm, no RoPE). x = g_1 u + b_1 with u ~ N(0, I): the projection has mean mu and covariance
Sigma; LayerNorm over the D channels removes the channel mean (P) and divides by sqrt(tr P(Sigma + mu mu^T)P/D), then
weights and biases g, b apply. With queries N(m_q, S_q) and keys N(m_k, S_k),

    s^2 = [tr(S_q S_k) + m_q^T S_k m_q]/D,     d = (tr M)^2/tr M^2,  M = (S_q + m_q m_q^T) S_k,     kappa = s sqrt(d).

Residual gains. T = diag(ls1) W_o W_v diag(g_1): gain a = |T|_F and coherence c = tr T/(sqrt(C) |T|_F) (section 2.2 D:
F = 1 + 2 c a x/r + a^2 x^2/r^2). An MLP adds to each token energy sum_i |column_i|^2 Var gelu(h_i), h_i Gaussian and
independent, and to the common mean |E output|^2; attention biases add to the mean.
Source: docs/theory/prediction.md, notes.md 2.2, 3.5, 3.6.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from numpy.typing import ArrayLike
from scipy.special import ndtr

from meanfield._checks import Array, finite
from meanfield.recursion import Recursion

QUADRATURE = 40
"""Gauss-Hermite nodes of the moments of gelu: exact to 1e-10 for pre-activations of order one."""
START = (0.3, 0.1, 0.6)
"""Shares (m, b, w) of the energy before the first layer, as in the preset "vggt-init": a modelling choice."""
PREFIXES = ("aggregator.frame_blocks", "aggregator.global_blocks")


def weight_fields(arrays: Mapping[str, ArrayLike], *, heads: int) -> dict[str, Any]:
    """The fields of RankParams from arrays keyed by official state-dict names, for `heads` heads per layer.

    Uses aggregator.{frame,global}_blocks.{i}.{norm1, attn.qkv, attn.q_norm, attn.k_norm, attn.proj, ls1.gamma, norm2,
    mlp.fc1, mlp.fc2, ls2.gamma}. The energy before the first layer is that of patch_embed.norm where present, else C.
    Approximate, see the module. ValueError when a weight is missing, not finite, or C is not a multiple of `heads`.
    """
    depths = [sum(f"{prefix}.{i}.norm1.weight" in arrays for i in range(1000)) for prefix in PREFIXES]
    if depths[0] != depths[1] or depths[0] == 0:
        raise ValueError(
            f"{depths[0]} frame and {depths[1]} global blocks; give a state dict with keys such as "
            "aggregator.global_blocks.0.attn.qkv.weight, equally many of both"
        )
    layers = depths[0]
    blocks = [[_Block(arrays, f"{prefix}.{i}", heads) for i in range(layers)] for prefix in PREFIXES]
    channels, dim = blocks[1][0].channels, blocks[1][0].channels // heads
    logits = np.array([block.logits() for block in blocks[1]])
    gains = np.array([[block.gain() for block in row] for row in blocks])
    noise = np.array([[block.noise() for block in row] for row in blocks]).sum(0).mean(0)
    growth = np.polyfit(np.arange(layers), np.log(gains[..., 0]).mean(0), 1)[0] if layers > 1 else 0.0
    first = np.exp(np.log(gains[..., 0]).mean(1) - growth * 0.5 * (layers - 1))
    recursion = Recursion(
        gain_frame=float(first[0]),
        gain_global=float(first[1]),
        coherence=float(np.clip(gains[..., 1].mean(), 0.0, 1.0)),
        noise_mean=float(noise[0]),
        noise_token=float(noise[1]),
        gain_growth=float(growth),
    )
    norm = [arrays.get(f"aggregator.patch_embed.norm.{part}", default) for part, default in
            (("weight", np.ones(channels)), ("bias", np.zeros(channels)))]  # fmt: skip
    energy = float(sum((finite("patch_embed.norm", part) ** 2).sum() for part in norm))
    variance, directions = logits[..., 0], np.clip(logits[..., 1], 2.0, dim)
    return {
        "kappa": np.sqrt(variance * np.round(directions)),
        "head_dim": dim,
        "sphere_dim": np.round(directions),
        "recursion": recursion,
        "start": tuple(energy * share for share in START),
        "token_dim": np.full(layers, float(channels)),
    }


class _Block:
    """The weights of one transformer block, in float64."""

    def __init__(self, arrays: Mapping[str, ArrayLike], name: str, heads: int):
        self.arrays, self.name, self.heads = arrays, name, heads
        self.channels = self["norm1.weight"].size
        if heads < 1 or self.channels % heads:
            raise ValueError(f"heads={heads} does not divide C={self.channels}; give the model's number of heads")
        self.qkv = self["attn.qkv.weight"].reshape(3, heads, -1, self.channels)
        self.qkv_bias = self["attn.qkv.bias"].reshape(3, heads, -1)

    def __getitem__(self, part: str) -> Array:
        key = f"{self.name}.{part}"
        if key not in self.arrays:
            raise ValueError(f"the weights lack {key}; give a whole state dict of a VGGT with QK-normed blocks")
        return finite(key, self.arrays[key])

    def logits(self) -> Array:
        """(s^2, d) of every head, (heads, 2)."""
        out = []
        for head in range(self.heads):
            (m_q, s_q), (_, s_k) = (self._normed(side, head) for side in (0, 1))
            variance = np.trace(s_q @ s_k) + m_q @ s_k @ m_q
            both = (s_q + np.outer(m_q, m_q)) @ s_k
            out.append([variance / m_q.size, np.trace(both) ** 2 / np.trace(both @ both)])
        return np.array(out)

    def _normed(self, side: int, head: int) -> tuple[Array, Array]:
        """Mean and covariance of queries (side 0) or keys (1) after their LayerNorm."""
        weight = self.qkv[side, head] * self["norm1.weight"]
        mean = self.qkv[side, head] @ self["norm1.bias"] + self.qkv_bias[side, head]
        mean, weight = mean - mean.mean(), weight - weight.mean(0)
        scale = np.sqrt(((weight**2).sum() + mean @ mean) / mean.size)
        name = ("q_norm", "k_norm")[side]
        gain = self[f"attn.{name}.weight"] / scale
        weight = gain[:, None] * weight
        return gain * mean + self[f"attn.{name}.bias"], weight @ weight.T

    def _value_map(self) -> Array:
        """W_o W_v with LayerScale on the left, (C, C)."""
        value = self.qkv[2].reshape(self.channels, self.channels)
        return self["ls1.gamma"][:, None] * (self["attn.proj.weight"] @ value)

    def gain(self) -> tuple[float, float]:
        """Gain |T|_F and coherence tr T/(sqrt(C) |T|_F)."""
        total = self._value_map() * self["norm1.weight"]
        norm = float(np.linalg.norm(total))
        return norm, float(np.trace(total)) / (norm * np.sqrt(self.channels))

    def noise(self) -> tuple[float, float]:
        """Energies that the block adds to the common mean and to each token."""
        value_bias = self.qkv_bias[2].ravel()
        bias = self["ls1.gamma"] * (self["attn.proj.weight"] @ value_bias + self["attn.proj.bias"])
        bias = bias + self._value_map() @ self["norm1.bias"]
        up, down = self["mlp.fc1.weight"], self["ls2.gamma"][:, None] * self["mlp.fc2.weight"]
        mean = up @ self["norm2.bias"] + self["mlp.fc1.bias"]
        first, second = _gelu_moments(mean, np.linalg.norm(up * self["norm2.weight"], axis=1))
        output = down @ first + self["ls2.gamma"] * self["mlp.fc2.bias"]
        variance = ((down**2).sum(0) * (second - first**2)).sum()
        return float(bias @ bias + output @ output), float(variance)


def _gelu_moments(mean: Array, deviation: Array) -> tuple[Array, Array]:
    """E gelu(h) and E gelu(h)^2 for Gaussian h."""
    nodes, weights = hermegauss(QUADRATURE)
    h = mean[:, None] + deviation[:, None] * nodes
    value = h * ndtr(h)
    return value @ weights / np.sqrt(2.0 * np.pi), value**2 @ weights / np.sqrt(2.0 * np.pi)
