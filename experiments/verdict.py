"""A claim, its number, and whether it holds: what every experiment ends with."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from accel.provenance import provenance


@dataclass(frozen=True)
class Verdict:
    """One claim tested: `value` compared with `threshold`; `interval` is a 95 % interval where one was computed."""

    claim: str
    value: float
    threshold: float
    holds: bool
    interval: tuple[float, float] | None = None

    def __str__(self) -> str:
        span = "" if self.interval is None else f" [{self.interval[0]:.3g}, {self.interval[1]:.3g}]"
        word = "HOLDS" if self.holds else "FAILS"
        return f"VERDICT {word}: {self.claim}: {self.value:.3g}{span} (threshold {self.threshold:.3g})"


def report(verdicts: list[Verdict], out: Path | None, **numbers) -> None:
    """Print the verdicts and, where `out` is given, write them with the numbers and the provenance as JSON."""
    for verdict in verdicts:
        print(verdict)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        record = {"verdicts": [asdict(v) for v in verdicts], **numbers, "provenance": dict(provenance())}
        record["provenance"]["threads"] = torch.get_num_threads()
        out.write_text(json.dumps(record, indent=1) + "\n")
