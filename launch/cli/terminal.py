"""Terminal output shared by the commands: text, width, aligned columns, paths, progress bar.

Commands print by these functions only, because names of files, classes and patients may contain control characters.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from hsadml_dist.printable import json_text, printable, printable_lines

PROGRESS_LINE_SECONDS = 30.0

AsJson = Annotated[bool, Parameter(name="--json", negative="")]


def echo(*lines: str, error: bool = False) -> None:
    """Print each argument as one line on stdout, or on stderr if ``error``; control characters are escaped."""
    _write("".join(f"{printable(line)}\n" for line in lines), error=error)


def echo_coloured(*lines: str) -> None:
    """Print lines with colours, whose foreign parts the caller has escaped by :func:`printable`."""
    _write("".join(f"{line}\n" for line in lines))


def echo_json(value: Any, *, indent: int | None = None) -> None:
    """Print a value as JSON."""
    _write(json_text(value, indent=indent) + "\n")


def echo_file(text: str) -> None:
    """Print the content of a file: escaped on a terminal, otherwise unchanged, because it may be saved again."""
    _write(printable_lines(text) if sys.stdout.isatty() else text)


def _write(text: str, *, error: bool = False) -> None:
    stream = sys.stderr if error else sys.stdout
    encoding = stream.encoding or "utf-8"
    # A terminal of another encoding, such as that of LANG=C, shows escapes instead of an error.
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def terminal_width() -> int | None:
    """Return the width of the terminal; None if stdout is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def align_columns(rows: Sequence[Sequence[str]], left: Collection[int] = ()) -> list[str]:
    """Return the rows as lines with columns aligned to the right, or to the left for the column numbers in ``left``."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = (
        [cell.ljust(width) if place in left else cell.rjust(width) for place, (cell, width) in enumerate(cells)]
        for cells in (zip(row, widths, strict=True) for row in rows)
    )
    return ["  ".join(cells).rstrip() for cells in padded]


def display_path(path: Path) -> str:
    """Return a path, printable, relative to the working directory if it is below it, otherwise absolute."""
    absolute = path.absolute()
    return printable(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)


@contextmanager
def progress(unit: str) -> Iterator[Callable[[int, int], None]]:
    """Provide a callback (done, total) that draws a bar on a terminal, or prints a line every 30 seconds; on stderr."""
    if not sys.stderr.isatty():
        yield _progress_lines(unit)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(unit), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:

        def show(done: int, total: int) -> None:
            if not bar.task_ids:  # no bar for work that turns out to be unnecessary
                bar.add_task(unit)
            bar.update(bar.task_ids[0], completed=done, total=total)

        yield show


def _progress_lines(unit: str) -> Callable[[int, int], None]:
    last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= PROGRESS_LINE_SECONDS:
            last = time.monotonic()
            echo(f"{done} of {total} {unit}", error=True)

    return show
