"""Scenes that training never draws: their seeds lie above every (step, rank) seed of `train.py`."""

import torch

HELD_OUT_SEED = 1 << 40


def held_out_generator(index: int) -> torch.Generator:
    """The generator of held-out draw number `index` (below 2^20)."""
    return torch.Generator().manual_seed(HELD_OUT_SEED + index)
