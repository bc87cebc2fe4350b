"""The figure of a benchmark: ratios over dense against size, with quartiles, beside published ratios; and memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, NullLocator

from accel.bench.cases import PLANS

PUBLISHED = (
    ("HTTM, A100", "arXiv 2511.21317", ((300, 60.7 / 16.3),)),
    ("FastVGGT, A100", "arXiv 2511.21317, its table", ((300, 60.7 / 22.4),)),
    ("AVGGT, A100", "arXiv 2512.02541", ((800, 397.1 / 50.0),)),
    ("Spark3R, H20", "arXiv 2605.06270", ((1000, 1102.7 / 40.7),)),
)
"""Published seconds of dense VGGT over those of a training-free method, by frames: on other devices, real images, and
(Spark3R: up to 1,000 frames) other scenes. Source and device beside each. Of 2511.21317 only 300 frames: its dense
seconds at 100 and 1,000 frames are those that arXiv 2509.02560 prints for an A800; no ratio on an A100 may use them."""

PANELS = (
    ("kernels", "tokens", "speedup", "one layer's attention: dense over policy", "tokens N"),
    ("model", "frames", "speedup", "whole model: dense over schedule", "frames"),
    ("memory", "frames", "peak_bytes", "peak memory, GB", "frames"),
    ("spectra", "tokens", "seconds", "16 singular values of a head, s", "tokens N"),
)
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"}


def figure(results: dict[str, Any], path: Path) -> None:
    """Write the panels that have numbers; without any, an empty figure that says so."""
    rows = results["rows"]
    shown = [panel for panel in PANELS if _series(rows, *panel[:3])]
    with rc_context(STYLE):
        count = max(1, len(shown))
        fig = Figure(figsize=(6.2 * min(count, 2), 4.2 * -(-count // 2)), layout="constrained")
        FigureCanvasAgg(fig)
        axes = fig.subplots(-(-count // 2), min(count, 2), squeeze=False).ravel()
        for ax, (suite, x, y, title, label) in zip(axes, shown, strict=False):
            _panel(ax, rows, suite, x, y)
            ax.set_title(title)
            ax.set_xlabel(label)
        for ax in axes[len(shown) :]:
            ax.set_axis_off()
        if not shown:
            axes[0].text(0.5, 0.5, "nothing measured yet", ha="center")
        machine = results["machine"]
        fig.suptitle(
            f"{machine['device_name']}, torch {machine['torch']}, {machine['date'][:10]}: measured", fontsize=9
        )
        part = path.with_name(path.name + ".part")
        fig.savefig(part, format="png", dpi=150)
        os.replace(part, path)


def _series(rows: Sequence[dict], suite: str, x: str, y: str) -> dict[tuple[str, str], list[dict]]:
    """Rows with a value of a suite, by model and run, in the order of x; memory takes those of the suite model, too."""
    suites = ("model", "memory") if suite == "memory" else (suite,)
    found: dict[tuple[str, str], dict[float, dict]] = {}
    for row in rows:
        if row["suite"] in suites and row.get(y):
            found.setdefault((row["model"], row["run"]), {}).setdefault(row[x], row)
    series = {key: [points[n] for n in sorted(points)] for key, points in found.items()}
    if suite == "memory":
        return {key: points for key, points in series.items() if key[1] in ("dense", *PLANS, "floor")}
    return {key: points for key, points in series.items() if key[1] != "dense"}


def _panel(ax: Axes, rows: Sequence[dict], suite: str, x: str, y: str) -> None:
    found = _series(rows, suite, x, y)
    models = list(dict.fromkeys(model for model, _ in found))
    for i, ((model, run), points) in enumerate(found.items()):
        style = {"color": f"C{i % 10}", "linestyle": ("-", "--", ":")[models.index(model) % 3]}
        style |= {"marker": "os^v"[i // 10 % 4], "markersize": 4, "linewidth": 1.2}
        scale = 1e-9 if y == "peak_bytes" else 1.0
        values = [scale * row[y] for row in points]
        label = run if len(models) == 1 else f"{run}, {model}"
        ax.plot([row[x] for row in points], values, label=label, **style)
        spread = [(row[x], *row["speedup_quartiles"]) for row in points if y == "speedup" and row["speedup_quartiles"]]
        if spread:
            ax.vlines(*zip(*spread, strict=True), color=style["color"], linewidth=1.2)
    sizes = {row[x] for points in found.values() for row in points}
    if suite == "model" and "vggt-1b" in models:
        for marker, (name, _, points) in zip("Dsv^", PUBLISHED, strict=True):
            frames, ratios = zip(*points, strict=True)
            sizes.update(frames)
            ax.plot(frames, ratios, color="0.45", linestyle=":", marker=marker, mfc="none", label=f"{name} (published)")
    if y == "speedup":
        ax.axhline(1.0, color="0.7", linewidth=0.8)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xticks(sorted(sizes), [f"{n:,}" for n in sorted(sizes)], fontsize=7)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    ax.yaxis.set_minor_formatter(FormatStrFormatter("%g"))
    ax.tick_params(axis="y", which="both", labelsize=7)
    ax.legend(fontsize=6, ncols=2, frameon=False)
