"""``hsadml watch``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

from hsadml_dist.errors import ExitCode, UsageError
from hsadml_dist.launch.cli.status import RUNS, as_lines, ask, chosen, one_line, remarks, shown
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.slurm.row import StatusRow
from hsadml_dist.slurm.status import read_status

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
