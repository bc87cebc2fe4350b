"""Layouts and tensors on which the policies are tested."""

import torch

from accel.layout import TokenLayout

B, H, D = 2, 2, 16
LAYOUT = TokenLayout(frames=4, special=2, grid_h=4, grid_w=5)  # windows of 2 and 3 leave partial ones
BIG = TokenLayout(frames=4, special=5, grid_h=12, grid_w=12)
LAYOUTS = [LAYOUT, TokenLayout(1, 2, 4, 5)]


def normal(seed, *shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def qkv(layout=LAYOUT, dtype=torch.float64, batch=B, dim=D):
    """Strided as a model gives them, with correlated q and k, so that a token's own key is among its heaviest."""
    shape = (batch, layout.tokens, H, dim)
    q, k, v = normal(1, *shape), normal(2, *shape), normal(3, *shape)
    return tuple(t.to(dtype).transpose(1, 2) for t in (q, (k + q) / 2**0.5, v + 0.5))


def error(got, want):
    return ((got.double() - want).square().mean() / want.square().mean()).sqrt().item()
