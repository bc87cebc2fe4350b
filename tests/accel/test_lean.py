"""The memory-lean forward: the same bits, fewer bytes, and nothing left behind."""

import pytest
import torch

from accel.errors import AccelError
from accel.lean import layers_read, lean
from accel.patch import patch
from accel.policies import Frame
from accel.sites import layout_of, sites
from experiments.live_bytes import peak_bytes
from tests.accel.stand_ins import LIKE, OfficialLike, Plan
from tests.tolerances import COMPILED


@pytest.fixture
def model():
    return OfficialLike(torch.Generator().manual_seed(0), depth=8)


@pytest.fixture
def images():
    return torch.rand(1, 3, 3, 12, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def test_outputs_are_bit_identical_and_unread_layers_are_never_stored(model, images):
    dense, (full, start) = model(images), model.aggregator(images)
    with lean(model) as kept:
        assert kept == layers_read(model) == (1, 7)
        assert torch.equal(model(images), dense)
        few, lean_start = model.aggregator(images)
    assert start == lean_start and len(few) == len(full)
    for layer, (a, b) in enumerate(zip(few, full, strict=True)):
        assert a is None if layer not in kept else torch.equal(a, b)
    assert "forward" not in vars(model.aggregator)
    assert all(x is not None for x in model.aggregator(images)[0])


def test_the_peak_of_live_bytes_falls_by_the_joins_left_out(model, images):
    join = layout_of(model, images).tokens * 64 * 4
    plain = peak_bytes(model.aggregator, images)
    with lean(model):
        less = peak_bytes(model.aggregator, images)
    # layer 7 is kept and made last: at the peak six joins fewer are alive, less a block's temporaries
    assert plain - less >= 5 * join
    with lean(model, keep=range(8)):
        assert peak_bytes(model.aggregator, images) == plain


def test_the_last_layer_is_kept_for_the_camera_head(model):
    model.depth_head.intermediate_layer_idx = [-6, 3]
    assert layers_read(model) == (2, 3, 7)


def test_it_composes_with_patch_in_either_order(model, images):
    plan = Plan(layout_of(model, images), (Frame(),) * 8)
    with patch(model, plan):
        patched = model(images)
    with patch(model, plan) as applied, lean(model):
        assert torch.equal(model(images), patched)
    assert applied.calls == [1] * 8
    with lean(model), patch(model, plan):
        assert torch.equal(model(images), patched)
    assert not torch.equal(model(images), patched)


def test_the_layers_to_keep_can_be_given(model, images):
    with lean(model, keep=[0, -1]) as kept:
        outputs, _ = model.aggregator(images)
    assert kept == (0, 7)
    assert [i for i, x in enumerate(outputs) if x is not None] == [0, 7]
    with pytest.raises(AccelError, match="keep has layer 8, the model has layers 0 to 7"), lean(model, keep=[8]):
        pass


def test_a_nested_lean_is_refused_and_harms_nothing(model, images):
    dense = model(images)
    with lean(model):
        with pytest.raises(AccelError, match=r"inside an open lean.*keeps layers \(1, 7\)"), lean(model, keep=range(8)):
            pass
        assert torch.equal(model(images), dense)
    assert "forward" not in vars(model.aggregator)


def test_an_exception_and_a_forward_of_one_s_own_are_put_back(model, images):
    own = model.aggregator.forward
    model.aggregator.forward = lambda x: own(x)
    before = model.aggregator.forward
    with pytest.raises(RuntimeError, match="stop"), lean(model):
        raise RuntimeError("stop")
    assert model.aggregator.forward is before


def test_another_forward_under_the_same_names_is_refused(model, images):
    model.aggregator.forward = lambda images: ([], 3)
    with pytest.raises(AccelError, match="joined 0 pairs of outputs for 8 layers"), lean(model):
        model.aggregator(images)


@pytest.mark.parametrize("name", [name for name in LIKE if name != "VGGT"])
def test_models_that_keep_little_already_are_left_alone(name, images):
    other = LIKE[name](torch.Generator().manual_seed(0))
    dense = other(images)
    with lean(other):
        assert not any("forward" in vars(module) for module in other.modules())
        assert torch.equal(other(images), dense)


def test_a_compiled_aggregator_is_lean_inside_and_whole_again_outside(images):
    model = OfficialLike(torch.Generator().manual_seed(0), depth=3)
    dense = model(images)
    model.aggregator.compile(backend="eager")
    torch.testing.assert_close(model(images), dense, rtol=0, atol=COMPILED)
    with lean(model):
        for _ in range(2):
            torch.testing.assert_close(model(images), dense, rtol=0, atol=COMPILED)
        assert [x is not None for x in model.aggregator(images)[0]] == [False, True, True]
    assert all(x is not None for x in model.aggregator(images)[0])


# --- chunks of frames ---


class Wide(torch.nn.Sequential):
    """An MLP so much wider inside that on a dozen tiny frames it, and not the attention, makes the peak."""

    def __init__(self, dim, generator):
        super().__init__(torch.nn.Linear(dim, 40 * dim), torch.nn.GELU(), torch.nn.Linear(40 * dim, dim))
        for weight in self.parameters():
            weight.data = 0.02 * torch.randn(weight.shape, generator=generator)


def with_mlps(name):
    generator = torch.Generator().manual_seed(0)
    model = LIKE[name](generator)
    for block in [m for m in model.modules() if hasattr(m, "mlp")]:
        block.mlp = Wide(32, generator)
    return model


@pytest.mark.parametrize("name", LIKE)
@pytest.mark.parametrize("chunk", [1, 2])
def test_chunks_change_the_outputs_by_rounding_and_less_is_alive(name, chunk):
    model, images = with_mlps(name), torch.rand(1, 12, 3, 12, 16, generator=torch.Generator().manual_seed(1))
    dense, plain = model(images), peak_bytes(model, images)
    with lean(model, keep=range(len(sites(model)))):
        kept_all = peak_bytes(model, images)
    with lean(model, keep=range(len(sites(model))), frames_per_chunk=chunk):
        torch.testing.assert_close(model(images), dense, rtol=0, atol=COMPILED)
        less = peak_bytes(model, images)
    hidden = 40 * layout_of(model, images).tokens * 32 * 4
    assert kept_all == plain and plain - less >= hidden
    assert not any("forward" in vars(module) for module in model.modules()) and "lean_layers" not in vars(model)


def test_frame_blocks_take_so_many_frames_and_their_own_positions(model, images):
    seen = []
    block = model.aggregator.frame_blocks[0]
    plain = block.forward

    def forward(x, pos=None):
        seen.append((len(x), pos[:, 0, 0].tolist()))
        return plain(x)

    block.forward = forward
    positions = torch.arange(3.0)[:, None, None].expand(3, 7, 2)
    x = torch.rand(3, 7, 32, generator=torch.Generator().manual_seed(1))
    whole = plain(x)
    with lean(model, frames_per_chunk=2):
        torch.testing.assert_close(block(x, pos=positions), whole, rtol=0, atol=COMPILED)
    assert seen == [(2, [0.0, 1.0]), (1, [2.0])] and block.forward is forward


def test_chunks_compose_with_patch(model, images):
    plan = Plan(layout_of(model, images), (Frame(),) * 8)
    with patch(model, plan):
        patched = model(images)
    with lean(model, frames_per_chunk=1), patch(model, plan) as applied:
        torch.testing.assert_close(model(images), patched, rtol=0, atol=COMPILED)
    assert applied.calls == [1] * 8


@pytest.mark.parametrize("chunk", [0, -1, 1.5, True])
def test_a_chunk_that_is_no_number_of_frames_is_refused(model, chunk):
    with pytest.raises(AccelError, match="frames_per_chunk="), lean(model, frames_per_chunk=chunk):
        pass
