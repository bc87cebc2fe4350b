import torch

from tests.accel.policies.twins.key_subset import twin_of


def twin(policy, q, k, v, layout, scale):
    P, r = layout.tokens_per_frame, policy.stride
    kept = list(range(0, layout.frames, r))

    def stand_in(j):
        frame, place = divmod(j, P)
        if place < layout.special or frame in kept:
            return j
        return min(kept[1:], key=lambda f: (abs(f - frame), f)) * P + place

    return twin_of(policy, q, k, v, torch.tensor([stand_in(j) for j in range(layout.tokens)]), scale)
