"""``hsadml status`` and ``hsadml watch``: print the progress of runs, once or until all are over."""

from __future__ import annotations

import json
import math
import shutil
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from hsadml_dist.errors import ExitCode, UsageError
from hsadml_dist.run.folder import RunFolder, discover_runs, find_runs
from hsadml_dist.run.run_state import format_age
from hsadml_dist.slurm.job_queue import QueueSnapshot, query_queue
from hsadml_dist.slurm.job_records import JOBS_FILE
from hsadml_dist.slurm.run_status import StatusRow, read_status

RUNS = Path("runs")
TITLES = ("run", "step", "loss", "samples/s", "seen", "job", "state")
INDENT = "    "
SOON_SECONDS = 60.0


def status(*runs: Path, fresh: bool = False, as_json: Annotated[bool, Parameter(name="--json")] = False) -> None:
    """Show how runs stand, over all their restarts and jobs.

    squeue is asked at most once in 30 seconds, however often this is called.

    Args:
        runs: Run folders, or folders of run folders; by default all under ./runs.
        fresh: Ask squeue now.
        as_json: Print a JSON list with one object a run.
    """
    folders = chosen(runs)
    queue = ask(folders, None, fresh=fresh)
    now = time.time()
    rows = read_status(folders, queue, now)
    if as_json:
        print(json.dumps([row.as_json(now) for row in rows], indent=1))
    else:
        print("\n".join(as_lines(rows, now, terminal_width())) if rows else f"no runs under {RUNS}/")
    for line in remarks(queue, now):
        print(f"hsadml: {line}", file=sys.stderr)


def chosen(runs: Sequence[Path]) -> list[RunFolder]:
    """Return the run folders that a command line names; all under ./runs if it names none.

    Raises:
        UsageError: A folder does not exist or holds no run.
    """
    return find_runs(runs) if runs else list(discover_runs(RUNS))


def ask(runs: Sequence[RunFolder], before: QueueSnapshot | None, *, fresh: bool = False) -> QueueSnapshot | None:
    """Return what squeue says; None where no run was ever handed to Slurm."""
    return query_queue(before, fresh=fresh) if any((run.path / JOBS_FILE).exists() for run in runs) else None


def remarks(queue: QueueSnapshot | None, now: float) -> list[str]:
    """Return what a reader should know of the part that comes from Slurm."""
    if queue is None:
        return []
    if queue.problem is not None:
        old = "" if queue.answered is None else f"; jobs are shown as {format_age(now, queue.answered)} ago"
        return [f"{queue.problem}{old}"]
    if now - queue.asked > 2.0:
        return [f"squeue was asked {format_age(now, queue.asked)} ago; --fresh asks now"]
    return []


def terminal_width() -> int | None:
    """Return the width of the terminal; None where the output goes elsewhere and may be as wide as it likes."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def as_lines(rows: Sequence[StatusRow], now: float, width: int | None) -> list[str]:
    """Return the rows as a table if it fits into ``width``, else as a few lines each; of several also their sum."""
    table = _table(rows, now)
    fits = width is None or all(len(line) <= width for line in table)
    lines = table[:1] if fits else []
    for row, line in zip(rows, table[1:], strict=True):
        lines += [line] if fits else _block(row, now)
        lines += _notes(row, now, width)
    return lines + ([summary(rows)] if len(rows) > 1 else [])


def summary(rows: Sequence[StatusRow]) -> str:
    """Return how many runs stand how."""
    counts = Counter("not started" if row.phase == "empty" else row.phase for row in rows)
    return f"{len(rows)} runs: " + ", ".join(f"{count} {phase}" for phase, count in counts.most_common())


def one_line(row: StatusRow, now: float) -> str:
    """Return a row as one line without columns."""
    return f"{shown(row.run)}: {row.text}, {_figures(row, now)}"


def shown(run: Path) -> str:
    """Return a run's name: as seen from the current directory where that is shorter."""
    whole = run.absolute()
    return str(whole.relative_to(Path.cwd())) if whole.is_relative_to(Path.cwd()) else str(whole)


def _table(rows: Sequence[StatusRow], now: float) -> list[str]:
    cells = [TITLES, *(_cells(row, now) for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(TITLES))]
    return [_aligned(line, widths) for line in cells]


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    first, *numbers, last = line
    middle = (cell.rjust(width) for cell, width in zip(numbers, widths[1:-1], strict=True))
    return "  ".join([first.ljust(widths[0]), *middle, last]).rstrip()


def _cells(row: StatusRow, now: float) -> tuple[str, ...]:
    state = row.state
    rate = state.samples_per_second
    return (
        shown(row.run),
        _step(row),
        "-" if state.loss is None else f"{state.loss:.4f}",
        "-" if rate is None else _rate(rate),
        format_age(now, state.last_sign),
        "-" if row.job is None else row.job.job,
        row.text,
    )


def _block(row: StatusRow, now: float) -> list[str]:
    return [f"{shown(row.run)}: {row.text}", f"{INDENT}{_figures(row, now)}"]


def _figures(row: StatusRow, now: float) -> str:
    _, step, loss, rate, seen, job, _ = _cells(row, now)
    named = (("step", step, ""), ("loss", loss, ""), ("", rate, " samples/s"), ("seen", seen, " ago"), ("job", job, ""))
    return ", ".join(f"{before} {value}{after}".strip() for before, value, after in named if value != "-")


def _notes(row: StatusRow, now: float, width: int | None) -> list[str]:
    told = [line for text in (row.reason, _start(row, now)) if text for line in _wrapped(text, width)]
    # A command that is to be copied must stay in one piece.
    return told + ([INDENT + row.advice] if row.advice else [])


def _wrapped(text: str, width: int | None) -> list[str]:
    if width is None:
        return [INDENT + text]
    lines = textwrap.wrap(text, max(width - len(INDENT), 40), break_long_words=False, break_on_hyphens=False)
    return [INDENT + line for line in lines]


def _start(row: StatusRow, now: float) -> str | None:
    job = row.job if row.phase in ("queued", "stopped") else None
    if job is None or not job.is_pending or (job.start or 0.0) < now + SOON_SECONDS:
        return None
    start = datetime.fromtimestamp(job.start or 0.0)
    form = "%H:%M" if start.date() == datetime.fromtimestamp(now).date() else "%Y-%m-%d %H:%M"
    return f"Slurm expects it to start at {start:{form}}"


def _step(row: StatusRow) -> str:
    total = row.state.total_steps
    return str(row.state.step) if total is None else f"{row.state.step}/{total}"


def _rate(rate: float) -> str:
    digits = max(0, 2 - math.floor(math.log10(rate))) if 0 < rate < 100 else 0
    return f"{rate:.{min(digits, 3)}f}"


EVERY_SECONDS = 2.0
LINE_SECONDS = 30.0
"""Where lines are printed, steps alone bring a new one this often."""


def watch(*runs: Path) -> int:
    """Show how runs stand, again every 2 seconds, until nothing more will happen; squeue is asked every 30 seconds.

    On a terminal the table is drawn in place; elsewhere each line is a run of which something has changed. Exit codes:
    0 all finished, or Ctrl-C; 1 not all.

    Args:
        runs: Run folders, or folders of run folders; by default all under ./runs.
    """
    folders = chosen(runs)
    if not folders:
        raise UsageError(f"no runs under {RUNS}/: name run folders")
    show = _on_terminal if sys.stdout.isatty() else _as_changes
    try:
        rows = show(_looks(folders))
    except KeyboardInterrupt:
        return ExitCode.SUCCESS
    return ExitCode.SUCCESS if all(row.phase == "finished" for row in rows) else ExitCode.USER_ERROR


Snapshot = tuple[Sequence[StatusRow], Sequence[str], float]
"""How the runs stand, remarks, and when."""


def _looks(folders: Sequence[RunFolder], pause: Callable[[float], None] = time.sleep) -> Iterator[Snapshot]:
    """Yield how the runs stand, every 2 seconds until all are over."""
    queue = None
    while True:
        queue = ask(folders, queue)
        now = time.time()
        rows = read_status(folders, queue, now)
        troubles = remarks(queue, now) if queue is not None and queue.problem is not None else []
        yield rows, troubles, now
        if all(row.over for row in rows):
            return
        pause(EVERY_SECONDS)


def _on_terminal(looks: Iterator[Snapshot]) -> Sequence[StatusRow]:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False)
    rows: Sequence[StatusRow] = ()
    with Live(console=console, auto_refresh=False) as live:
        for rows, troubles, now in looks:
            lines = fit_rows(rows, now, console.width, console.height - 2 - len(troubles))
            live.update(Text("\n".join([*lines, *troubles])), refresh=True)
    return rows


def fit_rows(rows: Sequence[StatusRow], now: float, width: int, height: int) -> list[str]:
    """Return the table in at most ``height`` lines: of too many runs those that are over are left out first."""
    lines = as_lines(rows, now, width)
    if len(lines) <= height or len(rows) == 1:
        return lines[: max(height, 1)]
    going = [row for row in rows if not row.over]
    kept = as_lines(going, now, width)[:-1] if len(going) > 1 else as_lines(going, now, width) if going else []
    return [*kept[: max(height - 1, 0)], lines[-1]]


def _as_changes(looks: Iterator[Snapshot]) -> Sequence[StatusRow]:
    rows: Sequence[StatusRow] = ()
    changes = StatusChanges()
    for rows, troubles, now in looks:
        for line in [*changes.lines(rows, now), *changes.remarks(troubles)]:
            print(line, flush=True)
    return rows


class StatusChanges:
    """What of a run was said last, so that only news are said."""

    def __init__(self) -> None:
        self._said: dict[Path, tuple[tuple[str, str | None], float]] = {}
        self._notes: dict[Path, list[str]] = {}
        self._troubles: tuple[str, ...] = ()

    def lines(self, rows: Sequence[StatusRow], now: float) -> list[str]:
        """Return a line for each run that stands otherwise than before, or whose steps were not told for a while."""
        return [line for row in rows for line in self._line(row, now)]

    def remarks(self, troubles: Sequence[str]) -> list[str]:
        """Return the remarks if they are new."""
        # The age of an answer, behind the last semicolon, changes all the time.
        heads = tuple(text.rpartition("; ")[0] or text for text in troubles)
        if heads == self._troubles:
            return []
        self._troubles = heads
        return [f"hsadml: {text}" for text in troubles]

    def _line(self, row: StatusRow, now: float) -> list[str]:
        # "silent for 70 s" changes with every look.
        what = (row.phase if row.phase in ("silent", "lost") else row.text, None if row.job is None else row.job.job)
        before, told = self._said.get(row.run, (None, 0.0))
        if before == what and (row.over or now < told + LINE_SECONDS):
            return []
        self._said[row.run] = (what, now)
        notes = [text for text in (row.reason, row.advice) if text]
        news = [text for text in notes if text not in self._notes.get(row.run, ())]
        self._notes[row.run] = notes
        stamp = f"{datetime.fromtimestamp(now):%H:%M:%S}"
        return [f"{stamp} {one_line(row, now)}", *(f"{stamp} {shown(row.run)}: {text}" for text in news)]
