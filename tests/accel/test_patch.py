"""The seam: who is intercepted, what comes back, and that nothing is left behind."""

import copy
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.models.config import VGGTConfig
from accel.models.vggt import VGGT
from accel.patch import patch, record
from accel.policies.exact import Exact
from accel.policies.subsample import Subsample
from accel.sites import sites
from tests.accel.stand_ins import Plan, TwoFold
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


def plan(model, images, *policies):
    return Plan(model.layout(images), policies or (Exact(),) * 3)


def hooks(model):
    """Every hook dictionary of every module, as plain values."""
    kept = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    more = ("_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called")
    return [{name: dict(vars(m)[name]) for name in kept + more} for m in model.modules()]


def test_exact_is_bit_identical_and_every_site_is_hit(model, images):
    dense = model(images)
    with patch(model, plan(model, images)) as applied:
        assert torch.equal(model(images), dense)
        model(images)
    assert applied.forwards == applied.calls == [2, 2, 2]
    untouched = Scaled(2.0, name="exact")  # the name is a promise: the model's own call, not this attend
    with patch(model, plan(model, images, *[untouched] * 3)):
        assert torch.equal(model(images), dense)
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
    before, dense = hooks(model), model(images)
    with patch(model, plan(model, images, *[Scaled(2.0)] * 3)), record(model, lambda *args: None):
        assert hooks(model) != before
        assert not torch.equal(model(images), dense)
    assert hooks(model) == before
    assert torch.equal(model(images), dense)
    foreign.remove()


def test_an_exception_inside_a_site_unmarks_it_and_leaving_restores(model, images):
    before, dense = hooks(model), model(images)
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
    assert hooks(model) == before
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
    schedule = plan(model, images)
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
    context = patch(model, plan(model, images)) if inside == "patch" else record(model, lambda *args: None)
    with pytest.raises(AccelError, match=next(iter(options))), context:
        model(images)


def test_wrong_layouts_and_schedules_are_refused(model, images):
    with pytest.raises(AccelError, match="2 policies and the model 3"):
        patch(model, plan(model, images, Exact(), Exact()))
    wrong = Plan(TokenLayout(2, 1, 3, 4), (Exact(),) * 3)
    with pytest.raises(AccelError, match="N=39 is not frames"), patch(model, wrong):
        model(images)


def test_a_site_that_never_calls_the_function_is_reported(model, images):
    quiet = model.aggregator.global_blocks[1].attn
    quiet.forward = lambda x: x
    with pytest.raises(AccelError, match=r"global_blocks\.1\.attn ran 1 times and never called"):
        with patch(model, plan(model, images)):
            model(images)
    with patch(model, plan(model, images)):
        pass  # no forward, no complaint


def test_sites_of_vggt_and_of_a_foreign_model():
    config = VGGTConfig(
        image_size=28, embed_dim=32, depth=4, num_heads=2, vit_depth=1, vit_heads=2, dpt_layers=(0, 1, 2, 3)
    )
    vggt = VGGT(config)
    found = sites(vggt)
    assert [s.layer for s in found] == [0, 1, 2, 3]
    assert all(vggt.get_submodule(s.name) is s.module for s in found)
    with pytest.raises(AccelError, match=r"class torch\.nn\.modules\.linear\.Linear"):
        sites(torch.nn.Linear(2, 2))


def test_a_compiled_block_is_patched_and_unpatched(model, images):
    """Dynamo guards on the mode: traced before, under two schedules, and after (backend "eager" needs no compiler)."""
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
