"""The results of a benchmark as text: a table per suite, what the numbers rest on, and what is left."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from accel.bench.timing import OK

TITLES = {
    "kernels": "one layer's attention, interleaved with dense",
    "model": "the whole model, interleaved with dense",
    "memory": "dense and planned at more sizes",
    "spectra": "leading singular values of one head",
}


COLUMNS = ("run", "seconds", "spread", "dense over it", "TFLOP/s", "GB", "error", "testbed", "basis")


def tables(results: dict[str, Any]) -> list[Table]:
    """One table per suite that has rows, a section per case; `basis` is a letter that `footnotes` explains."""
    found, letters = [], _letters(results)
    for suite, title in TITLES.items():
        rows = [row for row in results["rows"] if row["suite"] == suite]
        if not rows:
            continue
        table = Table(title=f"{suite}: {title}", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for name in COLUMNS:
            table.add_column(name, justify="left" if name == "run" else "right", no_wrap=True)
        place = None
        for row in rows:
            if place != (row["model"], row["frames"], row["reference"]):
                place = (row["model"], row["frames"], row["reference"])
                table.add_section()
                table.add_row(f"[bold]{row['model']}, {row['frames']} frames, N={row['tokens']}")
            table.add_row("  " + row["run"], *_cells(row, letters))
        found.append(table)
    return found


def _letters(results: dict[str, Any]) -> dict[str, str]:
    """A letter for every basis and every reason why something was not measured."""
    texts = dict.fromkeys(_explained(row) for row in results["rows"])
    return {text: _letter(i) for i, text in enumerate(text for text in texts if text)}


def _letter(index: int) -> str:
    return chr(ord("a") + index) if index < 26 else f"a{index - 25}"


def _explained(row: dict[str, Any]) -> str:
    return (row.get("basis") or "") if row["status"] == OK else row["reason"]


def _cells(row: dict[str, Any], letters: dict[str, str]) -> tuple[str, ...]:
    letter = letters.get(_explained(row), "")
    if row["status"] != OK:
        return (row["status"], "", "", "", "", "", "", letter)
    testbed, peak, low_high = row.get("testbed_error"), row.get("peak_bytes"), row["seconds_quartiles"]
    error = row.get("output_difference") if row["suite"] == "model" else row.get("error")
    return (
        _number(row["seconds"]),
        f"{(low_high[1] - low_high[0]) / row['seconds']:.0%}" if row["rounds"] > 1 else "once",
        _with_spread(row["speedup"], row["speedup_quartiles"]) + " *" * _indirect(row),
        _number(row.get("tflops")),
        _number(None if peak is None else peak * 1e-9),
        _number(error),
        "" if testbed is None else f"{testbed['median']:.2g} to {testbed['worst']:.2g}",
        letter,
    )


def _indirect(row: dict[str, Any]) -> bool:
    return bool(row.get("speedup_basis")) and row["speedup_basis"] != "same rounds"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _with_spread(value: float | None, quartiles: list[float] | None) -> str:
    if value is None:
        return ""
    if quartiles is None:
        return f"{value:.3g} once"
    return f"{value:.3g} [{quartiles[0]:.3g}, {quartiles[1]:.3g}]"


def footnotes(results: dict[str, Any]) -> list[str]:
    """What the numbers mean, and what was not done."""
    machine, rows = results["machine"], results["rows"]
    notes = [
        f"{machine['device_name']}, {machine['threads']} threads, torch {machine['torch']}, revision "
        f"{machine['git_revision']}, {machine['date']}. Medians over rounds; each round runs every candidate once; "
        "spread: quartiles of the seconds; ratios and brackets: median and quartiles of the ratios within rounds; "
        "once: one round, no spread."
    ]
    notes += [f"{letter}: {text}." for text, letter in _letters(results).items()]
    suites = {row["suite"] for row in rows}
    if "kernels" in suites:
        notes.append(
            "kernels: error is of the attention output on a made-up scene; testbed: median and worst layer of the "
            "trained testbed, measured by experiments/measured_sparsity.py."
        )
    if "model" in suites:
        notes.append(
            "model: error is the difference of the outputs, on the trained testbed. Random weights have none: their "
            "times are honest, their sparsity is not, so that block densities, merge ratios and plans rest on what the "
            "testbed needed, as the basis says."
        )
    if any(row["run"] == "spark3r" and row["status"] == OK for row in rows):
        notes.append(
            "spark3r: without the paper's probe, which takes three times the temporal stride in insensitive layers: it "
            "computes more attention than the published method."
        )
    if "spectra" in suites:
        notes.append("spectra: times and ratios beside one attention forward of the head; error is the declared one.")
    if any(_indirect(row) for row in rows):
        notes.append(
            "*: dense ran once in that case, or in another one and is linked by the reference that both timed."
        )
    for basis in dict.fromkeys(record["memory_basis"] for record in results["cases"] if record.get("memory_basis")):
        notes.append(f"memory: {basis}.")
    for entry in results["growth"]:
        if entry["run"] in ("dense", "planned", "floor"):
            memory = "" if entry["peak_bytes"] is None else f", memory {entry['peak_bytes']:.2f}"
            sizes = f"{entry['tokens'][0]} to {entry['tokens'][-1]} tokens"
            notes.append(
                f"{entry['model']}, {entry['run']}, {sizes}: seconds grow with exponent {entry['seconds']:.2f}{memory}."
            )
    if results["ignored"]:
        notes.append(f"{results['ignored']} earlier cases of other code, another machine or torch are not shown.")
    if results["left"]:
        notes.append(f"left: {len(results['left'])} cases; the same command continues. Next: {results['left'][0]}.")
    if results["not_asked"]:
        notes.append(f"not asked for by --only, and not measured: {len(results['not_asked'])} cases of the profile.")
    return notes


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a call in one line of JSON: counts, what is left, and the ratios over dense."""
    states = [record["status"] for record in results["cases"]]
    ratios = [
        {key: row[key] for key in ("suite", "model", "frames", "run", "speedup", "speedup_basis")}
        for row in results["rows"]
        if row["status"] == OK and row.get("speedup") is not None
    ]
    return {
        "profile": results["profile"],
        "device": results["machine"]["device_name"],
        "cases": len(states),
        "statuses": {state: states.count(state) for state in sorted(set(states))},
        "left": results["left"],
        "not_asked": results["not_asked"],
        "ratios": ratios,
    }
