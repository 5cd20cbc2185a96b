"""``hsadml logs``, ``hsadml metrics`` and ``hsadml checkpoint``: print what a run has logged and recorded."""

from __future__ import annotations

import contextlib
import datetime
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from hsadml_dist.errors import UsageError
from hsadml_dist.launch.cli.cmd_status import query_queue_for
from hsadml_dist.launch.cli.terminal import AsJson, align_columns, echo, echo_json
from hsadml_dist.printable import printable, printable_lines
from hsadml_dist.run.folder import AttemptFolder, RunFolder, find_runs
from hsadml_dist.run.history import merged_events, merged_metrics
from hsadml_dist.slurm.job_queue import QueueSnapshot
from hsadml_dist.slurm.job_records import job_output_paths, read_job_records
from hsadml_dist.slurm.run_status import StatusRow, read_status

POLL_SECONDS = 0.5
STATUS_SECONDS = 2.0
"""Interval at which a follower checks whether the run has ended."""
CHUNK_BYTES = 1 << 20
MAX_TIME = datetime.datetime(9999, 1, 1).timestamp()

STEP_COLUMNS = ("step", "attempt", "epoch", "loss", "lr", "grad_norm", "samples", "step_seconds", "data_wait_seconds")
EVENT_COLUMNS = ("time", "attempt", "step", "event", "job", "restart")

checkpoint_app = App(name="checkpoint", help="Inspect the checkpoints of a run.")


def logs(
    run: Path,
    /,
    *,
    follow: Annotated[bool, Parameter(name=["--follow", "-f"])] = False,
    rank: int = 0,
    attempt: int | None = None,
    output: bool = False,
) -> None:
    """Print the log of a rank in the newest attempt; before the first attempt, the output of the job.

    The log of rank 0 has machine, data, model, checkpoints, resumes, stops and the result. The output of a Slurm job
    (--output) has a line with the step every 30 seconds.

    Args:
        run: The run folder.
        follow: Keep printing, over restarts, until the run has ended; Ctrl-C stops it.
        rank: The rank; rank 0 logs what concerns all ranks.
        attempt: The attempt; with -f, the first attempt to print. By default the newest.
        output: Print the output of the newest job instead of a rank's log.
    """
    folder = _single_run(run)
    if rank < 0:
        raise UsageError(f"--rank {rank}: at least 0")
    numbers = [one.number for one in folder.attempts()]
    if attempt is not None and attempt not in numbers:
        known = f"has the attempts 1 to {numbers[-1]}" if numbers else "has no attempt yet"
        raise UsageError(f"--attempt {attempt}: {folder.path} {known}")
    if attempt is not None and output:
        raise UsageError("--attempt and --output exclude each other: the output of a job is not split by attempts")
    if not follow:
        _print_once(folder, rank, attempt, output)
        return
    with contextlib.suppress(KeyboardInterrupt):
        LogFollower(folder, rank, attempt, output).follow()


def metrics(run: Path, /, *, events: bool = False, as_json: AsJson = False) -> None:
    """Print the steps of a run, one row per step. Of a step that was repeated, only the last attempt counts.

    Args:
        run: The run folder.
        events: Print events (starts, checkpoints, stops, fallbacks) instead of steps.
        as_json: Print a JSON list with all fields.
    """
    folder = _single_run(run).path
    rows = merged_events(folder) if events else merged_metrics(folder)
    if as_json:
        echo_json(rows, indent=1)
    else:
        echo(*format_table(rows, EVENT_COLUMNS if events else STEP_COLUMNS))


@checkpoint_app.command
def digest(run: Path, /, *, step: int | None = None) -> None:
    """Print the SHA-256 of a checkpoint's state. It does not depend on attempts or the number of ranks.

    Args:
        run: The run folder.
        step: The step of the checkpoint; by default the newest. A damaged checkpoint is an error.
    """
    folder = _single_run(run).path
    from hsadml_dist.checkpoint.digest import run_digest

    echo(run_digest(folder, step))


def format_table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> list[str]:
    """Return the rows as aligned lines below a header, without columns that are empty in all rows."""
    rows = list(rows)
    shown = [name for name in columns if any(row.get(name) is not None for row in rows)] or list(columns)
    return align_columns([shown, *([_format_value(name, row.get(name)) for name in shown] for row in rows)])


def find_outputs(folder: RunFolder) -> list[Path]:
    """Return the output files of a run's jobs, newest last; those of an array are next to the run folders."""
    found = [path for row in read_job_records(folder) for path in job_output_paths(folder, row.job) if path.is_file()]
    return found or sorted(folder.path.glob("slurm-*.out"), key=lambda path: path.stat().st_mtime)


class LogPrinter:
    """Writes files to stdout, on a terminal with control characters escaped, and titles on lines of their own."""

    def __init__(self) -> None:
        self._out = sys.stdout.buffer
        self._is_terminal = sys.stdout.isatty()
        self._at_line_start = True

    def print_from(self, path: Path, start: int) -> int:
        """Print a file from byte ``start`` and return the position of its end. A missing file counts as empty."""
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            file.seek(start)
            while chunk := file.read(CHUNK_BYTES):
                self._out.write(self._shown(chunk))
                self._at_line_start = chunk.endswith(b"\n")
                start += len(chunk)
        self._out.flush()
        return start

    def print_title(self, text: str) -> None:
        """Print a title."""
        start = "" if self._at_line_start else "\n"
        self._out.write(f"{start}-- {printable(text)} --\n".encode())
        self._out.flush()
        self._at_line_start = True

    def _shown(self, chunk: bytes) -> bytes:
        if not self._is_terminal:
            return chunk
        # A character that a chunk cuts in two is shown as escapes too.
        return printable_lines(chunk.decode("utf-8", "backslashreplace")).encode()


class LogFollower:
    """Prints what is appended to a run's logs, attempt after attempt, or to the output of its jobs, job after job."""

    def __init__(self, folder: RunFolder, rank: int, first_attempt: int | None, output: bool) -> None:
        self._folder, self._rank, self._first_attempt, self._output = folder, rank, first_attempt, output
        self._printer = LogPrinter()
        self._part: tuple[str, Path] | None = None
        self._position = 0
        self._queue: QueueSnapshot | None = None

    def follow(self) -> None:
        """Print until the run has ended."""
        for row in self._poll_status():
            # After the status was read, so that everything written before the end is printed.
            self._print_rest()
            for part in self._new_parts():
                # The previous part is complete, but may have grown since it was read.
                self._print_rest()
                self._part, self._position = part, 0
                self._printer.print_title(part[0])
                self._print_rest()
            if row is not None and row.over:
                self._printer.print_title(f"{row.text}: {row.reason}" if row.reason else row.text)
                return
            time.sleep(POLL_SECONDS)

    def _poll_status(self) -> Iterator[StatusRow | None]:
        """Yield the status of the run every two seconds, and None in between."""
        due = 0.0
        while True:
            if time.monotonic() < due:
                yield None
                continue
            due = time.monotonic() + STATUS_SECONDS
            self._queue = query_queue_for([self._folder], self._queue)
            yield read_status([self._folder], self._queue, time.time())[0]

    def _print_rest(self) -> None:
        if self._part is not None:
            self._position = self._printer.print_from(self._part[1], self._position)

    def _new_parts(self) -> list[tuple[str, Path]]:
        """Return titles and files after the current one; at the start the newest, or from the chosen attempt on."""
        attempts = self._folder.attempts()
        if self._output or not attempts:
            parts = [(path.name, path) for path in find_outputs(self._folder)]
        else:
            first = self._first_attempt or (attempts[-1].number if self._part is None else 1)
            parts = [(f"attempt {one.number}", one.log(self._rank)) for one in attempts if one.number >= first]
        if self._part in parts:
            return parts[parts.index(self._part) + 1 :]
        return parts[-1:] if self._output or not attempts else parts


def _single_run(run: Path) -> RunFolder:
    found = find_runs([run])
    if len(found) > 1:
        names = ", ".join(one.path.name for one in found[:3])
        raise UsageError(f"run folder {run}: contains {len(found)} runs ({names}, ...); name one of them")
    return found[0]


def _print_once(folder: RunFolder, rank: int, number: int | None, output: bool) -> None:
    attempts = folder.attempts()
    if output or not attempts:
        paths = find_outputs(folder)
        if not paths:
            problem = "no Slurm job of it has printed anything" if output else "not started yet, so there is no log"
            raise UsageError(f"run folder {folder.path}: {problem}")
        LogPrinter().print_from(paths[-1], 0)
        return
    attempt = attempts[-1] if number is None else folder.attempt(number)
    path = attempt.log(rank)
    if not path.is_file():
        raise UsageError(f"--rank {rank}: {_describe_ranks(attempt)}")
    if LogPrinter().print_from(path, 0) == 0:
        hint = "; --output prints the output of the job" if find_outputs(folder) else ""
        echo(f"hsadml: the log of rank {rank}, attempt {attempt.number}, is empty{hint}", error=True)


def _describe_ranks(attempt: AttemptFolder) -> str:
    ranks = sorted(int(path.stem.rpartition("-")[2]) for path in attempt.log(0).parent.glob("rank-*.log"))
    if not ranks:
        return f"no rank of attempt {attempt.number} has a log yet"
    return f"attempt {attempt.number} has logs of ranks " + (f"0 to {ranks[-1]}" if len(ranks) > 1 else str(ranks[0]))


def _format_value(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name == "time" and isinstance(value, int | float) and 0 <= value < MAX_TIME:
        return datetime.datetime.fromtimestamp(value).isoformat(sep=" ", timespec="seconds")
    return f"{value:.5g}" if isinstance(value, float) else str(value)
