"""The battery: every registered policy, on each of its examples, in every dtype.

A new policy is covered once it is imported by accel.policies and has examples(), and a float64 twin in TWINS below.
"""

import json
import math
import random

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from accel.attend import attend, attend_naive
from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.policies import Cost, Exact, Frame, Policy, Subsample, policy_from_dict, registry, subsample
from tests import tolerances

B, H, D = 2, 2, 16
LAYOUT = TokenLayout(frames=4, special=2, grid_h=4, grid_w=5)  # windows of 2 and 3 leave partial ones
BIG = TokenLayout(frames=4, special=5, grid_h=12, grid_w=12)
LAYOUTS = [LAYOUT, TokenLayout(1, 2, 4, 5)]

POLICIES = [policy for cls in registry().values() for policy in cls.examples()]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
every_policy = pytest.mark.parametrize("policy", POLICIES, ids=lambda p: "-".join(map(str, p.to_dict().values())))
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def normal(seed, *shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def qkv(layout=LAYOUT, dtype=torch.float64, batch=B, dim=D):
    """Strided as a model gives them, with correlated q and k, so that a token's own key is among its heaviest."""
    shape = (batch, layout.tokens, H, dim)
    q, k, v = normal(1, *shape), normal(2, *shape), normal(3, *shape)
    return tuple(t.to(dtype).transpose(1, 2) for t in (q, (k + q) / 2**0.5, v + 0.5))


def error(got, want):
    return ((got.double() - want).square().mean() / want.square().mean()).sqrt().item()


# --- float64 twins: the measure of each query, written out ---


def twin_exact(policy, q, k, v, layout, scale):
    return attend_naive(q, k, v, scale=scale)[0]


def twin_frame(policy, q, k, v, layout, scale):
    frame = layout.frame_of()
    weight = (q @ k.mT * scale).exp() * (frame[:, None] == frame[None, :])
    return weight @ v / weight.sum(-1, keepdim=True)


def twin_subsample(policy, q, k, v, layout, scale):
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


TWINS = {"exact": twin_exact, "frame": twin_frame, "subsample": twin_subsample}


@every_policy
@every_dtype
def test_agrees_with_its_float64_twin(policy, dtype):
    assert policy.name in TWINS, f"write the float64 twin of {policy.name!r} into TWINS"
    q, k, v = qkv(dtype=dtype)
    wide = [t.double() for t in (q, k, v)]
    got = policy.attend(q, k, v, LAYOUT, scale=0.3)
    want = TWINS[policy.name](policy, *wide, LAYOUT, 0.3)
    plain = error(scaled_dot_product_attention(q, k, v, scale=0.3), attend_naive(*wide, scale=0.3)[0])
    assert got.dtype == dtype and got.shape == q.shape
    assert error(got, want) <= tolerances.KERNEL_RATIO * plain + tolerances.ROUNDING["torch.float64"]


# --- what every policy promises ---


@every_policy
@every_dtype
def test_budget_one_is_exact_attention(policy, dtype):
    for layout in LAYOUTS:
        q, k, v = qkv(layout, dtype)
        try:
            policy.check(layout)
        except AccelError:
            continue
        if policy.keys_per_query(layout) == layout.tokens:
            torch.testing.assert_close(
                policy.attend(q, k, v, layout, scale=0.3),
                scaled_dot_product_attention(q, k, v, scale=0.3),
                rtol=0,
                atol=tolerances.ROUNDING[str(dtype)],
            )


@pytest.mark.parametrize("cls", registry().values(), ids=registry().keys())
def test_some_example_spends_the_whole_budget(cls):
    """So that the test above says something about each policy."""

    def serves(policy, layout):
        try:
            policy.check(layout)
        except AccelError:
            return False
        return policy.keys_per_query(layout) == layout.tokens

    assert any(serves(policy, layout) for policy in cls.examples() for layout in LAYOUTS)


@every_policy
@every_dtype
def test_constant_values_come_back(policy, dtype):
    q, k, _ = qkv(dtype=dtype)
    v = normal(4, B, H, 1, D, dtype=dtype).expand_as(q)
    out = policy.attend(4 * q, k, v, LAYOUT)
    torch.testing.assert_close(out, v, rtol=0, atol=tolerances.ROUNDING[str(dtype)])


@every_policy
@every_dtype
@pytest.mark.parametrize("sharpness", [1, 20])
def test_output_is_in_the_hull_of_the_values(policy, dtype, sharpness):
    q, k, v = qkv(dtype=dtype)
    out = policy.attend(sharpness * q, k, v, LAYOUT)
    low, high = v.amin(2, keepdim=True), v.amax(2, keepdim=True)
    slack = tolerances.HULL[str(dtype)] * (high - low)
    assert torch.isfinite(out).all() and (out >= low - slack).all() and (out <= high + slack).all()


@every_policy
@every_dtype
def test_special_tokens_as_promised(policy, dtype):
    """Values that mark the specials of frame f on channel f: who receives them?"""
    q, k, v = qkv(dtype=dtype)
    frame, special = LAYOUT.frame_of(), LAYOUT.special_index()
    v = torch.zeros_like(v)
    v[:, :, special, frame[special]] = 1
    received = policy.attend(q, k, v, LAYOUT)[..., : LAYOUT.frames] > 0
    own = frame[:, None] == torch.arange(LAYOUT.frames)
    want = {"all": torch.ones_like(own), "own frame": own}[policy.special_keys]
    assert torch.equal(received, want.expand_as(received))


@every_policy
def test_global_random_state_and_inputs_are_untouched(policy):
    q, k, v = qkv(dtype=torch.float32)
    copies = [t.clone() for t in (q, k, v)]
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    first = policy.attend(q, k, v, LAYOUT)
    after = torch.get_rng_state(), np.random.get_state()[1], random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0]) and (before[1] == after[1]).all() and before[2] == after[2]
    assert all(torch.equal(a, b) for a, b in zip(copies, (q, k, v), strict=True))
    assert torch.equal(first, policy.attend(q, k, v, LAYOUT))


def flash_cpu_flops(q, k, v, *args, out_shape=None, **kwargs):
    """4 Nq Nk D per head; torch has no formula for its CPU kernel."""
    return 4 * math.prod(q[:3]) * k[2] * q[3]


@every_policy
def test_declared_cost_covers_the_counted_operations(policy):
    q, k, v = qkv(BIG, torch.float32, batch=1, dim=64)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={kernel: flash_cpu_flops}) as counter:
        policy.attend(q, k, v, BIG)
    declared = policy.cost(BIG, 64, H)
    low, high = tolerances.COST_RATIO
    assert low <= declared.flops / counter.get_total_flops() <= high
    assert declared.bytes >= 4 * BIG.tokens * 64 * H * 2  # reads q and writes the output
    assert policy.cost(BIG, 64, H, itemsize=2) == Cost(declared.flops, declared.bytes / 2)


@every_policy
def test_no_large_intermediate(policy):
    """Nothing with a side of N and a side of the number of keys: no tensor is larger than a few q."""

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, tuple | list) else [out]:
                if isinstance(t, torch.Tensor):
                    self.elements = max(self.elements, t.untyped_storage().nbytes() // t.element_size())
            return out

    q, k, v = qkv(BIG, torch.float32, batch=1, dim=8)
    with Largest() as largest:
        policy.attend(q, k, v, BIG)
    assert largest.elements <= 2 * q.numel()


@every_policy
def test_json_round_trip(policy):
    again = policy_from_dict(json.loads(json.dumps(policy.to_dict())))
    assert again == policy and type(again) is type(policy) and hash(again) == hash(policy)


@every_policy
def test_description_and_keys(policy):
    line = policy.describe()
    assert line and "\n" not in line and len(line) <= 100
    assert 1 <= policy.keys_per_query(LAYOUT) <= LAYOUT.tokens


@every_policy
def test_wrong_layout_or_shape_is_refused(policy):
    q, k, v = qkv()
    with pytest.raises(AccelError, match="is not frames"):
        policy.attend(q[:, :, 1:], k[:, :, 1:], v[:, :, 1:], LAYOUT)
    with pytest.raises(AccelError, match="one shape"):
        policy.attend(q, k[:, :, 1:], v, LAYOUT)


@every_policy
def test_gradients_flow(policy):
    q, k, v = (t.requires_grad_() for t in qkv())
    policy.attend(q, k, v, LAYOUT).square().sum().backward()
    assert all(torch.isfinite(t.grad).all() and t.grad.abs().sum() > 0 for t in (q, k, v))


@every_policy
def test_autocast_acts_as_on_the_plain_call(policy):
    """Under autocast the model hands over q and k in float32 (they come from a norm) and v in bfloat16."""
    q, k, v = qkv(dtype=torch.float32)
    low = [t.bfloat16() for t in (q, k, v)]
    with torch.autocast("cpu", torch.bfloat16):
        got = policy.attend(q, k, low[2], LAYOUT)
    assert torch.equal(got, policy.attend(*low, LAYOUT))


@every_dtype
def test_duplicated_tokens_with_masses_change_nothing(dtype):
    """The primitive: n equal keys are one key of mass n. (Policies with masses: the next test.)"""
    q, k, v = qkv(dtype=dtype)
    times = torch.arange(LAYOUT.tokens) % 3 + 1
    copies = torch.arange(LAYOUT.tokens).repeat_interleave(times)
    got = attend(q, k, v, log_mass=times.double().log())[0]
    want = attend(q, k[:, :, copies], v[:, :, copies])[0]
    torch.testing.assert_close(got, want, rtol=0, atol=tolerances.ROUNDING[str(dtype)])


@every_dtype
@pytest.mark.parametrize("stride", [2, 4, 6, 9])
def test_mass_is_exact_on_windows_of_equal_patches(stride, dtype):
    policy = Subsample(stride=stride, fill="mass")
    stand_in = policy.select(LAYOUT).stand_in
    q, k, v = (t[:, :, stand_in] for t in qkv(dtype=dtype))
    want = scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(policy.attend(q, k, v, LAYOUT), want, rtol=0, atol=tolerances.ROUNDING[str(dtype)])


# --- one policy at a time ---


def test_registry_and_unknown_names():
    assert {"exact": Exact, "frame": Frame, "subsample": Subsample}.items() <= registry().items()
    with pytest.raises(AccelError, match=r"'sparse' is not one of \['exact'"):
        policy_from_dict({"policy": "sparse"})
    with pytest.raises(AccelError, match="None is not one of"):
        policy_from_dict({})
    with pytest.raises(AccelError, match=r"'subsample' has no field 'ratio'; its fields are \['stride'"):
        policy_from_dict({"policy": "subsample", "ratio": 2})
    assert policy_from_dict({"policy": "subsample", "stride": 6}) == Subsample(window=(2, 3))


def test_two_policies_of_one_name_are_refused():
    cls = type("Again", (Exact,), {"name": "exact"})
    with pytest.raises(AccelError, match="rename"):
        registry()
    cls.name = "again"
    del cls.name  # no longer a policy of its own
    registry()


def test_costs_add_and_scale():
    assert Cost(1, 2) + 2 * Cost(3, 4) == Cost(7, 10)


def test_published_setting():
    policy = Subsample.avggt()
    assert policy == Subsample(stride=4, window=(2, 2), keep_first_frame=True, fill="published")
    kept = policy.select(LAYOUT).kept
    P = LAYOUT.tokens_per_frame
    assert kept[kept < P].tolist() == list(range(P))
    assert (kept[(kept >= P) & (kept < 2 * P)] - P).tolist() == [0, 1, 2, 4, 6, 12, 14, 16]
    for example in Subsample.examples():
        chosen = example.select(LAYOUT)
        assert len(chosen.kept) == example.kept_keys(LAYOUT)
        assert chosen.mass.sum() == LAYOUT.tokens


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (TokenLayout(4, 2, 0, 0), "no patches"),
        (TokenLayout(1, 2, 4, 4), "at least 2 frames"),
        (TokenLayout(4, 2, 4, 2), "window 2x3 is larger"),
    ],
)
def test_subsample_refuses_a_layout(layout, message):
    with pytest.raises(AccelError, match=message):
        Subsample(stride=6).check(layout)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stride": 5}, "stride=5 has no window"),
        ({"stride": 4, "window": (2, 3)}, "disagrees"),
        ({"window": (0, 2)}, "at least 1"),
        ({"window": 3}, "two integers"),
        ({"fill": "mean"}, "fill='mean' is not one of"),
        ({"shrinkage": 0.5}, 'needs fill="shrink"'),
        ({"fill": "shrink", "shrinkage": 1.5}, r"in \[0, 1\]"),
        ({"fill": "shrink", "shrinkage": (0.5, float("nan"))}, r"in \[0, 1\]"),
    ],
)
def test_subsample_refuses_fields(fields, message):
    with pytest.raises(AccelError, match=message):
        Subsample(**fields)


def test_shrinkage_needs_one_value_per_head():
    with pytest.raises(AccelError, match="3 values for 2 heads"):
        Subsample(fill="shrink", shrinkage=(0.1, 0.2, 0.3)).attend(*qkv(), LAYOUT)


@pytest.mark.parametrize("policy", Subsample.examples(), ids=lambda p: f"{p.stride}-{p.fill}")
def test_blocks_of_queries_change_nothing(policy, monkeypatch):
    q, k, v = qkv()
    want = policy.attend(q, k, v, LAYOUT)
    monkeypatch.setattr(subsample, "_BLOCK_ELEMENTS", 7 * B * H * D)
    got = policy.attend(q, k, v, LAYOUT)
    torch.testing.assert_close(got, want, rtol=0, atol=tolerances.ROUNDING["torch.float64"])


def test_fitted_shrinkage_helps_a_nearly_uniform_head():
    """Logits near 0: the exact output is near the mean of v, which shrinkage finds and plain weighting does not."""
    q, k, v = qkv(BIG)
    want = attend_naive(0.05 * q, k, v)[0]
    plain, shrunk = (
        error(Subsample(stride=9, fill=fill).attend(0.05 * q, k, v, BIG), want) for fill in ("mass", "shrink")
    )
    assert shrunk < 0.5 * plain


def test_probe_queries_are_distinct_and_cover_the_places_of_a_frame():
    index = subsample._spread(BIG.tokens, 200)
    assert len(index) == len(index.unique()) > 190 and index.max() < BIG.tokens
    assert len((index % BIG.tokens_per_frame).unique()) > 0.6 * BIG.tokens_per_frame


def test_a_policy_is_abstract():
    with pytest.raises(TypeError):
        Policy()
