"""What is peculiar to `Merge`; the battery does the rest."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from accel.errors import AccelError
from accel.layout import TokenLayout
from accel.patch import patch
from accel.policies import Context, Exact, Merge, attention_cost
from tests import tolerances
from tests.accel.policies.inputs import BIG, LAYOUT, B, D, H, error, normal, qkv
from tests.accel.stand_ins import Plan, TwoFold

FIELDS = {"keep": 0.4, "cell": (2, 2)}


def with_duplicates(layout, dtype=torch.float64, batch=B):
    """q, k, v in which every token equals one destination of 2x2 cells."""
    is_destination = Merge(**FIELDS).matching.destinations(layout)
    index = is_destination.nonzero()[:, 0]
    copy = index[torch.arange(layout.tokens) * 7 % len(index)]
    copy[index] = index
    return tuple(x[:, :, copy] for x in qkv(layout, dtype, batch))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"per_head": True}, {"correct": False}, {"metric": "keys"}], ids=str)
def test_masses_make_duplicates_exact(options, dtype):
    q, k, v = with_duplicates(LAYOUT, dtype)
    want = scaled_dot_product_attention(q, k, v)
    got = Merge(**FIELDS, **options).attend(q, k, v, LAYOUT)
    torch.testing.assert_close(got, want, rtol=0, atol=tolerances.ROUNDING[str(dtype)])
    if dtype == torch.float64:
        plain = Merge(**FIELDS, **options | {"mass": False}).attend(q, k, v, LAYOUT)
        assert error(plain, want) > tolerances.WITHOUT_MASS


def test_published_setting():
    policy, layout = Merge.fastvggt(), TokenLayout(10, 5, 28, 37)
    matching = policy.matching
    assert (policy.mass, policy.correct, policy.per_head, policy.channels) == (False, False, False, None)
    destinations = 1041 + 9 * (5 + 14 * 19)
    assert int(matching.destinations(layout).sum()) == destinations
    stride = torch.zeros(layout.tokens, dtype=torch.bool)
    stride[torch.arange(0, 10410, 10)] = True
    assert torch.equal(matching.kept(layout), matching.destinations(layout) | stride)
    assert destinations < policy.kept_tokens(layout) == int(matching.kept(layout).sum()) < destinations + 1041
    assert policy.kept_tokens(layout) / layout.tokens < 0.43  # all sources but the protected are merged


def test_published_metric_is_the_input_tokens():
    q, k, v = qkv()
    tokens = normal(20, B, LAYOUT.tokens, 24)
    policy = Merge.fastvggt()
    groups = policy.groups(q, k, LAYOUT, Context(0, tokens))
    want = policy.matching.groups([tokens.unsqueeze(1)], LAYOUT)
    assert torch.equal(groups.row, want.row) and groups.row.shape == (B, 1, LAYOUT.tokens)
    keys = policy.groups(q, k, LAYOUT, Context(0))
    assert not torch.equal(keys.row, groups.row)
    assert torch.equal(keys.row, policy.matching.groups([k[:, :1], k[:, 1:]], LAYOUT).row)
    means = [groups.merge(x) for x in (q, k, v)]
    want = groups.unmerge(scaled_dot_product_attention(*means))
    got = policy.attend(q, k, v, LAYOUT, context=Context(0, tokens))
    torch.testing.assert_close(got, want, **tolerances.ROUNDING_F64)
    with pytest.raises(AccelError, match="disagree"):
        policy.attend(q, k, v, LAYOUT, context=Context(0, tokens[:, 1:]))


def test_heads_have_their_own_topology():
    q, k, _ = qkv()
    shared, own = (Merge(0.5, per_head=x).groups(q, k, LAYOUT, Context()) for x in (False, True))
    assert shared.row.shape == (B, 1, LAYOUT.tokens) and own.row.shape == (B, H, LAYOUT.tokens)
    assert not torch.equal(own.row[:, 0], own.row[:, 1])


def test_a_topology_is_reused_for_so_many_layers_of_one_forward():
    layers = [qkv(), *(tuple(normal(30 + i, B, H, LAYOUT.tokens, D) for _ in range(2)) for i in range(3))]
    memory, policy = {}, Merge(0.5, reuse=2)
    rows = [policy.groups(*x[:2], LAYOUT, Context(i, None, memory)).row for i, x in enumerate(layers)]
    assert torch.equal(rows[0], rows[1]) and torch.equal(rows[0], rows[2]) and not torch.equal(rows[0], rows[3])
    fresh = Merge(0.5, reuse=1).groups(*layers[1][:2], LAYOUT, Context(1, None, memory)).row
    assert not torch.equal(fresh, rows[1])  # other parameters, other memory
    once, shared = Merge(0.5).cost(BIG, 64, 16), Merge(0.5, reuse=3).cost(BIG, 64, 16)
    assert once.flops - shared.flops == pytest.approx(0.75 * Merge(0.5).matching_cost(BIG, 64, 16).flops)


def test_a_new_forward_forgets_the_topology():
    model = TwoFold(torch.Generator().manual_seed(0))
    images = [torch.rand(1, 3, 3, 16, 16, generator=torch.Generator().manual_seed(i)) for i in (1, 2)]
    layout = model.layout(images[0])

    def run(images, policies):
        with torch.no_grad(), patch(model, Plan(layout, policies)):
            return [model(x) for x in images]

    fields = {"keep": 0.5, "channels": 8}
    reused, fresh = (3 * (Merge(**fields, reuse=n),) for n in (2, 0))
    both = run(images, reused)
    assert torch.equal(both[1], run(images[1:], reused)[0])
    assert not torch.equal(both[1], run(images[1:], fresh)[0])
    first = (Merge(**fields), Exact(), Exact())
    alone = (Merge(**fields, reuse=2), Exact(), Exact())
    assert torch.equal(run(images, first)[1], run(images, alone)[1])


def test_matching_is_cheap_at_500_frames():
    layout = TokenLayout(500, 5, 28, 37)
    dense = attention_cost(layout.tokens, layout.tokens, 64, 16).flops
    assert Merge().matching_cost(layout, 64, 16).flops <= 0.02 * dense
    assert Merge.fastvggt().matching_cost(layout, 64, 16).flops > 0.08 * dense


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (TokenLayout(4, 2, 0, 0), "no patches to merge"),
        (TokenLayout(1, 2, 4, 4), "at least 2 frames"),
        (TokenLayout(4, 2, 1, 4), "cell 2x2 is larger"),
    ],
)
def test_merge_refuses_a_layout(layout, message):
    with pytest.raises(AccelError, match=message):
        Merge.fastvggt().check(layout)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keep": 0}, r"keep=0 must be in \(0, 1\]"),
        ({"keep": True}, "keep=True"),
        ({"keep": float("nan")}, "keep=nan"),
        ({"metric": "values"}, "'values' is not one of"),
        ({"metric": "tokens", "per_head": True}, "metric of each head"),
        ({"channels": 0}, "channels=0"),
        ({"window": 1.5}, "window=1.5"),
        ({"cell": (2, 0)}, "two integers"),
        ({"cell": 2}, "two integers"),
        ({"protect": 1}, r"protect=1 must be in \[0, 1\)"),
        ({"reuse": -1}, "reuse=-1"),
        ({"seed": None}, "seed=None"),
        ({"seed": 2**70}, "seed=11805"),
        ({"protect": "0.1"}, "protect='0.1'"),
        ({"reuse": True}, "reuse=True"),
        ({"mass": "false"}, "merge mass='false' must be true or false"),
        ({"correct": None}, "merge correct=None"),
        ({"per_head": 1}, "merge per_head=1"),
    ],
)
def test_merge_refuses_fields(fields, message):
    with pytest.raises(AccelError, match=message):
        Merge(**fields)
