"""The figures of the report: functions from arrays to inline SVG or data URIs, without pyplot and its global state.

Colours are written as CSS variables, so that a figure follows the light or dark mode of the page that holds it.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogFormatterMathtext, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.floating]

INK, MUTED, GRID = "#101112", "#808182", "#d0d1d2"
PREDICTED, MEASURED, UNCHANGED, DENSE, FAST, TRUE = "#2b6cb1", "#c8501e", "#909192", "#606162", "#0f8a72", "#b08a12"
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    PREDICTED: "--predicted",
    MEASURED: "--measured",
    UNCHANGED: "--unchanged",
    DENSE: "--dense",
    FAST: "--fast",
    TRUE: "--true",
}
"""Placeholder colour in a figure -> CSS variable that replaces it in the SVG text."""

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "accel",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "grid.alpha": 0.55,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "text.color": INK,
    "figure.dpi": 96,
}


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def svg(figure: Figure, label: str) -> str:
    """The figure as one SVG element that scales with its column and takes its colours from the page."""
    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text


def layer_lines(
    title: str,
    unit: str,
    *,
    predicted: Array | None,
    measured: Array | None,
    unchanged: Array | None,
    log: bool = True,
) -> str:
    """A quantity over layers. Arrays (layer, head): means as marks or lines, the range of measured heads as a bar."""
    with rc_context(STYLE):
        figure, axes = _axes(3.3, 2.4)
        if unchanged is not None:
            axes.plot(unchanged.mean(-1), color=UNCHANGED, linestyle=(0, (3, 2)), linewidth=1.3)
        if measured is not None:
            x, mean = np.arange(len(measured)), measured.mean(-1)
            spread = np.abs(np.stack([measured.min(-1), measured.max(-1)]) - mean)
            axes.errorbar(x, mean, spread, fmt="none", ecolor=MEASURED, elinewidth=3, alpha=0.22)
        if predicted is not None:
            axes.plot(predicted.mean(-1), color=PREDICTED, marker="o", markersize=3.2)
        if measured is not None:
            axes.plot(x, mean, color=MEASURED, linestyle="none", marker="D", markersize=4.6)
        if log:
            axes.set_yscale("log")
            _plain_log(axes)
        axes.set(title=title, xlabel="global-attention layer", ylabel=unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y")
        return svg(figure, f"{title} per layer")


def _plain_log(axes: Axes) -> None:
    """Plain numbers on a logarithmic axis that spans little more than a decade."""
    low, high = axes.get_ylim()
    if high / low < 300:
        few = high / low < 8
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if few else (1, 2, 5)))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="y", which="minor", length=0)


def spectrum(layer: int, *, predicted: Array | None, measured: Array | None) -> str:
    """Singular values (head, k) of one layer against their index: each head thin, the geometric mean thick."""
    with rc_context(STYLE):
        figure, axes = _axes(3.3, 2.2)
        for values, colour, line in ((measured, MEASURED, "-"), (predicted, PREDICTED, (0, (4, 1.6)))):
            if values is None:
                continue
            values = np.maximum(values, 1e-12)
            index = np.arange(1, values.shape[-1] + 1)
            axes.plot(index, values.T, color=colour, linewidth=0.6, alpha=0.3)
            axes.plot(index, np.exp(np.log(values).mean(0)), color=colour, linestyle=line)
        axes.set(title=f"layer {layer}", xscale="log", yscale="log", xlabel="index")
        axes.set_xticks([n for n in (1, 3, 10, 30, 100) if n <= index[-1]])
        axes.xaxis.set_major_formatter(FormatStrFormatter("%d"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 30 else (1,)))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g") if high / low < 1000 else LogFormatterMathtext())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(axis="y")
        return svg(figure, f"singular values of layer {layer}")


def errors(predicted: Array, measured: Array | None) -> str:
    """Relative error of each layer's attention output: predicted and measured, where the layer is not exact."""
    with rc_context(STYLE):
        figure, axes = _axes(4.3, 2.9)
        x = np.arange(len(predicted))
        shown = [predicted, measured] if measured is not None else [predicted]
        for values, colour, marker, size in zip(shown, (PREDICTED, MEASURED), ("o", "D"), (5.5, 4.6), strict=False):
            values = np.where(values > 0, values, np.nan)
            axes.plot(x, values, color=colour, marker=marker, markersize=size, linestyle="none")
        if measured is not None:
            both = (predicted > 0) & (measured > 0)
            axes.vlines(x[both], predicted[both], measured[both], color=GRID, linewidth=2.5, zorder=0)
        axes.set(title="error of the attention output", xlabel="global-attention layer", ylabel="relative rms error")
        axes.set_ylim(0, 1.12 * max(np.nanmax(np.concatenate(shown)), 1e-6))
        axes.set_xlim(-0.5, len(predicted) - 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y")
        return svg(figure, "predicted and measured error of each layer")


def bars(time: dict[str, float | None]) -> str:
    """Horizontal bars of the seconds measured and planned, in "time" of results.json; absent ones left out."""
    rows = [
        ("dense, measured", time["dense_s"], DENSE),
        ("accelerated, measured", time["accelerated_s"], FAST),
        ("dense, planned", time["planned_dense_s"], UNCHANGED),
        ("accelerated, planned", time["planned_s"], PREDICTED),
    ]
    rows = [row for row in rows if row[1] is not None]
    with rc_context(STYLE):
        figure, axes = _axes(4.3, 0.55 + 0.42 * len(rows))
        names, seconds, colours = zip(*rows, strict=True)
        y = np.arange(len(rows))[::-1]
        axes.barh(y, seconds, color=colours, height=0.55)
        for place, value in zip(y, seconds, strict=True):
            axes.annotate(f"{value:.3g} s", (value, place), (5, 0), textcoords="offset points", va="center", color=INK)
        axes.set_yticks(y, names)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_xlim(0, 1.2 * max(seconds))
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        return svg(figure, "seconds for all frames")


def top_view(
    cameras: Sequence[tuple[str, Array, str]],
    points: Array | None = None,
    colours: Array | None = None,
) -> str:
    """Cameras (name, extrinsics (S, 3, 4) camera from world, colour) and points (n, 3) seen from above the first one.

    x to the right, z (the first camera's view) upwards; each wedge opens in the camera's viewing direction.
    """
    with rc_context(STYLE):
        figure, axes = _axes(5.4, 4.6)
        centres = [-np.einsum("sji,sj->si", e[:, :, :3], e[:, :, 3]) for _, e, _ in cameras]
        all_centres = np.concatenate(centres)
        span = np.ptp(all_centres[:, [0, 2]], axis=0).max()
        if points is not None and len(points):
            low, high = np.quantile(points[:, [0, 2]], [0.03, 0.97], axis=0)
            span = max(span, (high - low).max())
            axes.scatter(
                points[:, 0], points[:, 2], c=colours, s=2.2, linewidths=0, alpha=0.75, rasterized=True, zorder=0
            )
            every = np.concatenate([all_centres[:, [0, 2]], low[None], high[None]])
        else:
            every = all_centres[:, [0, 2]]
        size = 0.045 * max(span, 1e-6)
        for (_, extrinsics, colour), centre in zip(cameras, centres, strict=True):
            for rotation, c in zip(extrinsics[:, :, :3], centre, strict=True):
                forward, right = rotation[2, [0, 2]], rotation[0, [0, 2]]
                tip = c[[0, 2]]
                ends = [tip + size * (1.4 * forward + s * 0.8 * right) for s in (-1, 1)]
                axes.fill(*np.array([tip, *ends]).T, facecolor=colour, alpha=0.2, linewidth=0)
                axes.plot(*np.array([ends[0], tip, ends[1]]).T, color=colour, linewidth=1.2)
            axes.plot(centre[:, 0], centre[:, 2], "o", color=colour, markersize=2.6)
        low, high = every.min(0) - 0.12 * span - 1e-6, every.max(0) + 0.12 * span + 1e-6
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xlabel="x", ylabel="z")
        axes.set_aspect("equal", adjustable="box")
        axes.grid(True)
        return svg(figure, "cameras and points seen from above")


def thumbnail(picture: NDArray[np.uint8]) -> str:
    """A JPEG data URI of (h, w, 3) uint8."""
    return _uri(picture, "JPEG", quality=82)


def colour_map(values: Array, low: float, high: float, name: str = "viridis", height: int = 240) -> str:
    """A PNG data URI of a map (h, w), `low` to `high` in the colours of a matplotlib map; non-finite is transparent."""
    scaled = (values - low) / max(high - low, 1e-12)
    picture = matplotlib.colormaps[name](np.nan_to_num(scaled).clip(0, 1), bytes=True)
    picture[~np.isfinite(values), 3] = 0
    shown = Image.fromarray(picture[..., :3] if np.isfinite(values).all() else picture)
    if shown.height > height:
        shown = shown.resize((round(shown.width * height / shown.height), height), Image.Resampling.BOX)
    return _uri(np.asarray(shown), "PNG", optimize=True)


def colour_bar(name: str) -> str:
    """A PNG data URI of a matplotlib map from left to right."""
    return _uri(matplotlib.colormaps[name](np.linspace(0, 1, 128), bytes=True)[None, :, :3], "PNG")


def _uri(picture: NDArray[np.uint8], kind: str, **options: object) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
