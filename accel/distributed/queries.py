"""Exact attention of some queries to the keys of all ranks: the queries travel, the keys stay where they are."""

from __future__ import annotations

import torch
from torch import Tensor

from accel.attend import attend, combine
from accel.distributed.ranks import Ranks


def attend_to_all(
    q: Tensor, k: Tensor, v: Tensor, ranks: Ranks, *, log_mass: Tensor | None = None, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """`accel.attend.attend` of this rank's q (B, H, n, D) to the keys of all ranks; k, v, log_mass are its own.

    q passes round a ring; every rank attends to its own keys, and sends outputs and log-normalisers back to the rank of
    the query. A rank with n of all N_q queries passes on N_q - n_next of them, C = H D elements each (n_next: those of
    the rank after it), and sends N_q - n outputs, C + H elements each, back: nothing depends on the number of keys,
    where a ring of keys sends 2 C for each. n may differ from rank to rank, and be 0. Every rank holds N_q outputs.
    """
    counts = ranks.gather(torch.tensor([q.shape[2]], device=q.device), [1] * ranks.size).tolist()
    found = {
        source: attend(queries, k, v, log_mass=log_mass, scale=scale)
        for source, (queries,) in ranks.ring(counts, q.contiguous())
    }
    own = found[ranks.rank]
    out, lse = (
        ranks.exchange([found[rank][i] for rank in range(ranks.size)], [own[i]] * ranks.size) for i in range(len(own))
    )
    joined = out[0], lse[0]
    for part in zip(out[1:], lse[1:], strict=True):
        joined = combine(*joined, *part)
    return joined
