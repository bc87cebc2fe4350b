import torch

from accel.attend import attend_naive
from accel.policies import subsample


def twin(policy, q, k, v, layout, scale):
    N, P, (rows, columns) = layout.tokens, layout.tokens_per_frame, policy.window
    mass, kept = torch.zeros(N, N, dtype=torch.float64), torch.zeros(N, dtype=torch.bool)
    for j in range(N):  # token j belongs to the window that `first` opens
        frame, (r, c) = j // P, divmod(j % P - layout.special, layout.grid_w)
        whole = j % P < layout.special or (policy.keep_first_frame and frame == 0)
        first = j if whole else frame * P + layout.special + r // rows * rows * layout.grid_w + c // columns * columns
        kept[j] = first == j
        mass[:, first] = mass[:, first] + 1 if policy.fill in ("mass", "shrink") else 1
        if first != j:
            mass[j, j], mass[j, first] = 1, mass[j, first] - int(policy.fill in ("mass", "shrink"))
    num, den = (mass * (q @ k.mT * scale).exp()) @ v, (mass * (q @ k.mT * scale).exp()).sum(-1, keepdim=True)
    if policy.fill in ("published", "count") and not kept.all():
        for i in range(N):
            rest = ~kept & (torch.arange(N) != i)
            e = (q[:, :, i] * k[:, :, rest].mean(2) * scale).sum(-1, keepdim=True).exp()
            e = e * (rest.sum() if policy.fill == "count" else 1)
            num[:, :, i], den[:, :, i] = num[:, :, i] + e * v[:, :, rest].mean(2), den[:, :, i] + e
    return num / den if policy.fill != "shrink" or kept.all() else shrink_twin(policy, q, k, v, num / den, kept, scale)


def shrink_twin(policy, q, k, v, out, kept, scale):
    centre, lam = v.mean(2, keepdim=True), policy.shrinkage
    if lam is None:
        some = subsample._spread(q.shape[2], subsample._probes(int(kept.sum())))
        x, y = (out - centre)[:, :, some], (attend_naive(q, k, v, scale=scale)[0] - centre)[:, :, some]
        lam = ((x * y).sum((2, 3)) / (x * x).sum((2, 3))).clamp(0, 1)
    return centre + torch.as_tensor(lam, dtype=v.dtype).expand(q.shape[:2])[..., None, None] * (out - centre)
