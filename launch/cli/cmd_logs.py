"""``hsadml logs``."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from hsadml_dist.errors import UsageError
from hsadml_dist.launch.cli.cmd_status import ask
from hsadml_dist.run.folder import AttemptFolder, RunFolder, find_runs
from hsadml_dist.slurm.job_queue import QueueSnapshot
from hsadml_dist.slurm.job_records import job_output_paths, read_job_records
from hsadml_dist.slurm.run_status import StatusRow, read_status

LOOK_SECONDS = 0.5
ROW_SECONDS = 2.0
"""How often a follower looks whether the run is over."""
PIECE_BYTES = 1 << 20
NO_LOG = "nothing was started yet, so there is no log"
NO_OUTPUT = "no Slurm job of it has printed anything"


def logs(
    run: Path,
    /,
    *,
    follow: Annotated[bool, Parameter(name=["--follow", "-f"])] = False,
    rank: int = 0,
    attempt: int | None = None,
    output: bool = False,
) -> None:
    """Print a rank's log of the newest attempt; before the first attempt what the job itself has printed.

    The log tells what was noteworthy; of a Slurm job each 30 seconds' step stands in its output (--output).

    Args:
        run: The run folder.
        follow: Go on printing, over restarts, until the run has finished or nothing more will happen; Ctrl-C ends it.
        rank: Whose log; rank 0 tells what concerns all.
        attempt: Which attempt's, or with -f from which one on; by default the newest.
        output: What the newest job printed, instead of a rank's log.
    """
    folder = _the_run(run)
    if rank < 0:
        raise UsageError(f"--rank {rank}: at least 0")
    if attempt is not None and attempt not in [one.number for one in folder.attempts()]:
        raise UsageError(f"--attempt {attempt}: {_attempts_of(folder)}")
    if attempt is not None and output:
        raise UsageError("--attempt and --output: choose one; a job's output is not cut by attempts")
    if not follow:
        _print_once(folder, rank, attempt, output)
        return
    with contextlib.suppress(KeyboardInterrupt):
        LogFollower(folder, rank, attempt, output).go()


def _the_run(run: Path) -> RunFolder:
    found = find_runs([run])
    if len(found) > 1:
        names = ", ".join(one.path.name for one in found[:3])
        raise UsageError(f"run folder {run}: holds {len(found)} runs ({names}, ...); name one of them")
    return found[0]


def _attempts_of(folder: RunFolder) -> str:
    numbers = [one.number for one in folder.attempts()]
    return f"the attempts of {folder.path} are 1 to {numbers[-1]}" if numbers else f"{folder.path} has none yet"


def _print_once(folder: RunFolder, rank: int, number: int | None, output: bool) -> None:
    attempts = folder.attempts()
    if output or not attempts:
        paths = outputs(folder)
        if not paths:
            raise UsageError(f"run folder {folder.path}: " + (NO_OUTPUT if output else NO_LOG))
        LogPrinter().print_from(paths[-1], 0)
        return
    attempt = attempts[-1] if number is None else folder.attempt(number)
    path = attempt.log(rank)
    if not path.is_file():
        raise UsageError(f"--rank {rank}: {_ranks_of(attempt)}")
    if LogPrinter().print_from(path, 0) == 0:
        hint = "; --output shows what the job printed" if outputs(folder) else ""
        print(f"hsadml: the log of rank {rank}, attempt {attempt.number}, is empty{hint}", file=sys.stderr)


def _ranks_of(attempt: AttemptFolder) -> str:
    ranks = sorted(int(path.stem.rpartition("-")[2]) for path in attempt.log(0).parent.glob("rank-*.log"))
    if not ranks:
        return f"no rank of attempt {attempt.number} has a log yet"
    return f"attempt {attempt.number} has logs of ranks " + (f"0 to {ranks[-1]}" if len(ranks) > 1 else str(ranks[0]))


def outputs(folder: RunFolder) -> list[Path]:
    """Return the files with what a run's jobs printed, the newest last; an array's lie beside the run folders."""
    found = [path for row in read_job_records(folder) for path in job_output_paths(folder, row.job) if path.is_file()]
    return found or sorted(folder.path.glob("slurm-*.out"), key=lambda path: path.stat().st_mtime)


class LogPrinter:
    """Writes files to standard output as they are, each from the start of a line on."""

    def __init__(self) -> None:
        self._out = sys.stdout.buffer
        self._at_line_start = True

    def print_from(self, path: Path, start: int) -> int:
        """Print a file from a position on; returns the position of its end. One that is missing is empty."""
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            file.seek(start)
            while piece := file.read(PIECE_BYTES):
                self._out.write(piece)
                self._at_line_start = piece.endswith(b"\n")
                start += len(piece)
        self._out.flush()
        return start

    def title(self, text: str) -> None:
        """Print a line of our own."""
        self._out.write(("" if self._at_line_start else "\n").encode() + f"-- {text} --\n".encode())
        self._out.flush()
        self._at_line_start = True


@dataclass(frozen=True)
class LogPart:
    """A file to be printed under a title."""

    title: str
    path: Path


class LogFollower:
    """Prints what is added to a run's logs, attempt after attempt, or to its jobs' output, job after job."""

    def __init__(self, folder: RunFolder, rank: int, first: int | None, output: bool) -> None:
        self._folder, self._rank, self._first, self._output = folder, rank, first, output
        self._printer = LogPrinter()
        self._part: LogPart | None = None
        self._position = 0
        self._queue: QueueSnapshot | None = None

    def go(self) -> None:
        """Print until the run is over."""
        for row in self._rows():
            # What was written before the run was seen to be over is printed after that.
            self._print_new()
            if row is not None and row.over:
                self._printer.title(f"{row.text}: {row.reason}" if row.reason else row.text)
                return
            time.sleep(LOOK_SECONDS)

    def _rows(self) -> Iterator[StatusRow | None]:
        """Yield how the run stands; between two looks None."""
        due = 0.0
        while True:
            if time.monotonic() < due:
                yield None
                continue
            due = time.monotonic() + ROW_SECONDS
            self._queue = ask([self._folder], self._queue)
            yield read_status([self._folder], self._queue, time.time())[0]

    def _print_new(self) -> None:
        self._print_rest()
        for part in self._next():
            # Nothing more comes to the one before, but something may have come since the last look.
            self._print_rest()
            self._part, self._position = part, 0
            self._printer.title(part.title)
            self._print_rest()

    def _print_rest(self) -> None:
        if self._part is not None:
            self._position = self._printer.print_from(self._part.path, self._position)

    def _next(self) -> list[LogPart]:
        """Return the parts after the present one; at first the newest, or those from the chosen attempt on."""
        attempts = self._folder.attempts()
        if self._output or not attempts:
            parts = [LogPart(path.name, path) for path in outputs(self._folder)]
        else:
            first = self._first or (attempts[-1].number if self._part is None else 1)
            parts = [LogPart(f"attempt {one.number}", one.log(self._rank)) for one in attempts if one.number >= first]
        if self._part in parts:
            return parts[parts.index(self._part) + 1 :]
        return parts[-1:] if self._output or not attempts else parts
