import torch

from accel.policies.matching import probes, spread


def twin(policy, q, k, v, layout, scale):
    out, B, H = torch.empty_like(q), *q.shape[:2]
    if policy.keep == 1:
        return (q @ k.mT * scale).softmax(-1) @ v
    for b in range(B):
        for h in range(H):
            heads = [h] if policy.per_head else range(H)
            parts = [k[b, i] for i in heads]
            if policy.metric == "queries and keys":
                parts = [q[b, i] for i in heads] + parts
            row = rows(torch.cat(parts, -1), policy.matching, layout)
            member = torch.nn.functional.one_hot(row).double().T
            n = member.sum(1, keepdim=True)
            q_g, k_g, v_g = (member @ x[b, h] / n for x in (q, k, v))

            def attend(some, k_g=k_g, v_g=v_g, mass=n[:, 0] if policy.mass else 1):
                return (lambda w: w @ v_g / w.sum(1, keepdim=True))(mass * (some @ k_g.T * scale).exp())

            out[b, h] = first_order(q[b, h], q_g, attend, row, n) if policy.correct else attend(q_g)[row]
    return out


def rows(x, matching, layout):
    """The group of each token, from its features (N, F)."""
    destination, kept, frame = matching.destinations(layout), matching.kept(layout), layout.frame_of()
    if matching.channels is not None and matching.channels < x.shape[1]:
        generator = torch.Generator().manual_seed(matching.seed)
        basis = torch.randn(x.shape[1], matching.channels, generator=generator, dtype=torch.float64)
        for _ in range(2):
            basis = torch.linalg.qr(x.T @ x @ basis).Q
        x = x @ basis
    x = x / x.norm(dim=1, keepdim=True)
    window = frame // (matching.window or layout.frames)
    near = (window[:, None] == window) | ((frame == 0) & matching.first_frame)
    best, joins = (x @ x.T).masked_fill(~(near & destination), -2).max(1)
    worst = best.masked_fill(kept, 2).argsort()[: matching.rows(layout) - int(kept.sum())]
    own = torch.cat([kept.nonzero()[:, 0], worst]).sort().values
    joins[own] = own
    return torch.searchsorted(own, joins)


def first_order(q, q_g, attend, row, n):
    """The outputs of the rows, carried to the tokens by a regression whose step is fitted on some queries."""
    out = attend(q_g)
    z, y = (x - (n * x).sum(0) / n.sum() for x in (q_g, out))
    gram = z.T @ (n * z)
    ridge = 0.1 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    slope = torch.linalg.solve(gram + ridge, z.T @ (n * y))
    moved, some = (q - q_g[row]) @ slope, spread(len(q), probes(len(out)))
    step = (moved[some] * (attend(q[some]) - out[row[some]])).sum() / moved[some].square().sum()
    return (out[row] + step.clamp(0, 1) * moved).clamp(out.amin(0), out.amax(0))
