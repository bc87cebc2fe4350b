import torch

from tests.accel.policies.twins.key_subset import twin_of


def twin(policy, q, k, v, layout, scale):
    P, t, n = layout.tokens_per_frame, policy.tile, policy.keep

    def stand_in(j):
        frame, place = divmod(j, P)
        if place < layout.special or frame == 0:
            return j
        r, c = divmod(place - layout.special, layout.grid_w)
        rows = [x for x in range(layout.grid_h) if (x + frame // t) % t < n]
        columns = [x for x in range(layout.grid_w) if (x + frame) % t < n]
        row, column = (min(kept, key=lambda x, i=i: (abs(x - i), x)) for kept, i in ((rows, r), (columns, c)))
        return frame * P + layout.special + row * layout.grid_w + column

    return twin_of(policy, q, k, v, torch.tensor([stand_in(j) for j in range(layout.tokens)]), scale)
