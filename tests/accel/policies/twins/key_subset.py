"""What the twins of policies with a fixed subset of the keys share.

`first` (Nk,) is the kept row for each row of k, `weight` the tokens in each row, `own` whether query i has key i.
"""

import torch

from accel.attend import attend_naive
from accel.policies import key_subset


def twin_of(policy, q, k, v, first, scale, weight=None, own=None):
    N, weighted, own = len(first), policy.fill in ("mass", "shrink"), policy.own_key if own is None else own
    w, kept = torch.ones(N).double() if weight is None else weight, first == torch.arange(N)
    mass = torch.zeros(q.shape[2], N, dtype=torch.float64)
    for j in range(N):
        mass[:, first[j]] += w[j] if weighted or kept[j] else 0
    for j in [j for j in range(N) if own and not kept[j]]:
        mass[j, j], mass[j, first[j]] = w[j], mass[j, first[j]] - w[j] * weighted
    num, den = (mass * (q @ k.mT * scale).exp()) @ v, (mass * (q @ k.mT * scale).exp()).sum(-1, keepdim=True)
    if policy.fill in ("published", "count") and not kept.all():
        rest = w * ~kept * (1 - torch.eye(N) if own else torch.ones(q.shape[2], 1))
        total = rest.sum(-1, keepdim=True)
        e = ((q * (rest @ k / total)).sum(-1, keepdim=True) * scale).exp() * (total if policy.fill == "count" else 1)
        num, den = num + e * (rest @ v / total), den + e
    if policy.fill != "shrink" or kept.all():
        return num / den
    return shrink_twin(policy, q, k, v, num / den, kept, scale, w)


def shrink_twin(policy, q, k, v, out, kept, scale, w):
    centre, lam = (w @ v / w.sum()).unsqueeze(2), policy.shrinkage
    if lam is None:
        some = key_subset.spread(q.shape[2], key_subset._probes(int(kept.sum())))
        exact = attend_naive(q, k, v, scale=scale, log_mass=w.log())[0]
        x, y = (out - centre)[:, :, some], (exact - centre)[:, :, some]
        lam = ((x * y).sum((2, 3)) / (x * x).sum((2, 3))).clamp(0, 1)
    return centre + torch.as_tensor(lam, dtype=v.dtype).expand(q.shape[:2])[..., None, None] * (out - centre)
