"""Merging on 2 and 4 ranks: the groups and outputs of one process, in fewer bytes than exact attention."""

from functools import cache

import pytest
import torch

from accel.distributed import Ranks, Shard, sharded_attend
from accel.distributed.attention import head_shares
from accel.distributed.merge import Match
from accel.layout import TokenLayout
from accel.policies import Context, Exact, Merge
from accel.policies.matching import Matching, probes, spread
from tests import tolerances
from tests.accel.distributed.processes import run
from tests.accel.distributed.sharing import UNEVEN, in_one_process, shared_out
from tests.accel.policies.inputs import normal

POLICIES = [*Merge.examples(), Merge(0.5, window=3), Merge(0.5, reuse=2)]
LONG = TokenLayout(frames=7, special=5, grid_h=16, grid_w=20)
HEADS, DIM = 4, 32


@cache
def found(size, dtype):
    return [out for out, _ in shared_out(size, POLICIES, dtype)]


@pytest.mark.parametrize("size", [2, 4])  # 4: more ranks than heads
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("i", range(len(POLICIES)))
def test_equals_one_process(i, dtype, size):
    out, want = found(size, dtype)[i], in_one_process(POLICIES[i], dtype)
    assert out.dtype == dtype
    torch.testing.assert_close(out, want, rtol=0, atol=tolerances.ROUNDING[str(dtype)])


MATCHINGS = [
    Matching(0.35, channels=8),
    Matching(0.5, cell=(2, 3), protect=0.1),
    Matching(0.4, window=3, channels=8),  # windows that the ranks cut
    Matching(0.4, window=3, first_frame=False),
    Matching(0.5, per_head=True, channels=4),
]


def features(dtype):
    return [normal(seed, 2, 3, UNEVEN.tokens, 12, dtype=dtype) for seed in (1, 2)]


def matched_on_a_rank(dtype):
    ranks = Ranks()
    shard = Shard(UNEVEN, ranks.rank, ranks.size)
    own = [x[:, :, shard.own] for x in features(dtype)]
    return [Match(shard, ranks)(matching, own, UNEVEN) for matching in MATCHINGS]


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_every_rank_knows_the_groups_of_one_process(dtype, size):
    for groups in run(size, matched_on_a_rank, dtype):
        for matching, got in zip(MATCHINGS, groups, strict=True):
            want = matching.groups(features(dtype), UNEVEN)
            assert torch.equal(got.row, want.row) and torch.equal(got.mass, want.mass)
            assert torch.equal(got.representative, want.representative)


LAYERS = 3


def layer(i):
    q, k, v = (normal(10 * i + j, 2, 2, UNEVEN.tokens, 16) for j in range(3))
    return q, k, v, normal(10 * i + 3, 2, UNEVEN.tokens, 24)


def layers_on_a_rank(policies):
    ranks, found = Ranks(), []
    shard = Shard(UNEVEN, ranks.rank, ranks.size)
    for policy in policies:
        memory = {}
        for i in range(LAYERS):
            q, k, v, tokens = layer(i)
            own, before = [x[:, :, shard.own] for x in (q, k, v)], ranks.sent
            context = Context(i, tokens[:, shard.own], memory)
            out = sharded_attend(policy, *own, shard, ranks, scale=0.3, context=context)
            found.append((out, ranks.sent - before))
    return found


@pytest.mark.parametrize("size", [2, 4])
def test_input_tokens_are_matched_and_topologies_reused(size):
    """The topology of layer 0 serves layer 1, which then sends no features; layer 2 matches again."""
    policies = [Merge(0.5, metric="tokens", channels=8), Merge(0.5, metric="tokens", channels=None, reuse=1)]
    ranks = run(size, layers_on_a_rank, policies)
    for p, policy in enumerate(policies):
        memory = {}
        for i in range(LAYERS):
            q, k, v, tokens = layer(i)
            want = policy.attend(q, k, v, UNEVEN, scale=0.3, context=Context(i, tokens, memory))
            got = torch.cat([rank[LAYERS * p + i][0] for rank in ranks], 2)
            torch.testing.assert_close(got, want, rtol=0, atol=tolerances.ROUNDING["torch.float64"])
    for rank in ranks:
        matched, reused, again = (sent for _, sent in rank[LAYERS:])
        assert reused < min(matched, again)


def scene(dtype=torch.float32):
    """Frames that show the same things, one channel more than noise: (1, HEADS, N, DIM)."""
    same = [normal(seed, 1, HEADS, LONG.tokens_per_frame, DIM).repeat(1, 1, LONG.frames, 1) for seed in (1, 2, 3)]
    return [(x + 0.5 * normal(9 + i, *x.shape)).to(dtype) for i, x in enumerate(same)]


def long_on_a_rank(policies):
    ranks = Ranks()
    shard = Shard(LONG, ranks.rank, ranks.size)
    own, found = [x[:, :, shard.own] for x in scene()], []
    for policy in policies:
        before = ranks.sent
        sharded_attend(policy, *own, shard, ranks, scale=DIM**-0.5, context=Context())
        found.append(ranks.sent - before)
    return found


@cache
def member_rows(policy, size):
    """T of every rank: the rows that its tokens are members of."""
    q, k, _ = scene()
    row = policy.groups(q, k, LONG, Context()).row[0, 0]
    return [len(part.unique()) for part in row.split(Shard(LONG, 0, size).tokens)]


@pytest.mark.parametrize("size", [2, 4])
def test_what_is_sent_is_what_the_module_says_and_less_than_exact(size):
    policies = [Merge(), Merge(0.35, correct=False, metric="keys"), Merge.fastvggt(), Exact()]
    ranks = run(size, long_on_a_rank, policies)
    C, R, tokens = HEADS * DIM, size, Shard(LONG, 0, size).tokens
    for rank, sent in enumerate(ranks):
        share = len(head_shares(HEADS, R)[rank]) / HEADS
        for policy, got in zip(policies[:3], sent[:3], strict=True):
            T, F = member_rows(policy, R), 2 * C if policy == Merge() else C
            c, own = policy.channels or F, Shard(LONG, rank, R).own
            destinations = int(policy.matching.destinations(LONG)[own].sum())
            want = (R - 1) * 4 * (destinations * c + 2 * tokens[rank])
            want += 4 * (R - 1) / R * F * c * 8 if policy.channels else 0
            rows = 2 if policy.correct else 1
            want += 4 * C * (3 * T[rank] * (1 - share) + rows * share * (sum(T) - T[rank]))
            if policy.correct:
                some = spread(LONG.tokens, probes(policy.kept_tokens(LONG)))
                mine = int(((own.start <= some) & (some < own.stop)).sum())
                want += 4 * C * ((R - 1) * share * (DIM + 2) + mine * (1 - share))
            assert got == want
    for total in list(zip(*ranks, strict=True))[:2]:
        assert sum(total) < sum(sent[3] for sent in ranks)
