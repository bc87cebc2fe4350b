"""The general law of linear response against its own recursion, explicit particles and the alternating case."""

import numpy as np
import pytest

from meanfield import linear_response as lr
from meanfield.recursion import Recursion, asymptotic_exponents, rollout
from tests import tolerances as tol
from tests.meanfield.dense import equiangular_tokens


def _late_exponents(blocks, nu):
    """Local exponents (modes,) of one layer at r = 1e3, depth counted by r^2 ~ L^nu."""
    modes = len(blocks[0].eigenvalues)
    start = np.array([1e6] + [1.0] * (modes - 1))
    end = lr.mode_rollout(blocks, start, 1)[1]
    return nu * (1.0 - np.log(end / start) / np.log(end[0] / start[0]))


@pytest.mark.parametrize("coherence", [1.0, 0.4, 0.0])
def test_any_table_of_modes(coherence):
    blocks = [
        lr.Block(1.0, (1.0, 0.3, 0.0, -0.5), coherence),
        lr.Block(0.7, (1.0, 1.0, 0.0, 0.2), coherence),
        lr.Block(0.0, (1.0, 1.0, 1.0, 1.0)),
    ]
    exponents = lr.response_exponents(blocks)
    assert exponents == pytest.approx(_late_exponents(blocks, 2.0 if coherence else 1.0), abs=tol.DYNAMICS_LATE)
    assert exponents[0] == 0.0


@pytest.mark.parametrize("mlp", [0.0, 0.5, 1.0, 2.0])
def test_a_per_token_mlp_slows_the_collapse(mlp):
    """2.2 F: aligned 2 a_g/(a_g + a_m); random a_g^2/(a_g^2 + a_m^2)."""
    aligned = [lr.Block(1.0, (1.0, 0.0)), lr.Block(mlp, (1.0, 1.0))]
    random = [lr.Block(1.0, (1.0, 0.0), 0.0), lr.Block(mlp, (1.0, 1.0), 0.0)]
    assert lr.response_exponents(aligned)[1] == pytest.approx(2.0 / (1.0 + mlp), rel=tol.MEANFIELD_ROUNDING)
    assert lr.response_exponents(random)[1] == pytest.approx(1.0 / (1.0 + mlp**2), rel=tol.MEANFIELD_ROUNDING)


def test_an_aligned_mlp_in_particles():
    """x <- x + A, x <- x + x/|x|: exponent 1 instead of 2, from L = 400 to 800, and the mode recursion exactly."""
    x = equiangular_tokens(6, 0.5)
    blocks = [lr.Block(1.0, (1.0, 0.0)), lr.Block(1.0, (1.0, 1.0))]
    modes = lr.mode_rollout(blocks, [(1 + 5 * 0.5) / 6, 5 / 6 * 0.5], 800)
    shares = {}
    for layer in range(1, 801):
        x = x + (x / np.linalg.norm(x, axis=1, keepdims=True)).mean(0)
        x = x + x / np.linalg.norm(x, axis=1, keepdims=True)
        if layer in (400, 800):
            mean, rest = (x.mean(0) ** 2).sum(), ((x - x.mean(0)) ** 2).sum(1).mean()
            assert modes[layer] == pytest.approx([mean, rest], rel=tol.MEANFIELD_EXACT)
            shares[layer] = rest / mean
    assert np.log2(shares[400] / shares[800]) == pytest.approx(1.0, abs=tol.DYNAMICS_LATE)


@pytest.mark.parametrize("coherence", [1.0, 0.0])
def test_alternating_attention_is_a_special_case(coherence):
    """Modes mean, between, within: the same exponents and the same energies as the three-mode recursion."""
    frame, everywhere = 0.6, 1.1
    blocks = [lr.Block(frame, (1.0, 1.0, 0.0), coherence), lr.Block(everywhere, (1.0, 0.0, 0.0), coherence)]
    recursion = Recursion(frame, everywhere, coherence)
    assert lr.response_exponents(blocks)[1:] == pytest.approx(
        asymptotic_exponents(recursion), rel=tol.MEANFIELD_ROUNDING
    )
    start = [0.2, 0.3, 0.5]
    assert lr.mode_rollout(blocks, start, 30) == pytest.approx(
        rollout(recursion, start, 30, 1e15, 1e15), rel=tol.MEANFIELD_EXACT
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lr.Block(-1.0, (1.0, 0.0)), "gain=-1"),
        (lambda: lr.Block(1.0, (1.0, 0.0), 1.5), r"coherence=1\.5"),
        (lambda: lr.Block(1.0, (1.0, np.nan)), "nan"),
        (lambda: lr.Block(1.0, (1.0,)), "at least one other mode"),
        (lambda: lr.Block(1.0, (0.5, 1.0)), "largest one first"),
        (lambda: lr.response_exponents([]), "at least one block"),
        (lambda: lr.response_exponents([lr.Block(0.0, (1.0, 0.0))]), "no growth"),
        (lambda: lr.mode_rollout([lr.Block(1.0, (1.0, 0.0))], [1.0, 1.0, 1.0], 2), "2 modes"),
        (lambda: lr.Block([1.0], (1.0, 0.0)), "gain has shape"),
        (lambda: lr.mode_rollout([lr.Block(1.0, (1.0, 0.0))], [1.0, 1.0], -1), "layers=-1"),
        (lambda: lr.mode_rollout([lr.Block(1.0, (1.0, 0.0))], [0.0, 0.0], 2), "start is 0"),
        (lambda: lr.mode_rollout([lr.Block(1.0, (1.0, -1.0))], [0.0, 1.0], 3), "vanish"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
