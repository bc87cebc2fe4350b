"""Rotary encoding: exact identities and its effect on spectra."""

import numpy as np
import pytest

from meanfield import rope
from tests import tolerances as tol

RNG = np.random.default_rng(0)
GRID = np.stack(np.meshgrid(np.arange(1.0, 7.0), np.arange(1.0, 5.0), indexing="ij"), -1).reshape(-1, 2)


def test_rotation_keeps_norms_and_depends_on_offsets_alone():
    q, k = RNG.standard_normal((2, 16))
    assert np.linalg.norm(rope.rotate(q, [3.0, 5.0])) == pytest.approx(np.linalg.norm(q), rel=tol.MEANFIELD_ROUNDING)
    here = rope.rotate(q, [3.0, 5.0]) @ rope.rotate(k, [1.0, 2.0])
    there = rope.rotate(q, [7.0, 9.0]) @ rope.rotate(k, [5.0, 6.0])
    assert here == pytest.approx(there, rel=tol.MEANFIELD_ROUNDING)


def test_frequencies_are_those_of_the_encoding():
    """D = 16: four pairs for each axis, frequencies 1, 100^{-1/4}, 100^{-1/2}, 100^{-3/4}."""
    expected = 100.0 ** -np.array([0.0, 0.25, 0.5, 0.75])
    theta = rope.angles([2.0, 3.0], 16)
    assert theta[0] == pytest.approx(2.0 * expected, rel=tol.MEANFIELD_ROUNDING)
    assert theta[1] == pytest.approx(3.0 * expected, rel=tol.MEANFIELD_ROUNDING)


def test_rows_turn_the_first_half_in_pairs_a_quarter_apart():
    turned = rope.rotate(np.eye(8)[0], [0.5, 0.0])
    expected = np.zeros(8)
    expected[0], expected[2] = np.cos(0.5), np.sin(0.5)
    assert turned == pytest.approx(expected, abs=tol.MEANFIELD_ROUNDING)


def test_averaged_covariance_is_the_second_moment_of_rotated_content():
    a = RNG.standard_normal((8, 8))
    c = a @ a.T
    direct = 0.0
    for position in GRID:
        r = rope.rotate(np.eye(8), position).T
        direct = direct + r @ c @ r.T / len(GRID)
    assert rope.averaged_covariance(c, GRID) == pytest.approx(direct, rel=tol.MEANFIELD_EXACT, abs=tol.MEANFIELD_EXACT)


def test_full_turns_average_the_two_variances_of_a_pair():
    positions = np.stack([np.arange(360) * np.pi / 180.0, np.zeros(360)], -1)
    averaged = rope.averaged_covariance(np.diag([3.0, 1.0, 5.0, 1.0]), positions)
    assert np.diag(averaged) == pytest.approx([2.0, 2.0, 5.0, 1.0], rel=tol.MEANFIELD_ROUNDING)


def test_bound_holds_and_is_reached_by_the_fastest_pair():
    for offset in ([0.3, 0.1], [1.0, 2.0], [9.0, 4.0]):
        q, k = RNG.standard_normal((2, 16))
        change = abs(rope.rotate(q, offset) @ k - q @ k)
        assert change <= rope.logit_change_bound(np.linalg.norm(q), np.linalg.norm(k), np.array(offset))
    theta = 0.4
    q, k = np.eye(8)[0], np.zeros(8)
    k[0], k[2] = -np.sin(theta / 2.0), np.cos(theta / 2.0)
    change = abs(rope.rotate(q, [theta, 0.0]) @ k - q @ k)
    assert change == pytest.approx(
        rope.logit_change_bound(1.0, 1.0, np.array([theta, 0.0])), rel=tol.MEANFIELD_ROUNDING
    )


def test_collapsed_content_still_attends_by_position():
    q, k = RNG.standard_normal((2, 16))
    logits = rope.position_logits(q, k, GRID)
    assert logits.diagonal() == pytest.approx(np.full(len(GRID), q @ k), rel=tol.MEANFIELD_EXACT)
    assert logits[3, 7] == pytest.approx(rope.rotate(q, GRID[3]) @ rope.rotate(k, GRID[7]), rel=tol.MEANFIELD_EXACT)
    assert logits.std(1).min() > 0.1 * np.linalg.norm(q) * np.linalg.norm(k) / 4.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rope.angles([1.0, 2.0], 6), "dim=6"),
        (lambda: rope.angles([1.0, 2.0, 3.0], 8), "row and column"),
        (lambda: rope.angles([1.0, 2.0], 8, base=1.0), "base=1"),
        (lambda: rope.angles([np.nan, 2.0], 8), "nan"),
        (lambda: rope.averaged_covariance(np.ones((8, 4)), GRID), r"\(8, 4\)"),
        (lambda: rope.rotate(3.0, [1.0, 2.0]), r"vectors have shape \(\)"),
        (lambda: rope.position_logits(3.0, 1.0, GRID), r"query \(\)"),
        (lambda: rope.position_logits(np.ones((2, 8)), np.ones((2, 8)), GRID), r"query \(2, 8\)"),
        (lambda: rope.logit_change_bound(1.0, 1.0, []), r"offset has shape \(0,\)"),
        (lambda: rope.logit_change_bound(-1.0, 1.0, np.zeros(2)), "query_norm=-1"),
    ],
)
def test_outside_the_domain_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
