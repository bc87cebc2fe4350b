"""`accel calibrate`: the rates of a device, measured in less than a minute, beside the table's entry for its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from accel.errors import AccelError

if TYPE_CHECKING:  # --help does not wait for torch
    import torch

SIZES = ("vggt-1b", "testbed")
FIELDS = (  # field, unit of the table, its size
    ("linear", "TFLOP/s", 1e12),
    ("attention", "TFLOP/s", 1e12),
    ("convolution", "TFLOP/s", 1e12),
    ("bandwidth", "GB/s", 1e9),
    ("launch", "ms", 1e-3),
    ("overhead", "ms", 1e-3),
)


def calibrate(
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ..., or auto.")] = "auto",
    sizes: Annotated[str, typer.Option(help='Whose layers to time: "vggt-1b" or "testbed".')] = "vggt-1b",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write the rates to this JSON file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the file instead of the table.")] = False,
) -> None:
    """Measure what the cost model needs to know of a device: some seconds, less than a minute."""
    if sizes not in SIZES:
        raise AccelError(f'sizes="{sizes}" is unknown; use one of {", ".join(SIZES)}')
    if out is not None:  # what cannot be written is said before anything is measured
        _writable(out)
    record = measure(device, sizes)
    text = json.dumps(record, indent=1) + "\n"
    if out is not None:
        out.write_text(text)
    if as_json:
        typer.echo(text, nl=False)
        return
    from rich.console import Console

    Console().print(comparison(record))
    for note in record["notes"]:
        typer.echo(f"note: {note}")


def measure(device: str, sizes: str = "vggt-1b") -> dict[str, Any]:
    """{"device": the measured `Device`, "entry": the table's for that name or None, "notes", "provenance"}.

    AccelError for a device that is not there.
    """
    import torch

    from accel.cost import Device
    from accel.devices import load_table, table_entry
    from accel.models.config import TESTBED, VGGT_1B
    from accel.provenance import provenance
    from accel.run import choose_device

    where = choose_device(device)
    dtype, notes = _dtype(where)
    config = VGGT_1B if sizes == "vggt-1b" else TESTBED
    entry = None
    if where.type == "cuda":
        notes += _no_compiler()
        gpu = table_entry(torch.cuda.get_device_name(where))
        if gpu is not None:
            entry = gpu.device(load_table()[0], config.embed_dim).to_dict() | {"source": gpu.source}
    found = Device.measure(where, config=config, dtype=dtype)
    return {
        "device": found.to_dict(),
        "sizes": sizes,
        "entry": entry,
        "notes": notes,
        "provenance": provenance(device=where, dtype=dtype) | {"threads": torch.get_num_threads()},
    }


def _writable(path: Path) -> None:
    """Make the folder of a file; AccelError where the file cannot be written. A file that is there stays as it is."""
    new = not path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a"):
            pass
        if new:
            path.unlink()
    except OSError as error:
        raise AccelError(f"out={path} cannot be written ({error.strerror}); give the path of a file") from error


def comparison(record: dict[str, Any]) -> Any:
    """The measured rates beside the table's entry, as a rich table."""
    from rich.table import Table

    found, entry = record["device"], record["entry"]
    table = Table(title=f"{found['name']}, layers of {record['sizes']}")
    for name in ("rate", "measured", "table", "measured / table"):
        table.add_column(name, justify="left" if name == "rate" else "right")
    for field, unit, size in FIELDS:
        ours = found[field] / size
        if entry is None:
            table.add_row(field, f"{ours:.4g} {unit}", "-", "-")
        else:
            theirs = entry[field] / size
            ratio = f"{ours / theirs:.2f}" if theirs else "-"
            table.add_row(field, f"{ours:.4g} {unit}", f"{theirs:.4g} {unit}", ratio)
    table.caption = "the table has no entry for this device" if entry is None else f"table: {entry['source']}"
    return table


def _dtype(where: torch.device) -> tuple[torch.dtype, list[str]]:
    """float32 on a CPU; on a GPU bfloat16, or float16 with a note where that is not supported."""
    import torch

    if where.type == "cpu":
        return torch.float32, []
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16, []
    return torch.float16, ["this GPU has no bfloat16; measured in float16"]


def _no_compiler() -> list[str]:
    """A note where flex_attention cannot be compiled, which the cost of block-sparse attention on CUDA assumes."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return ["no triton: flex_attention cannot be compiled, block-sparse attention gathers its keys and is slower"]
    return []
