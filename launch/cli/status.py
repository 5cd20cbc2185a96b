"""``hsadml status``."""

from __future__ import annotations

import json
import math
import shutil
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from hsadml_dist.run.find import discover_runs, find_runs
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.state import format_age
from hsadml_dist.slurm.jobs import JOBS_FILE
from hsadml_dist.slurm.queue import QueueSnapshot, query_queue
from hsadml_dist.slurm.row import StatusRow
from hsadml_dist.slurm.status import read_status

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
