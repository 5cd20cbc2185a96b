"""Record the training on rank 0: metrics, events, ledger, TensorBoard and the progress display."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TextIO

from hsadml_dist.health.heartbeat import AttemptHeartbeat
from hsadml_dist.run.folder import AttemptFolder
from hsadml_dist.run.history import EventLog, EventName
from hsadml_dist.run.jsonl import JsonlWriter
from hsadml_dist.run.rendezvous import RankContext

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


@dataclass(frozen=True, kw_only=True)
class MetricsRow:
    """A row of ``metrics.jsonl``.

    Attributes:
        step: From 1.
        attempt: Who did it.
        epoch: From 0, in which the step begins.
        loss: Mean over the global batch.
        lr: Learning rate of the backbone.
        grad_norm: Norm of the backbone's gradient before clipping.
        samples: Samples of this step, over all ranks.
        step_seconds: Wall time of the step on rank 0, waiting included.
        data_wait_seconds: How much of it rank 0 waited for its batch.
    """

    step: int
    attempt: int
    epoch: int
    loss: float
    lr: float
    grad_norm: float
    samples: int
    step_seconds: float
    data_wait_seconds: float


class Recorder(Protocol):
    """What a training reports as it goes."""

    def event(self, event: EventName, step: int, **detail: Any) -> None:
        """Record that something happened after ``step`` steps."""
        ...

    def begin(self, done: int, total: int) -> None:
        """Show that the steps after ``done`` of ``total`` begin."""
        ...

    def step(self, row: MetricsRow) -> None:
        """Record a step."""
        ...

    def samples(self, step: int, epoch: int, keys: Sequence[str]) -> None:
        """Record the keys of a step's samples, in global order."""
        ...

    def close(self) -> None:
        """Write out and close everything."""
        ...


class NullRecorder:
    """Writes nothing: for all ranks but the first."""

    def event(self, event: EventName, step: int, **detail: Any) -> None:
        """See :class:`Recorder`."""

    def begin(self, done: int, total: int) -> None:
        """See :class:`Recorder`."""

    def step(self, row: MetricsRow) -> None:
        """See :class:`Recorder`."""

    def samples(self, step: int, epoch: int, keys: Sequence[str]) -> None:
        """See :class:`Recorder`."""

    def close(self) -> None:
        """See :class:`Recorder`."""


class FileRecorder:
    """Writes an attempt's rows, its TensorBoard files, its heartbeat and the progress display."""

    def __init__(self, attempt: AttemptFolder, events: EventLog, *, tensorboard: bool) -> None:
        self._attempt = attempt.number
        self._events = events
        self._metrics = JsonlWriter(attempt.metrics)
        self._ledger_path = attempt.ledger
        self._ledger: JsonlWriter | None = None
        self._heartbeat = AttemptHeartbeat(attempt.heartbeat)
        self._progress: ProgressDisplay | None = None
        self._board = _board(attempt) if tensorboard else None

    def event(self, event: EventName, step: int, **detail: Any) -> None:
        """See :class:`Recorder`."""
        self._events.write(event, step, **detail)

    def begin(self, done: int, total: int) -> None:
        """See :class:`Recorder`."""
        self._progress = open_progress_display(sys.stderr, done, total)

    def step(self, row: MetricsRow) -> None:
        """See :class:`Recorder`."""
        self._metrics.write(asdict(row))
        if self._progress is not None:
            self._progress.update(row.step, row.loss, row.samples / row.step_seconds)
        if self._board is not None:
            for name in ("loss", "lr", "grad_norm", "step_seconds", "data_wait_seconds"):
                self._board.add_scalar(f"train/{name}", getattr(row, name), row.step)

    def samples(self, step: int, epoch: int, keys: Sequence[str]) -> None:
        """See :class:`Recorder`."""
        if self._ledger is None:
            self._ledger = JsonlWriter(self._ledger_path)
        self._ledger.write({"step": step, "attempt": self._attempt, "epoch": epoch, "keys": list(keys)})

    def close(self) -> None:
        """See :class:`Recorder`."""
        if self._progress is not None:
            self._progress.close()
        self._heartbeat.close()
        if self._board is not None:
            with suppress(OSError):  # a full disk must not hide why the run ends
                self._board.close()


def open_recorder(context: RankContext, tensorboard: bool) -> Recorder:
    """Return what writes this attempt's records on rank 0, and what writes nothing on the others."""
    if not context.comm.topology.is_rank_zero:
        return NullRecorder()
    events = EventLog(context.attempt, context.holder.job, context.holder.restart)
    return FileRecorder(context.attempt, events, tensorboard=tensorboard)


def _board(attempt: AttemptFolder) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(attempt.tensorboard))
