"""The seam: who is intercepted, what comes back, and that nothing is left behind."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.patch import patch, record
from accel.policies import registry
from accel.policies.exact import Exact
from accel.policies.frame import Frame
from accel.policies.subsample import Subsample
from accel.sites import layout_of, left_exact, sites
from tests.accel.stand_ins import LIKE, Plan, TwoFold
from tests.tolerances import COMPILED, FOLDED_SCALE


@dataclass(frozen=True)
class Scaled:
    """The exact output times a factor; calls the very function that is swapped."""

    factor: float
    name: str = "scaled"

    def check(self, layout):
        pass

    def attend(self, q, k, v, layout, *, scale=None, context=None):
        return self.factor * F.scaled_dot_product_attention(q, k, v, scale=scale)


@dataclass(frozen=True)
class Calls:
    """The exact output, after a call of fn(context, q)."""

    fn: Callable
    name: str = "calls"

    def check(self, layout):
        pass

    def attend(self, q, k, v, layout, *, scale=None, context=None):
        self.fn(context, q)
        return F.scaled_dot_product_attention(q, k, v, scale=scale)

    def describe(self):
        return self.name


@pytest.fixture
def model():
    return TwoFold(torch.Generator().manual_seed(0))


@pytest.fixture
def images():
    return torch.rand(1, 3, 3, 12, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def text(applied):
    """The table as it is printed."""
    file = StringIO()
    Console(width=200, file=file).print(applied.table())
    return file.getvalue()


def plan(model, images, *policies):
    return Plan(model.layout(images), policies or (Exact(),) * 3)


def state(model):
    """Everything that hangs on each module, with dictionaries copied: its hooks, and a forward of its own."""
    return [{name: dict(x) if isinstance(x, dict) else x for name, x in vars(m).items()} for m in model.modules()]


def test_an_exact_layer_is_untouched_and_every_other_site_is_hit(model, images):
    dense, before = model(images), state(model)
    untouched = Scaled(2.0, name="exact")  # the name is a promise: the model's own call, not this attend
    with patch(model, plan(model, images, *[untouched] * 3)) as applied:
        assert state(model) == before  # nothing that could cost time
        assert torch.equal(model(images), dense)
    assert applied.forwards == applied.calls == [0, 0, 0]
    with patch(model, plan(model, images, Scaled(1.0), Exact(), Scaled(1.0))) as applied:
        assert torch.equal(model(images), dense)
        model(images)
    assert applied.forwards == applied.calls == [2, 0, 2]
    assert applied.names == tuple(f"aggregator.global_blocks.{i}.attn" for i in range(3))


def test_each_layer_gets_its_own_policy_and_frame_blocks_none(model, images):
    """Scaling a layer's output by a power of two is scaling its projection: bit for bit."""
    factors = (2.0, 0.5, 4.0)
    twin = copy.deepcopy(model)
    for block, factor in zip(twin.aggregator.global_blocks, factors, strict=True):
        block.attn.proj.weight *= factor
    with patch(model, plan(model, images, *map(Scaled, factors))) as applied:
        assert torch.equal(model(images), twin(images))
    assert applied.calls == [1, 1, 1]


def test_the_call_s_own_scale_reaches_the_policy(model, images):
    for block in model.aggregator.global_blocks:
        block.attn.options = {"scale": 0.05}
    dense = model(images)
    with patch(model, plan(model, images, *[Scaled(1.0)] * 3)):
        assert torch.equal(model(images), dense)


def test_record_sees_q_k_v_and_changes_nothing(model, images):
    dense, seen = model(images), {}
    with record(model, lambda context, q, k, v: seen.setdefault(context.layer, (q, k, v))):
        assert torch.equal(model(images), dense)
    assert sorted(seen) == [0, 1, 2]
    q, k, v = seen[2]
    assert q.shape == (1, 2, model.layout(images).tokens, 16)
    out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    last = model.aggregator.global_blocks[2].attn
    before = {}
    handle = last.register_forward_hook(lambda m, args, output: before.update(out=output))
    model(images)
    handle.remove()
    assert torch.equal(last.proj(out), before["out"])


def test_record_folds_the_call_s_scale_into_q(model, images):
    plain, scaled = [], []
    with record(model, lambda context, q, k, v: plain.append(q)):
        model(images)
    for block in model.aggregator.global_blocks:
        block.attn.options = {"scale": 0.1}
    with record(model, lambda context, q, k, v: scaled.append(q)):
        model(images)
    torch.testing.assert_close(scaled[0] * 16**-0.5, plain[0] * 0.1, rtol=FOLDED_SCALE, atol=0)


def test_record_inside_patch_sees_the_keys_before_the_policy(model, images):
    schedule = plan(model, images, *[Subsample(stride=4)] * 3)
    with patch(model, schedule):
        accelerated = model(images)
    raw, under = [], []
    with record(model, lambda context, q, k, v: raw.append(k)):
        model(images)

    def fn(context, q, k, v):
        F.scaled_dot_product_attention(q, k, v)  # must be nobody's site
        under.append(k)

    with patch(model, schedule) as applied, record(model, fn) as recorded:
        assert torch.equal(model(images), accelerated)
    assert applied.calls == recorded.calls == [1, 1, 1]
    assert torch.equal(under[0], raw[0])  # the first layer's input is not yet changed
    assert all(k.shape[2] == model.layout(images).tokens for k in under)


def test_leaving_restores_everything(model, images):
    foreign = model.aggregator.global_blocks[1].attn.register_forward_hook(lambda *args: None)
    before, dense = state(model), model(images)
    with patch(model, plan(model, images, *[Scaled(2.0)] * 3)), record(model, lambda *args: None):
        assert state(model) != before
        assert not torch.equal(model(images), dense)
    assert state(model) == before
    assert torch.equal(model(images), dense)
    foreign.remove()


def test_a_foreign_forward_below_is_put_back_and_one_above_is_kept(model, images):
    dense = model(images)
    below, above = (model.aggregator.global_blocks[i].attn for i in (0, 1))
    own = below.forward
    below.forward = lambda x: own(x)
    foreign = below.forward
    with patch(model, plan(model, images, *[Scaled(2.0)] * 3)):
        patched = above.forward
        above.forward = lambda x: patched(x)
    assert below.forward is foreign
    assert torch.equal(model(images), dense)  # what lies below the foreign forward is the model's own again
    with patch(model, plan(model, images, *[Scaled(2.0)] * 3)) as applied:
        assert not torch.equal(model(images), dense)
    assert applied.calls == [1, 1, 1]
    assert torch.equal(model(images), dense)


def test_contexts_can_be_left_in_any_order(model, images):
    dense, before = model(images), state(model)
    outer, inner, seen = (
        patch(model, plan(model, images, *[Scaled(2.0)] * 3)),
        record(model, lambda *a: seen.append(a)),
        [],
    )
    outer.__enter__(), inner.__enter__()
    outer.__exit__(None, None, None)
    assert torch.equal(model(images), dense) and len(seen) == 3
    inner.__exit__(None, None, None)
    assert state(model) == before


def test_an_exception_inside_a_site_unmarks_it_and_leaving_restores(model, images):
    before, dense = state(model), model(images)
    frame = model.aggregator.frame_blocks[0].attn
    tokens = torch.rand(3, 13, 32, generator=torch.Generator().manual_seed(2))
    plain = frame(tokens)

    def fail(*args):
        raise ValueError("inside the block")

    broken = model.aggregator.global_blocks[1].attn.proj.register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match="inside"):
        with patch(model, plan(model, images, *[Scaled(2.0)] * 3)):
            with pytest.raises(ValueError, match="inside"):
                model(images)
            assert torch.equal(frame(tokens), plain)  # not taken for layer 1
            model(images)
    broken.remove()
    assert state(model) == before
    assert torch.equal(model(images), dense)


def test_the_same_object_can_be_entered_again_but_not_twice_at_once(model, images):
    dense, again = model(images), patch(model, plan(model, images, *[Scaled(2.0)] * 3))
    with again:
        once = model(images)
        with pytest.raises(AccelError, match="already open"):
            with again:
                pass
        assert torch.equal(model(images), once)  # the refusal harmed nothing
    with again as applied:
        assert torch.equal(model(images), once)
    assert applied.calls == [1, 1, 1]
    assert torch.equal(model(images), dense)


def test_nested_patches_and_patch_inside_record_are_refused(model, images):
    schedule = plan(model, images, *[Frame()] * 3)
    with patch(model, schedule), pytest.raises(AccelError, match="inside an open patch"):
        with patch(model, schedule):
            pass
    with record(model, lambda *args: None), pytest.raises(AccelError, match="inside an open record"):
        with patch(model, schedule):
            pass
    other = copy.deepcopy(model)
    with patch(model, schedule), patch(other, schedule):
        assert torch.equal(model(images), other(images))


@pytest.mark.parametrize(
    "options", [{"attn_mask": torch.zeros(39, 39)}, {"dropout_p": 0.1}, {"is_causal": True}, {"enable_gqa": True}]
)
@pytest.mark.parametrize("inside", ["patch", "record"])
def test_a_call_that_is_not_plain_softmax_is_refused(model, images, options, inside):
    model.aggregator.global_blocks[1].attn.options = options
    schedule = plan(model, images, *[Frame()] * 3)
    context = patch(model, schedule) if inside == "patch" else record(model, lambda *args: None)
    with pytest.raises(AccelError, match=f"{next(iter(options))}.*give this layer Exact"), context:
        model(images)


def test_an_exact_layer_keeps_its_mask(model, images):
    mask = torch.zeros(39, 39).masked_fill(torch.ones(39, 39).triu(1).bool(), -torch.inf)
    model.aggregator.global_blocks[1].attn.options = {"attn_mask": mask}
    dense = model(images)
    with patch(model, plan(model, images, Scaled(1.0), Exact(), Scaled(1.0))):
        assert torch.equal(model(images), dense)


def test_wrong_layouts_and_schedules_are_refused(model, images):
    with pytest.raises(AccelError, match="2 policies and the model 3"):
        patch(model, plan(model, images, Exact(), Exact()))
    with pytest.raises(AccelError, match="5 special tokens per frame and the model 1; make the layout by"):
        patch(model, Plan(TokenLayout(3, 5, 3, 4), (Exact(),) * 3))
    wrong = Plan(TokenLayout(2, 1, 3, 4), (Frame(),) * 3)
    with pytest.raises(AccelError, match="N=39 is not frames"), patch(model, wrong):
        model(images)


def test_a_site_that_never_calls_the_function_is_reported(model, images):
    quiet = model.aggregator.global_blocks[1].attn
    quiet.forward = lambda x: x
    with pytest.raises(AccelError, match=r"global_blocks\.1\.attn ran 1 times and never called"):
        with patch(model, plan(model, images, *[Scaled(1.0)] * 3)):
            model(images)
    with patch(model, plan(model, images, *[Scaled(1.0)] * 3)):
        pass  # no forward, no complaint
    with patch(model, plan(model, images)):
        model(images)  # an exact layer may do as it likes


def test_a_site_that_failed_before_its_attention_is_no_complaint(model, images):
    dense, seen = model(images), []

    def fail(*args):
        raise ValueError("before the attention")

    broken = model.aggregator.global_blocks[1].attn.qkv.register_forward_pre_hook(fail)
    with patch(model, plan(model, images, *[Scaled(1.0)] * 3)) as applied:
        with pytest.raises(ValueError, match="before the attention"):
            model(images)
        broken.remove()
        seen.append((list(applied.forwards), list(applied.calls)))
    assert seen == [([1, 0, 0], [1, 0, 0])]
    assert torch.equal(model(images), dense)


def test_a_patched_model_refuses_to_be_copied_or_pickled(model, images):
    with patch(model, plan(model, images, *[Frame()] * 3)):
        for copied in (copy.deepcopy, pickle.dumps):
            with pytest.raises(AccelError, match=r"inside an open patch or record.*leave it first"):
                copied(model)
    assert torch.equal(copy.deepcopy(model)(images), model(images))


def test_a_seam_that_a_foreign_forward_keeps_is_the_model_s_own_after_leaving(model, images):
    site = model.aggregator.global_blocks[1].attn
    with patch(model, plan(model, images, *[Frame()] * 3)):
        inner = site.forward
        site.forward = lambda x: inner(x)
    site.options = {"attn_mask": torch.zeros(39, 39)}  # what no open context would take
    masked = model(images)
    del site.forward
    assert torch.equal(model(images), masked)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda e: type(e).__name__)
def test_a_policy_out_of_memory_is_answered_by_the_model_and_it_shows(model, images, caplog, error):
    def fail(context, q):
        raise error

    with patch(model, plan(model, images, Frame(), Exact(), Frame())):
        expected = model(images)
    with patch(model, plan(model, images, Frame(), Calls(fail, name="greedy"), Frame())) as applied:
        assert torch.equal(model(images), expected)
        assert torch.equal(model(images), expected)
    assert applied.calls == [2, 2, 2]
    reason = (str(error) or "MemoryError").splitlines()[0]
    assert applied.fallbacks == {1: [reason, reason]}
    assert [r.levelname for r in caplog.records] == ["WARNING"] * 2
    assert "aggregator.global_blocks.1.attn: policy 'greedy' ran out of memory" in caplog.text
    rows = text(applied).splitlines()
    assert "exact in 2 of 2 calls" in rows[4] and "as planned" in rows[3]


def test_the_memory_of_a_failed_policy_is_free_before_the_exact_attention_runs(model, images):
    held = []

    def fail(context, q):
        large = q + 1
        held.append(weakref.ref(large))
        raise torch.OutOfMemoryError("no room")

    exact = F.scaled_dot_product_attention
    model.aggregator.global_blocks[0].attn.proj.register_forward_pre_hook(lambda m, args: held.append(held[0]()))
    with patch(model, plan(model, images, Calls(fail), Exact(), Exact())):
        model(images)
    assert held[1] is None and exact is F.scaled_dot_product_attention


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), ValueError("out of memory")], ids=str)
def test_any_other_error_of_a_policy_comes_out(model, images, error):
    def fail(context, q):
        raise error

    before = state(model)
    with pytest.raises(type(error), match=str(error)), patch(model, plan(model, images, *[Calls(fail)] * 3)):
        model(images)
    assert state(model) == before


def test_the_memory_is_shared_by_the_layers_of_one_forward_and_by_no_others(model, images):
    seen = []

    def count(context, q):
        context.memory["layers"] = context.memory.get("layers", 0) + 1
        seen.append((context.layer, context.memory["layers"]))

    with patch(model, plan(model, images, *[Calls(count)] * 3)):
        model(images)
        model(images)
    assert seen == [(0, 1), (1, 2), (2, 3)] * 2
    seen.clear()
    stop = model.aggregator.global_blocks[1].register_forward_pre_hook(lambda *args: 1 / 0)
    with patch(model, plan(model, images, *[Calls(count)] * 3)):
        with pytest.raises(ZeroDivisionError):
            model(images)
        stop.remove()
        model(images)
    assert seen == [(0, 1), (0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize("end", ["whole", "broken off"])
def test_no_tensor_outlives_its_forward_or_the_context(model, images, end):
    kept = []

    def keep(context, q):
        context.memory[context.layer] = q.clone()
        kept.extend(weakref.ref(x) for x in (context.memory[context.layer], context.tokens, q))

    opened = patch(model, plan(model, images, *[Calls(keep)] * 3))
    if end == "whole":
        with opened as applied, record(model, lambda context, q, k, v: kept.append(weakref.ref(k))):
            model(images)
            assert len(kept) == 12 and not any(ref() is not None for ref in kept)
        assert applied.calls == [1, 1, 1]
    else:
        broken = model.aggregator.global_blocks[1].register_forward_pre_hook(lambda *args: 1 / 0)
        with opened:
            try:
                model(images)
            except ZeroDivisionError:
                pass
            assert any(ref() is not None for ref in kept)  # the forward might go on
        broken.remove()
    gc.collect()
    assert kept and not any(ref() is not None for ref in kept)


def build(name):
    model = LIKE[name](torch.Generator().manual_seed(0))
    images = torch.rand(1, 3, 3, 12, 16, generator=torch.Generator().manual_seed(1))
    return model, images, layout_of(model, images), len(sites(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LIKE)
def test_every_policy_runs_on_the_seams_of_every_family_and_leaves_them_as_they_were(name, dtype):
    model, images, layout, depth = build(name)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        dense, before = model(images), state(model)
        with patch(model, Plan(layout, (Exact(),) * depth)):
            assert torch.equal(model(images), dense)
        for cls in registry().values():
            ran = 0
            for policy in cls.examples():
                try:
                    policy.check(layout)
                except AccelError:
                    continue
                with patch(model, Plan(layout, (policy,) * depth)) as applied:
                    out = model(images)
                assert out.isfinite().all() and out.dtype == dense.dtype, policy
                assert applied.calls == [int(policy.name != "exact")] * depth and not applied.fallbacks
                ran += 1
            assert ran, f"no example of {cls.name} can be applied to {layout}"
        assert state(model) == before
        assert torch.equal(model(images), dense)


@pytest.mark.parametrize("name", LIKE)
def test_the_tokens_are_the_normed_input_and_all_kernels_are_allowed(name):
    """The stand-in of Pi3 forbids kernels around its call; a policy must not inherit that."""
    model, images, layout, depth = build(name)
    normed, seen, allowed = [], [], []
    for site in sites(model):
        block = model.get_submodule(site.name.removesuffix(".attn"))
        block.norm1.register_forward_hook(lambda m, args, out: normed.append(out))

    def look(context, q):
        flags = torch.backends.cuda
        allowed.append((flags.flash_sdp_enabled(), flags.mem_efficient_sdp_enabled(), flags.math_sdp_enabled()))
        seen.append(context.tokens)

    before = torch.backends.cuda.flash_sdp_enabled()
    with patch(model, Plan(layout, (Calls(look),) * depth)):
        model(images)
    assert len(seen) == depth and all(a is b for a, b in zip(seen, normed, strict=True))
    assert seen[0].shape == (1, layout.tokens, 32)
    assert allowed == [(True, True, True)] * depth
    assert torch.backends.cuda.flash_sdp_enabled() == before


@pytest.mark.parametrize("name", LIKE)
def test_the_attention_that_is_no_site_stays_and_is_named(name):
    model, images, layout, depth = build(name)
    with patch(model, Plan(layout, (Frame(),) + (Exact(),) * (depth - 1))) as applied:
        assert not any("forward" in vars(model.get_submodule(other)) for other in left_exact(model))
        model(images)
    assert applied.left_exact == left_exact(model)
    assert applied.forwards == applied.calls == [1] + [0] * (depth - 1)
    rows = text(applied)
    assert all(name in rows for name in applied.left_exact)
    assert rows.count("untouched") == depth - 1


def test_a_compiled_block_that_forbids_kernels_is_patched_and_unpatched():
    model, images, layout, depth = build("Pi3")
    schedule, dense = Plan(layout, (Frame(),) * depth), model(images)
    with patch(model, schedule):
        expected = model(images)
    model.get_submodule(sites(model)[-1].name.removesuffix(".attn")).compile(backend="eager")
    for _ in range(2):
        torch.testing.assert_close(model(images), dense, rtol=0, atol=COMPILED)
        with patch(model, schedule) as applied:
            torch.testing.assert_close(model(images), expected, rtol=0, atol=COMPILED)
        assert applied.calls == [1] * depth


def test_a_compiled_block_is_patched_and_unpatched(model, images):
    """Traced before, under two schedules, and after (backend "eager" needs no compiler); the fallback works too."""
    schedules = [plan(model, images, *[Subsample(stride=s)] * 3) for s in (4, 2)]
    dense, eager = model(images), []
    for schedule in schedules:
        with patch(model, schedule):
            eager.append(model(images))
    model.aggregator.global_blocks[1].compile(backend="eager")
    torch.testing.assert_close(model(images), dense, rtol=0, atol=COMPILED)
    for schedule, expected in zip(schedules, eager, strict=True):
        with patch(model, schedule) as applied:
            for _ in range(2):
                torch.testing.assert_close(model(images), expected, rtol=0, atol=COMPILED)
        assert applied.calls == [2, 2, 2]
        assert (expected - dense).abs().max() > 100 * COMPILED
    torch.testing.assert_close(model(images), dense, rtol=0, atol=COMPILED)

    def fail(context, q):
        raise torch.OutOfMemoryError("no room")

    with patch(model, plan(model, images, Exact(), Calls(fail), Exact())) as applied:
        torch.testing.assert_close(model(images), dense, rtol=0, atol=COMPILED)
    assert list(applied.fallbacks) == [1]
    seen = []
    with record(model, lambda context, q, k, v: seen.append(context.layer)):
        torch.testing.assert_close(model(images), dense, rtol=0, atol=COMPILED)
    assert seen == [0, 1, 2]
