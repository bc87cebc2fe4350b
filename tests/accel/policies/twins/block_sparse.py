import torch


def twin(policy, q, k, v, layout, scale):
    patches, n, m = policy.patch_order(layout), policy.key_block, policy.query_block
    M, out, weight = len(patches), (q @ k.mT * scale).softmax(-1) @ v, (q @ k.mT * scale).exp()
    groups, rest = patches[: M // n * n].view(-1, n), torch.cat([layout.special_index(), patches[M // n * n :]])
    means, values = k[:, :, groups].mean(3), v[:, :, groups].mean(3)
    spread = k[:, :, groups].var(3, correction=0) * (policy.fill == "cumulant")
    for b, h, start in [(b, h, s) for b in range(len(q)) for h in range(q.shape[1]) for s in range(0, M, m)]:
        rows = patches[start : start + m]
        x, w = q[b, h, rows].mean(0) * scale, weight[b, h, rows]
        mass = (means[b, h] @ x + spread[b, h] @ x**2 / 2).softmax(0)
        kept = torch.tensor(policy.kept_blocks(layout)).expand(q.shape[1])[h]
        if policy.threshold is not None:
            reached = (mass.sort(descending=True).values.cumsum(0) <= policy.threshold + 1e-5).sum()
            kept = min(kept, max(reached, int(policy.floor * len(groups)), 1))
        near, far = mass.argsort(descending=True)[:kept], mass.argsort(descending=True)[kept:]
        j, second = torch.cat([groups[near].flatten(), rest]), (spread[b, h] @ x**2 / 2).exp()
        e = n * (policy.fill != "none") * (q[b, h, rows] @ means[b, h, far].mT * scale).exp() * second[far]
        out[b, h, rows] = (w[:, j] @ v[b, h, j] + e @ values[b, h, far]) / (w[:, j].sum(1) + e.sum(1))[:, None]
    return out
