"""``hsadml status`` and ``hsadml watch``: print the progress of runs, once or until all have ended."""

from __future__ import annotations

import math
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from hsadml_dist.errors import ExitCode, UsageError
from hsadml_dist.launch.cli.terminal import AsJson, align_columns, display_path, echo, echo_json, terminal_width
from hsadml_dist.printable import printable
from hsadml_dist.run.folder import RunFolder, discover_runs, find_runs
from hsadml_dist.run.run_state import format_age, format_seconds
from hsadml_dist.slurm.job_queue import QueueSnapshot, query_queue
from hsadml_dist.slurm.job_records import JOBS_FILE
from hsadml_dist.slurm.run_status import StatusRow, read_status

RUNS = Path("runs")
TITLES = ("run", "step", "loss", "samples/s", "elapsed", "left", "accuracy", "seen", "job", "nodes", "state")
ALWAYS_SHOWN = ("run", "step", "state")
"""Columns of the table that are shown even if they are empty."""
INDENT = "    "
SOON_SECONDS = 60.0
RECENT_SECONDS = 2.0
WATCH_SECONDS = 2.0
CHANGE_LINE_SECONDS = 30.0
"""Shortest time between two lines about a run of which only the step has changed."""


def status(*runs: Path, fresh: bool = False, as_json: AsJson = False) -> None:
    """Show the progress of runs over all their restarts and jobs.

    squeue is called at most once in 30 seconds, however often you repeat this command.

    Args:
        runs: Run folders, or folders of run folders; by default all under ./runs.
        fresh: Call squeue now.
        as_json: Print a JSON list with one object per run.
    """
    folders = select_runs(runs)
    queue = query_queue_for(folders, None, fresh=fresh)
    now = time.time()
    rows = read_status(folders, queue, now)
    if as_json:
        echo_json([row.as_json(now) for row in rows], indent=1)
    else:
        echo(*format_rows(rows, now, terminal_width()) if rows else [f"no runs under {RUNS}/"])
    for line in queue_remarks(queue, now):
        echo(f"hsadml: {line}", error=True)


def watch(*runs: Path) -> int:
    """Show the progress of runs every 2 seconds until all have ended. squeue is called every 30 seconds.

    On a terminal the table is updated in place; otherwise a line is printed for each run that has changed. Exit codes:
    0 all runs finished, or Ctrl-C; 1 some did not finish.

    Args:
        runs: Run folders, or folders of run folders; by default all under ./runs.
    """
    folders = select_runs(runs)
    if not folders:
        raise UsageError(f"no runs under {RUNS}/: name run folders")
    show = _draw_in_place if sys.stdout.isatty() else _print_changes
    try:
        rows = show(poll_status(folders))
    except KeyboardInterrupt:
        return ExitCode.SUCCESS
    return ExitCode.SUCCESS if all(row.phase == "finished" for row in rows) else ExitCode.USER_ERROR


def select_runs(runs: Sequence[Path]) -> list[RunFolder]:
    """Return the run folders named on the command line, or all under ./runs.

    Raises:
        UsageError: A folder does not exist or contains no run.
    """
    return find_runs(runs) if runs else list(discover_runs(RUNS))


def query_queue_for(
    runs: Sequence[RunFolder], before: QueueSnapshot | None, *, fresh: bool = False
) -> QueueSnapshot | None:
    """Return the queue; None if no run was ever submitted to Slurm."""
    return query_queue(before, fresh=fresh) if any((run.path / JOBS_FILE).exists() for run in runs) else None


def queue_remarks(queue: QueueSnapshot | None, now: float) -> list[str]:
    """Return what to report about the queue: why squeue failed, or how old its answer is."""
    if queue is None:
        return []
    if queue.problem is not None:
        old = "" if queue.answered is None else f"; jobs are shown as {format_age(now, queue.answered)} ago"
        return [f"{queue.problem}{old}"]
    if now - queue.asked > RECENT_SECONDS:
        return [f"squeue was called {format_age(now, queue.asked)} ago; --fresh calls it now"]
    return []


def format_rows(rows: Sequence[StatusRow], now: float, width: int | None) -> list[str]:
    """Return the rows as a table, or as a block of lines each if the table does not fit; several rows get a summary.

    Args:
        now: The time, in seconds since 1970 UTC.
        width: Columns of the terminal; None means no limit.
    """
    table = _align([TITLES, *(_cells(row, now) for row in rows)])
    fits = width is None or all(len(line) <= width for line in table)
    lines = table[:1] if fits else []
    for row, line in zip(rows, table[1:], strict=True):
        lines += [line] if fits else [f"{display_path(row.run)}: {row.text}", *_wrap(_format_figures(row, now), width)]
        lines += _notes(row, now, width)
    return lines + ([summarize(rows)] if len(rows) > 1 else [])


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return title and rows as aligned lines, without the columns that are empty."""
    columns = list(zip(*rows, strict=True))
    kept = [one for one in columns if one[0] in ALWAYS_SHOWN or any(cell != "-" for cell in one[1:])]
    return align_columns(list(zip(*kept, strict=True)), left=(0, len(kept) - 1))


def summarize(rows: Sequence[StatusRow]) -> str:
    """Return the number of runs in each phase."""
    counts = Counter("not started" if row.phase == "empty" else row.phase for row in rows)
    return f"{len(rows)} runs: " + ", ".join(f"{count} {phase}" for phase, count in counts.most_common())


@dataclass(frozen=True)
class Snapshot:
    """The status of all watched runs at one time.

    Attributes:
        queue: The queue; None if no run was ever submitted to Slurm.
        now: The time, in seconds since 1970 UTC.
    """

    rows: Sequence[StatusRow]
    queue: QueueSnapshot | None
    now: float

    @property
    def problems(self) -> list[str]:
        """Why the queue is not up to date."""
        return queue_remarks(self.queue, self.now) if self.queue is not None and self.queue.problem is not None else []


def poll_status(folders: Sequence[RunFolder]) -> Iterator[Snapshot]:
    """Yield the status of the runs every two seconds until all have ended."""
    queue = None
    while True:
        queue = query_queue_for(folders, queue)
        now = time.time()
        rows = read_status(folders, queue, now)
        yield Snapshot(rows, queue, now)
        if all(row.over for row in rows):
            return
        time.sleep(WATCH_SECONDS)


def fit_rows(rows: Sequence[StatusRow], now: float, width: int, height: int) -> list[str]:
    """Return the table in at most ``height`` lines. If there are too many runs, those that have ended are omitted."""
    lines = format_rows(rows, now, width)
    if len(lines) <= height or len(rows) == 1:
        return lines[: max(height, 1)]
    active = [row for row in rows if not row.over]
    kept = format_rows(active, now, width) if active else []
    return [*kept[: len(kept) - (len(active) > 1)][: max(height - 1, 0)], lines[-1]]


class StatusChanges:
    """Remembers what was printed about each run, so that only changes are printed."""

    def __init__(self) -> None:
        self._printed: dict[Path, tuple[tuple[str, str | None], float]] = {}
        self._notes: dict[Path, list[str]] = {}
        self._problem: str | None = None

    def lines(self, snapshot: Snapshot) -> list[str]:
        """Return lines about the runs that have changed, and about a new problem with the queue."""
        lines = [line for row in snapshot.rows for line in self._row_lines(row, snapshot.now)]
        problem = None if snapshot.queue is None else snapshot.queue.problem
        if problem != self._problem:
            self._problem = problem
            lines += [f"hsadml: {text}" for text in snapshot.problems]
        return lines

    def _row_lines(self, row: StatusRow, now: float) -> list[str]:
        # "silent for 70 s" changes with every poll.
        text = row.phase if row.phase in ("silent", "lost") else row.text
        state = (text, None if row.job is None else row.job.job)
        before, printed_at = self._printed.get(row.run, (None, 0.0))
        if before == state and (row.over or now < printed_at + CHANGE_LINE_SECONDS):
            return []
        self._printed[row.run] = (state, now)
        notes = [text for text in (row.reason, row.advice) if text]
        new_notes = [text for text in notes if text not in self._notes.get(row.run, ())]
        self._notes[row.run] = notes
        stamp, name = f"{datetime.fromtimestamp(now):%H:%M:%S}", display_path(row.run)
        return [
            f"{stamp} {name}: {row.text}, {_format_figures(row, now)}",
            *(f"{stamp} {name}: {text}" for text in new_notes),
        ]


def _draw_in_place(snapshots: Iterator[Snapshot]) -> Sequence[StatusRow]:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False)
    rows: Sequence[StatusRow] = ()
    with Live(console=console, auto_refresh=False) as live:
        for snapshot in snapshots:
            rows, problems = snapshot.rows, snapshot.problems
            lines = fit_rows(rows, snapshot.now, console.width, console.height - 2 - len(problems))
            live.update(Text("\n".join(map(printable, [*lines, *problems]))), refresh=True)
    return rows


def _print_changes(snapshots: Iterator[Snapshot]) -> Sequence[StatusRow]:
    rows: Sequence[StatusRow] = ()
    changes = StatusChanges()
    for snapshot in snapshots:
        rows = snapshot.rows
        for line in changes.lines(snapshot):
            echo(line)
    return rows


def _cells(row: StatusRow, now: float) -> tuple[str, ...]:
    state = row.state
    return (
        display_path(row.run),
        str(state.step) if state.total_steps is None else f"{state.step}/{state.total_steps}",
        "-" if state.loss is None else f"{state.loss:.4f}",
        "-" if state.samples_per_second is None else _format_rate(state.samples_per_second),
        format_seconds(state.elapsed_seconds),
        format_seconds(state.left_seconds),
        "-" if state.knn_accuracy is None else f"{state.knn_accuracy:.1%}",
        "-" if row.phase == "finished" else format_age(now, state.last_sign),
        "-" if row.job is None else row.job.job,
        "-" if row.job is None else row.job.nodes or "-",
        row.text,
    )


def _format_figures(row: StatusRow, now: float) -> str:
    cells = dict(zip(TITLES, _cells(row, now), strict=True))
    forms = {"samples/s": "{} samples/s", "left": "{} left", "seen": "seen {} ago", "nodes": "on {}"}
    shown = [name for name in TITLES[1:-1] if cells[name] != "-"]
    return ", ".join(forms.get(name, f"{name} {{}}").format(cells[name]) for name in shown)


def _notes(row: StatusRow, now: float, width: int | None) -> list[str]:
    wrapped = [line for text in (row.reason, _expected_start(row, now)) if text for line in _wrap(text, width)]
    # A command to be copied must stay on one line.
    return wrapped + ([INDENT + row.advice] if row.advice else [])


def _wrap(text: str, width: int | None) -> list[str]:
    if width is None:
        return [INDENT + text]
    lines = textwrap.wrap(text, max(width - len(INDENT), 40), break_long_words=False, break_on_hyphens=False)
    return [INDENT + line for line in lines]


def _expected_start(row: StatusRow, now: float) -> str | None:
    job = row.job if row.phase in ("queued", "stopped") else None
    if job is None or not job.is_pending or (job.start or 0.0) < now + SOON_SECONDS:
        return None
    start = datetime.fromtimestamp(job.start or 0.0)
    form = "%H:%M" if start.date() == datetime.fromtimestamp(now).date() else "%Y-%m-%d %H:%M"
    return f"Slurm expects it to start at {start:{form}}"


def _format_rate(rate: float) -> str:
    digits = max(0, 2 - math.floor(math.log10(rate))) if 0 < rate < 100 else 0
    return f"{rate:.{min(digits, 3)}f}"
