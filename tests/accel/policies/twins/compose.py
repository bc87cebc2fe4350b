import torch

from accel.attend import attend_naive
from accel.policies import Context, Merge
from accel.policies.matching import restore
from tests.accel.policies.twins.key_subset import twin_of


def twin(policy, q, k, v, layout, scale):
    merge, subset = policy.policies
    if merge.keep == 1 or subset.kept_keys(layout) == layout.tokens:
        return torch.softmax(q @ k.mT * scale, -1) @ v
    on_keys = isinstance(merge, Merge)
    groups = merge.groups(q, k, layout, Context()) if on_keys else merge.groups(q, layout)
    rows, keys = groups.merge(q), [groups.merge(k), groups.merge(v)] if on_keys else [k, v]
    _, _, first, dropped = subset.select(layout)
    pieces = []
    for b, h in [(b, h) for b in range(q.shape[0]) for h in range(q.shape[1])]:
        row, rep = (x[min(b, len(x) - 1), min(h, x.shape[1] - 1)].tolist() for x in (groups.row, groups.representative))
        x, y, z = (t[b : b + 1, h : h + 1] for t in (rows, *keys))
        stand_in = first
        if on_keys:
            kept = [g for g, token in enumerate(rep) if not dropped[token]]
            nearest = [max([g for g in kept if g <= i], default=kept[0]) for i in range(len(rep))]
            stand_in = [i if i in kept else row[first[t]] for i, t in enumerate(rep)]
            stand_in = torch.tensor([j if j in kept else nearest[i] for i, j in enumerate(stand_in)])
        weight = torch.bincount(torch.tensor(row)) if on_keys and merge.mass else torch.ones(len(stand_in))
        pieces.append(twin_of(subset, x, y, z, stand_in, scale, weight.double(), subset.own_key and on_keys))
    out = torch.cat(pieces).reshape(rows.shape)
    if not merge.correct:
        return groups.unmerge(out)
    mass = groups.mass.double().log() if on_keys else None
    return restore(groups, q, rows, out, lambda some: attend_naive(some, *keys, log_mass=mass, scale=scale)[0])
