"""How far a training is: a bar on a terminal, a plain line each 30 seconds elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Protocol, TextIO

LINE_SECONDS = 30.0


class ProgressDisplay(Protocol):
    """Shows the state of a long work."""

    def update(self, step: int, loss: float, rate: float) -> None:
        """Show that ``step`` is done, with its loss and the samples per second."""
        ...

    def close(self) -> None:
        """Leave the display in order."""
        ...


def open_progress_display(stream: TextIO, first: int, total: int) -> ProgressDisplay:
    """Return the display that suits the stream; ``first`` steps were done before."""
    return BarProgress(first, total) if stream.isatty() else LineProgress(stream, total)


class LineProgress:
    """A plain line each 30 seconds, for logs."""

    def __init__(self, stream: TextIO = sys.stderr, total: int = 0) -> None:
        self._stream, self._total = stream, total
        self._next = time.monotonic() + LINE_SECONDS

    def update(self, step: int, loss: float, rate: float) -> None:
        """See :class:`ProgressDisplay`."""
        now = time.monotonic()
        if now < self._next and step != self._total:
            return
        self._next = now + LINE_SECONDS
        self._stream.write(f"step {step}/{self._total}  loss {loss:.4f}  {rate:.0f} samples/s\n")
        self._stream.flush()

    def close(self) -> None:
        """See :class:`ProgressDisplay`."""


class BarProgress:
    """A bar, for terminals."""

    def __init__(self, first: int, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task("training", total=total, completed=first, note="")
        self._bar.start()

    def update(self, step: int, loss: float, rate: float) -> None:
        """See :class:`ProgressDisplay`."""
        self._bar.update(self._task, completed=step, note=f"loss {loss:.4f}  {rate:.0f} samples/s")

    def close(self) -> None:
        """See :class:`ProgressDisplay`."""
        self._bar.stop()
