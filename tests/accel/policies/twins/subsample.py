import torch

from tests.accel.policies.twins.key_subset import twin_of


def twin(policy, q, k, v, layout, scale):
    P, (rows, columns) = layout.tokens_per_frame, policy.window

    def first(j):  # token j belongs to the window that `first` opens
        frame, (r, c) = j // P, divmod(j % P - layout.special, layout.grid_w)
        if j % P < layout.special or (policy.keep_first_frame and frame == 0):
            return j
        return frame * P + layout.special + r // rows * rows * layout.grid_w + c // columns * columns

    return twin_of(policy, q, k, v, torch.tensor([first(j) for j in range(layout.tokens)]), scale)
