"""The battery: every registered policy, on each of its examples, in every dtype.

A new policy is covered once it is imported by accel.policies and has examples(), and a float64 twin in `twins`.
"""

import importlib
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
from accel.policies import Cost, Policy, attention_cost, base, policy_from_dict, registry
from experiments.live_bytes import peak_bytes
from tests import tolerances
from tests.accel.policies.inputs import BIG, LAYOUT, LAYOUTS, B, D, H, error, normal, qkv

POLICIES = [policy for cls in registry().values() for policy in cls.examples()]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
every_policy = pytest.mark.parametrize("policy", POLICIES, ids=lambda p: "-".join(map(str, p.to_dict().values())))
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@every_policy
@every_dtype
def test_agrees_with_its_float64_twin(policy, dtype):
    twin = importlib.import_module(f"tests.accel.policies.twins.{policy.name}").twin
    q, k, v = qkv(dtype=dtype)
    wide = [t.double() for t in (q, k, v)]
    got = policy.attend(q, k, v, LAYOUT, scale=0.3)
    want = twin(policy, *wide, LAYOUT, 0.3)
    plain = error(scaled_dot_product_attention(q, k, v, scale=0.3), attend_naive(*wide, scale=0.3)[0])
    assert got.dtype == dtype and got.shape == q.shape
    assert error(got, want) <= tolerances.KERNEL_RATIO * plain + tolerances.ROUNDING["torch.float64"]


# --- what every policy promises ---


def spends_everything(policy, layout):
    """All keys for all queries: merged queries see every key too, for fewer operations than exact attention."""
    everything = attention_cost(layout.tokens, layout.tokens, 1, 1)
    return policy.keys_per_query(layout) == layout.tokens and policy.cost(layout, 1, 1).flops >= everything.flops


@every_policy
@every_dtype
def test_budget_one_is_exact_attention(policy, dtype):
    for layout in LAYOUTS:
        q, k, v = qkv(layout, dtype)
        try:
            policy.check(layout)
        except AccelError:
            continue
        if spends_everything(policy, layout):
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
        return spends_everything(policy, layout)

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
def test_no_large_intermediate(policy, monkeypatch):
    """Nothing with a side of N and a side of the number of keys: no tensor is larger than a few q."""
    monkeypatch.setattr(base, "BLOCK_ELEMENTS", BIG.tokens * 8 * H)

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
def test_gradients_are_finite_where_all_tokens_are_one(policy):
    """Differences, energies and variances are zero there (in bfloat16 exactly); a division by them shows in the
    backward pass only."""
    q, k, v = (t[:, :, :1].expand_as(t).clone().requires_grad_() for t in qkv(dtype=torch.bfloat16))
    policy.attend(q, k, v, LAYOUT).square().sum().backward()
    assert all(torch.isfinite(t.grad).all() for t in (q, k, v))


@every_policy
@pytest.mark.parametrize("place", [0, 1, 2])
def test_nan_stays_in_its_batch_and_stops_nothing(policy, place):
    tensors = list(qkv())
    want = policy.attend(*tensors, LAYOUT)
    tensors[place] = tensors[place].clone()
    tensors[place][0, 0, -1] = torch.nan
    got = policy.attend(*tensors, LAYOUT)
    torch.testing.assert_close(got[1], want[1], rtol=0, atol=tolerances.ROUNDING["torch.float64"])


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
    """The primitive: n equal keys are one key of mass n. (Policies with masses: their own tests.)"""
    q, k, v = qkv(dtype=dtype)
    times = torch.arange(LAYOUT.tokens) % 3 + 1
    copies = torch.arange(LAYOUT.tokens).repeat_interleave(times)
    got = attend(q, k, v, log_mass=times.double().log())[0]
    want = attend(q, k[:, :, copies], v[:, :, copies])[0]
    torch.testing.assert_close(got, want, rtol=0, atol=tolerances.ROUNDING[str(dtype)])


@every_policy
@pytest.mark.parametrize("blocks", [1, 6])
def test_declared_workspace_covers_the_counted_bytes(policy, blocks, monkeypatch):
    """Of contiguous q, k, v, as the chunked forward hands them over; whole, and in blocks that must be joined."""
    layout, dim = TokenLayout(12, 3, 9, 12), 32
    monkeypatch.setattr(base, "BLOCK_ELEMENTS", -(-layout.tokens * dim * H // blocks))
    low, high = tolerances.WORKSPACE_RATIO
    for dtype, least in ((torch.float32, 1 / high), (torch.bfloat16, 0)):  # bfloat16: declared for a GPU's copies too
        q, k, v = (normal(i, 1, H, layout.tokens, dim, dtype=dtype) for i in range(3))
        counted = peak_bytes(policy.attend, q, k, v, layout) - q.numel() * q.element_size()
        per_token = 2 * 4 * H * layout.tokens + 32 * layout.tokens  # log-sum-exps; the choice of no key or query
        declared = policy.workspace(layout, dim, H, itemsize=q.element_size())
        assert least * declared - per_token <= counted <= declared / low + per_token


def test_a_policy_is_abstract():
    with pytest.raises(TypeError):
        Policy()
