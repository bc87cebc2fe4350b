"""The exchanges on 2 and 4 gloo processes: what arrives, and the bytes that each rank counts."""

import pytest
import torch
import torch.distributed as dist

from accel.distributed import Ranks
from accel.distributed.ranks import reason
from accel.errors import AccelError
from tests.accel.distributed.processes import run

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
SIZES = [2, 4]


def part(rank, rows, dtype):
    """What a rank has: (2, rows, 3), strided, with values that tell rank and place."""
    return (100 * rank + torch.arange(6 * rows).reshape(2, 3, rows).transpose(1, 2)).to(dtype)


def counts_of(size, even):
    return [3] * size if even else [2 * rank for rank in range(size)]  # rank 0 has nothing


def gather_on_a_rank(even):
    ranks = Ranks()
    counts = counts_of(ranks.size, even)
    found = [ranks.gather(part(ranks.rank, counts[ranks.rank], dtype), counts, dim=1) for dtype in DTYPES]
    return found, ranks.sent, ranks.seconds


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_gather_joins_the_parts_in_rank_order(size, even):
    counts = counts_of(size, even)
    for rank, (found, sent, seconds) in enumerate(run(size, gather_on_a_rank, even)):
        for dtype, got in zip(DTYPES, found, strict=True):
            want = torch.cat([part(other, counts[other], dtype) for other in range(size)], 1)
            assert got.dtype == dtype and torch.equal(got, want)
        assert sent == sum((size - 1) * 6 * counts[rank] * dtype.itemsize for dtype in DTYPES)
        assert seconds > 0


def sum_on_a_rank():
    ranks = Ranks()
    x = part(ranks.rank, 3, torch.float64)
    return ranks.sum(x), x, ranks.sent


@pytest.mark.parametrize("size", SIZES)
def test_sum_is_on_every_rank_and_leaves_the_parts(size):
    want = sum(part(rank, 3, torch.float64) for rank in range(size))
    for rank, (total, kept, sent) in enumerate(run(size, sum_on_a_rank)):
        assert torch.equal(total, want) and torch.equal(kept, part(rank, 3, torch.float64))
        assert sent == 2 * (size - 1) / size * 18 * 8


def ring_on_a_rank():
    ranks = Ranks()
    counts = [rank + 1 for rank in range(ranks.size)]
    k, v = part(ranks.rank, counts[ranks.rank], torch.bfloat16), part(ranks.rank, counts[ranks.rank], torch.float32)
    return list(ranks.ring(counts, k, v, dim=1)), ranks.sent


@pytest.mark.parametrize("size", SIZES)
def test_a_ring_passes_everybody_s_parts_by(size):
    for rank, (turns, sent) in enumerate(run(size, ring_on_a_rank)):
        assert [source for source, _ in turns] == [(rank - turn) % size for turn in range(size)]
        for source, (k, v) in turns:
            assert torch.equal(k, part(source, source + 1, torch.bfloat16))
            assert torch.equal(v, part(source, source + 1, torch.float32))
        passed_on = [(rank - turn) % size + 1 for turn in range(size - 1)]
        assert sent == sum(passed_on) * 6 * (2 + 4)


def exchange_on_a_rank():
    ranks = Ranks()
    parts = [part(10 * ranks.rank + to, abs(ranks.rank - to), torch.float32) for to in range(ranks.size)]
    like = [torch.empty(2, 3, abs(ranks.rank - source)).transpose(1, 2) for source in range(ranks.size)]
    return ranks.exchange(parts, like), ranks.sent


@pytest.mark.parametrize("size", SIZES)
def test_exchange_gives_each_rank_its_own_and_sends_no_empty_part(size):
    for rank, (found, sent) in enumerate(run(size, exchange_on_a_rank)):
        for source, got in enumerate(found):
            assert torch.equal(got, part(10 * source + rank, abs(rank - source), torch.float32))
        assert sent == sum(abs(rank - to) for to in range(size)) * 6 * 4


def text_on_a_rank():
    ranks = Ranks()
    return ranks.from_first("Σ {}" if ranks.rank == 0 else "another")


@pytest.mark.parametrize("size", SIZES)
def test_the_text_of_rank_0_is_on_every_rank(size):
    assert run(size, text_on_a_rank) == ["Σ {}"] * size


def group_on_a_rank():
    """Ranks 1 and 3 of four in a group of their own, in which they are 0 and 1."""
    group = dist.new_group([1, 3])
    if dist.get_rank() not in (1, 3):
        return None
    ranks = Ranks(group)
    mine = torch.tensor([dist.get_rank()])
    turns = [int(x) for _, (x,) in ranks.ring([1, 1], mine, dim=0)]
    return ranks.rank, turns, ranks.gather(mine, [1, 1]).tolist(), ranks.exchange([mine, mine], [mine, mine])[0].item()


def test_a_group_of_some_ranks():
    assert run(4, group_on_a_rank) == [None, (0, [1, 3], [1, 3], 1), None, (1, [3, 1], [1, 3], 1)]


def wrong_count_on_a_rank():
    with pytest.raises(AccelError, match="has 2 rows along dim 0 where 3 were announced"):
        Ranks().gather(torch.zeros(2), [3, 3])


def test_announced_counts_are_checked():
    run(2, wrong_count_on_a_rank)


def test_ranks_need_a_process_group():
    with pytest.raises(AccelError, match=r"not initialised; start the command by torchrun"):
        Ranks()


def test_a_transport_s_error_is_one_clause():
    said = "[/src/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:2200. This is typically caused by\nmore"
    assert reason(RuntimeError(said)) == "Connection closed by peer [127.0.0.1]:2200"
    assert reason(RuntimeError()) == "RuntimeError"
