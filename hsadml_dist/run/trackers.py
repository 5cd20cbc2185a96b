"""Record a training on rank 0: metrics, events and ledger as rows, TensorBoard, the progress display, and rank logs.

To add a tracker (MLflow, Weights & Biases), write a :class:`Tracker` and append it in :class:`FileRecorder`.
"""

from __future__ import annotations

import faulthandler
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from hsadml_dist.printable import PrintableFormatter
from hsadml_dist.run.folder import AttemptFolder
from hsadml_dist.run.history import EventLog, EventName, StopReason, stop_event_details
from hsadml_dist.run.jsonl import JsonlWriter
from hsadml_dist.run.rendezvous import RankContext

LINE_SECONDS = 30.0
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
WARNED_EVENTS = ("code_changed", "evaluation_refused", "fell_back", "network", "report_failed", "skipped", "straggler")
"""Events of which the trainer logs a line of its own."""
TENSORBOARD_METRICS = ("loss", "lr", "grad_norm", "step_seconds", "data_wait_seconds")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MetricsRow:
    """A row of ``metrics.jsonl``.

    Attributes:
        step: Step number, from 1.
        epoch: Epoch in which the step begins, from 0.
        loss: Mean over the global batch.
        lr: Learning rate of the backbone.
        grad_norm: Norm of the backbone's gradient before clipping.
        samples: Samples of this step, over all ranks.
        step_seconds: Wall time of the step on rank 0, including waits.
        data_wait_seconds: Time that rank 0 waited for its batch.
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


class Tracker:
    """Interface that receives the metrics of every step."""

    def log(self, row: MetricsRow) -> None:
        """Log a completed step."""
        raise NotImplementedError

    def close(self) -> None:
        """Flush and close."""


class ProgressLines(Tracker):
    """Print a plain line every 30 seconds and at the end, for logs."""

    def __init__(self, stream: TextIO = sys.stderr, total: int = 0) -> None:
        self._stream, self._total = stream, total
        self._next = time.monotonic() + LINE_SECONDS

    def log(self, row: MetricsRow) -> None:
        now = time.monotonic()
        if now < self._next and row.step != self._total:
            return
        self._next = now + LINE_SECONDS
        self._stream.write(f"step {row.step}/{self._total}  {_loss_and_rate(row)}\n")
        self._stream.flush()


class ProgressBar(Tracker):
    """Show a progress bar on a terminal."""

    def __init__(self, completed: int, total: int) -> None:
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
        self._task = self._bar.add_task("training", total=total, completed=completed, note="")
        self._bar.start()

    def log(self, row: MetricsRow) -> None:
        self._bar.update(self._task, completed=row.step, note=_loss_and_rate(row))

    def close(self) -> None:
        self._bar.stop()


class TensorBoardTracker(Tracker):
    """Write the metrics as TensorBoard scalars."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def log(self, row: MetricsRow) -> None:
        for name in TENSORBOARD_METRICS:
            self._writer.add_scalar(f"train/{name}", getattr(row, name), row.step)

    def close(self) -> None:
        with suppress(OSError):  # a full disk must not hide why the run ends
            self._writer.close()


class Recorder:
    """Interface of a training's records; this base class writes nothing and serves all ranks but rank 0."""

    def event(self, event: EventName, step: int, **detail: Any) -> None:
        """Record an event; ``step`` is the last completed one."""

    def stopped(self, step: int, reasons: Sequence[StopReason | None]) -> None:
        """Record a stop after ``step``, with the stop reason of each rank (None for a rank without one)."""

    def begin(self, completed: int, total: int) -> None:
        """Start the progress display at ``completed`` of ``total`` steps."""

    def step(self, row: MetricsRow) -> None:
        """Record the metrics of a step."""

    def samples(self, step: int, epoch: int, keys: Sequence[str]) -> None:
        """Record the keys of a step's samples, in global order."""

    def close(self) -> None:
        """Flush and close everything."""


class FileRecorder(Recorder):
    """Write an attempt's rows and pass its metrics on to the trackers."""

    def __init__(self, attempt: AttemptFolder, events: EventLog, *, tensorboard: bool) -> None:
        self._attempt = attempt
        self._events = events
        self._metrics = JsonlWriter(attempt.metrics)
        self._ledger: JsonlWriter | None = None
        self._trackers: list[Tracker] = [TensorBoardTracker(attempt.tensorboard)] if tensorboard else []

    def event(self, event: EventName, step: int, **detail: Any) -> None:
        self._events.write(event, step, **detail)
        if event not in WARNED_EVENTS:
            log.info("%s", describe_event(event, step, detail))

    def stopped(self, step: int, reasons: Sequence[StopReason | None]) -> None:
        self.event("signal", step, **stop_event_details(reasons))
        self.event("stopped", step, final=StopReason.STOP_FILE in reasons)

    def begin(self, completed: int, total: int) -> None:
        self._trackers.append(open_progress_display(sys.stderr, completed, total))

    def step(self, row: MetricsRow) -> None:
        self._metrics.write(asdict(row))
        for tracker in self._trackers:
            tracker.log(row)

    def samples(self, step: int, epoch: int, keys: Sequence[str]) -> None:
        if self._ledger is None:
            self._ledger = JsonlWriter(self._attempt.ledger)
        self._ledger.write({"step": step, "attempt": self._attempt.number, "epoch": epoch, "keys": list(keys)})

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


def open_recorder(context: RankContext, tensorboard: bool) -> Recorder:
    """Return the recorder of this rank: rank 0 writes, the others do not."""
    if not context.comm.topology.is_rank_zero:
        return Recorder()
    events = EventLog(context.attempt, context.holder.job, context.holder.restart)
    return FileRecorder(context.attempt, events, tensorboard=tensorboard)


def open_progress_display(stream: TextIO, completed: int, total: int) -> Tracker:
    """Return a bar for a terminal and plain lines for any other stream."""
    return ProgressBar(completed, total) if stream.isatty() else ProgressLines(stream, total)


def configure_rank_logging(attempt: AttemptFolder, rank: int) -> None:
    """Send this process's log records, and its stacks if it crashes, to the rank's log file.

    Rank 0 also prints warnings to its standard error.
    """
    path = attempt.log(rank)
    path.parent.mkdir(exist_ok=True)
    handler = logging.StreamHandler(path.open("a", encoding="utf-8"))
    handler.setFormatter(PrintableFormatter(LOG_FORMAT))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    if rank == 0:
        console = logging.StreamHandler()
        console.setLevel(logging.WARNING)
        console.setFormatter(PrintableFormatter("hsadml: %(message)s"))
        root.addHandler(console)
    faulthandler.enable(file=handler.stream)


def describe_event(event: str, step: int, detail: Mapping[str, Any]) -> str:
    """Return an event as a line of a log: its name, the last completed step, and its details."""
    return " ".join([f"{event}: step {step}", *(f"{key}={value}" for key, value in detail.items())])


def _loss_and_rate(row: MetricsRow) -> str:
    return f"loss {row.loss:.4f}  {row.samples / row.step_seconds:.0f} samples/s"
