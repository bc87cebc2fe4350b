"""What the commands share: their options, how bad input ends, and what is printed.

Exit codes: 0 done; 2 bad input, with one line "error: ..." on stderr that names the remedy; 130 interrupted.
Tables and JSON go to stdout, progress and errors to stderr.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from accel.errors import AccelError

Weights = Annotated[str, typer.Option(help='"testbed" (bundled), a hub id such as facebook/VGGT-1B, or a checkpoint.')]
Budget = Annotated[str | None, typer.Option(help='Speed-up of the whole model, such as "2x"; not with --tolerance.')]
Tolerance = Annotated[
    str | None,
    typer.Option(help="Relative output difference to stay within, such as 0.02 (the default without --budget)."),
]
DeviceName = Annotated[str, typer.Option("--device", help="cpu, cuda, or auto.")]
DType = Annotated[str, typer.Option(help="float32, bfloat16, or auto: bfloat16 on a GPU that has it.")]
Memory = Annotated[str | None, typer.Option(help='Memory to stay within, such as "12GB"; default: what is free.')]
AsJson = Annotated[bool, typer.Option("--json", help="Print the numbers as JSON on stdout.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results; made if need be.")]


def integer(text: str | int) -> int:
    """An option's whole number; its error names the value, which typer's does not."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f'"{str(text)[:60]}" is not an integer; give one such as 8') from None


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose bad input ends in one line on stderr and exit code 2, and an interrupt in 130."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except AccelError as error:
            raise refuse(str(error)) from None
        except OSError as error:
            raise refuse(f"{error}; check the path, its permissions and the space left") from None
        except (MemoryError, RuntimeError) as error:
            from accel.patch import out_of_memory

            if not out_of_memory(error):
                raise
            raise refuse("out of memory; give fewer --frames, or --no-dense") from None
        except KeyboardInterrupt:
            typer.echo("interrupted; the same command resumes from the stages that are complete", err=True)
            raise typer.Exit(130) from None

    return wrapper


def refuse(message: str) -> typer.Exit:
    """One line on stderr and exit code 2."""
    typer.echo("error: " + " ".join(message.split()), err=True)
    return typer.Exit(2)


def print_table(columns: tuple[str, ...], rows: list[tuple[str, ...]], *, left: tuple[int, ...] = (1,)) -> None:
    """A table on stdout; left: the columns that are text."""
    table = Table()
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i in left else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def print_json(data: Any) -> None:
    """JSON on stdout; arrays as lists."""
    typer.echo(json.dumps(data, indent=1, default=lambda x: x.tolist() if hasattr(x, "tolist") else str(x)))
