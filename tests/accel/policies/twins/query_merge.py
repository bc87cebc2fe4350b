import torch

from tests.accel.policies.twins.merge import first_order, rows


def twin(policy, q, k, v, layout, scale):
    if policy.keep == 1:
        return (q @ k.mT * scale).softmax(-1) @ v
    out = torch.empty_like(q)
    for b in range(q.shape[0]):
        row = rows(torch.cat(list(q[b]), -1), policy.matching, layout)
        member = torch.nn.functional.one_hot(row).double().T
        n = member.sum(1, keepdim=True)
        for h in range(q.shape[1]):

            def attend(some, k=k[b, h], v=v[b, h]):
                return (some @ k.T * scale).softmax(-1) @ v

            q_g = member @ q[b, h] / n
            out[b, h] = first_order(q[b, h], q_g, attend, row, n) if policy.correct else attend(q_g)[row]
    return out
