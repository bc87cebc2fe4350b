"""The error of keeping a regular grid of keys (docs/theory/reductions.md)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

own, cross = sp.symbols("own cross", real=True)
error = sp.Symbol("error")


def _steps(candidate):
    points, stride = 4, 2
    moves = sp.symbols("u1:9", real=True)
    moves = (*moves[:7], -sum(moves[:7]))
    frames = (moves[:points], moves[points:])

    def transform(frame, k):
        return sum(u * sp.exp(-2 * sp.pi * sp.I * k * j / points) for j, u in enumerate(frame))

    for shift in range(stride):
        kept = sum(frames[0][j] for j in range(shift, points, stride))
        poisson = [transform(frames[0], k) * sp.exp(2 * sp.pi * sp.I * k * shift / points) / stride for k in (0, 2)]
        yield Step(f"Poisson summation over every second of four points, offset {shift}", sum(poisson), kept)
    sums = [sum(frame[j] for frame in frames for j in range(shift, points, stride)) for shift in range(stride)]
    alias = [transform(frame, points // stride) for frame in frames]
    measured = {own: alias[0] ** 2 + alias[1] ** 2, cross: 2 * alias[0] * alias[1]}
    yield Step(
        "two frames on one grid: mean over the offsets of |sum_S u|^2 / f^2, f = 1/2, with sum u = 0",
        sum(kept**2 for kept in sums) / stride * stride**2,
        candidate.subs(measured, simultaneous=True),
    )


RESULT = Derivation(
    statement="A grid of keys shared by all frames errs, averaged over its offsets and to first order, by the power of "
    "A (v - o) at the grid's alias frequencies: each frame's own plus the products of different frames.",
    source="docs/theory/reductions.md, grids",
    status="derived",
    claim=sp.Eq(error, own + cross),
    arguments=(own, cross),
    steps=_steps,
)
