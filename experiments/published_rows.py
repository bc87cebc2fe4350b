"""Published runtimes and memory as rows: what a source printed, and what it takes to predict it.

`data/published_runtimes.csv` holds every row of the tables that papers and repositories print about VGGT, Pi3 and
VGGT-Omega. Columns place to note are as found (verification: read in the original, or transcribed by a third party);
backbone to excluded are ours: how a row is read, what had to be assumed, or why it is left out.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from accel.backbones import backbone
from accel.layout import TokenLayout
from accel.policies import Compose, Exact, Frame, Merge, Policy, QueryMerge, Subsample, TemporalStride
from accel.presets import PUBLISHED

DATA = Path(__file__).parent / "data" / "published_runtimes.csv"


@dataclass(frozen=True)
class Row:
    """One published number; `seconds` or `gib` may be None."""

    source: str
    model: str
    method: str
    device: str
    dataset: str
    frames: int
    layout: TokenLayout
    backbone: str
    policy: str
    heads: bool
    assumed: str
    effort: str
    seconds: float | None
    gib: float | None

    @property
    def dense(self) -> bool:
        return self.policy == "dense"


def load(path: Path = DATA) -> tuple[list[Row], list[dict[str, str]]]:
    """The rows that count, and the excluded ones as they stand."""
    rows, excluded = [], []
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            if line["excluded"]:
                excluded.append(line)
                continue
            net, frames = backbone(line["backbone"]), int(line["frames_used"])
            kernel = " FA3" if line["kernel"] == "FA3" else ""
            rows.append(
                Row(
                    **{k: line[k] for k in ("source", "model", "method", "dataset", "backbone", "assumed", "effort")},
                    device=line["device"] + kernel,
                    frames=frames,
                    layout=net.layout(frames, int(line["height"]), int(line["width"])),
                    policy=line["policy"],
                    heads=line["heads"] == "1",
                    seconds=float(line["seconds"]) if line["seconds"] else None,
                    gib=float(line["gb"]) if line["gb"] else None,
                )
            )
    return rows, excluded


def policies(row: Row) -> tuple[Policy, ...] | None:
    """The published setting of a row; "fastvggt:b:r" merges the share r from block b on, "avggt:s" has stride s."""
    net = backbone(row.backbone)
    layers, (name, *numbers) = net.global_blocks, row.policy.split(":")
    if name == "dense":
        return None
    if name == "fastvggt" and numbers:
        first, ratio = int(numbers[0]), float(numbers[1])
        return (Exact(),) * first + (replace(Merge.fastvggt(), keep=round(1 - ratio, 3)),) * (layers - first)
    if name == "avggt":  # global layers turned into frame attention: 9 of VGGT's 24, 10 of Pi3's 18
        early = 10 if row.backbone == "pi3" else 9
        subset = Subsample.avggt(int(numbers[0]), keep_first_frame=row.backbone != "pi3")
        return (Frame(),) * early + (subset,) * (layers - early)
    if name == "spark3r":  # layers 11 to 16 are found sensitive in VGGT and Pi3; the others take thrice the stride
        merge = QueryMerge.spark3r(row.frames)
        strides = [TemporalStride.spark3r(row.frames, reduction=1 if 11 <= i <= 16 else 3) for i in range(layers)]
        return tuple(Compose((merge, stride)) for stride in strides)
    return PUBLISHED[name](row.layout, layers)


def timed(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.seconds is not None]
