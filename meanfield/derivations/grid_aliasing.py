"""The error of keeping a regular grid of keys (docs/theory/reductions.md)."""

import sympy as sp

from meanfield.derivations.derivation import Derivation, Step

own, cross = sp.symbols("own cross", real=True)
error = sp.Symbol("error")


def _steps(candidate):
    # Two frames of 4 x 2 points, stride 2 in both directions: the alias frequencies are {0, 2} x {0, 1}.
    height, width, stride = 4, 2, 2
    moves = sp.symbols("u1:17", real=True)
    moves = (*moves[:15], -sum(moves[:15]))
    frames = [
        {(y, x): moves[i * height * width + y * width + x] for y in range(height) for x in range(width)}
        for i in range(2)
    ]
    aliases = [(ky, kx) for ky in range(0, height, height // stride) for kx in range(0, width, width // stride)]
    offsets = [(y, x) for y in range(stride) for x in range(stride)]

    def phase(k, point):
        return sp.exp(2 * sp.pi * sp.I * (sp.Rational(k[0] * point[0], height) + sp.Rational(k[1] * point[1], width)))

    def transform(frame, k):
        return sum(u / phase(k, point) for point, u in frame.items())

    def kept(frame, offset):
        return sum(u for (y, x), u in frame.items() if (y % stride, x % stride) == offset)

    powers = [[transform(frame, k) for k in aliases] for frame in frames]
    for offset in offsets:
        poisson = sum(p * phase(k, offset) for p, k in zip(powers[0], aliases, strict=True)) / stride**2
        yield Step(f"Poisson summation over a grid, offset {offset}", poisson, kept(frames[0], offset), by=sp.expand)

    def product(i, j):
        return sum(sp.re(sp.expand(a * sp.conjugate(b))) for a, b in zip(powers[i][1:], powers[j][1:], strict=True))

    measured = {own: product(0, 0) + product(1, 1), cross: 2 * product(0, 1)}
    together = [kept(frames[0], offset) + kept(frames[1], offset) for offset in offsets]
    yield Step(
        "one offset for both frames: mean of |sum_S u|^2/f^2, f = 1/4, with sum u = 0",
        sum(total**2 for total in together) / len(offsets) * stride**4,
        candidate.subs(measured, simultaneous=True),
        by=sp.expand,
    )
    apart = [kept(frames[0], first) + kept(frames[1], second) for first in offsets for second in offsets]
    yield Step(
        "an offset for each frame: the products of different frames average out",
        sum(total**2 for total in apart) / len(offsets) ** 2 * stride**4,
        candidate.subs(measured | {cross: 0}, simultaneous=True),
        by=sp.expand,
    )


RESULT = Derivation(
    statement="A grid of keys errs, averaged over its offsets and to first order, by the power of A (v - o) at its "
    "alias frequencies: each frame's own plus, when the frames share one offset, the products of different frames.",
    source="docs/theory/reductions.md, grids",
    status="derived",
    claim=sp.Eq(error, own + cross),
    arguments=(own, cross),
    steps=_steps,
)
