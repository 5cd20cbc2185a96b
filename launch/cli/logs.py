"""``hsadml logs``."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from hsadml_dist.errors import UsageError
from hsadml_dist.launch.cli.status import ask
from hsadml_dist.run.find import find_runs
from hsadml_dist.run.folder import AttemptFolder, RunFolder
from hsadml_dist.slurm.jobs import jobs_of
from hsadml_dist.slurm.queue import Queue
from hsadml_dist.slurm.row import Row
from hsadml_dist.slurm.status import read_status

LOOK_SECONDS = 0.5
ROW_SECONDS = 2.0
"""How often a follower looks whether the run is over."""
PIECE_BYTES = 1 << 20


def logs(
    run: Path,
    /,
    *,
    follow: Annotated[bool, Parameter(name=["--follow", "-f"])] = False,
    rank: int = 0,
    attempt: int | None = None,
) -> None:
    """Print a rank's log of the newest attempt; before the first attempt what the job itself has printed.

    Args:
        run: The run folder.
        follow: Go on printing, over restarts, until the run has finished or nothing more will happen; Ctrl-C ends it.
        rank: Whose log; rank 0 tells what concerns all.
        attempt: Which attempt's, or with -f from which one on; by default the newest.
    """
    folder = _the_run(run)
    if rank < 0:
        raise UsageError(f"--rank {rank}: at least 0")
    if attempt is not None and attempt not in [one.number for one in folder.attempts()]:
        raise UsageError(f"--attempt {attempt}: {_attempts_of(folder)}")
    if not follow:
        _print_once(folder, rank, attempt)
        return
    with contextlib.suppress(KeyboardInterrupt):
        Follower(folder, rank, attempt).go()


def _the_run(run: Path) -> RunFolder:
    found = find_runs([run])
    if len(found) > 1:
        names = ", ".join(one.path.name for one in found[:3])
        raise UsageError(f"run folder {run}: holds {len(found)} runs ({names}, ...); name one of them")
    return found[0]


def _attempts_of(folder: RunFolder) -> str:
    numbers = [one.number for one in folder.attempts()]
    return f"the attempts of {folder.path} are 1 to {numbers[-1]}" if numbers else f"{folder.path} has none yet"


def _print_once(folder: RunFolder, rank: int, number: int | None) -> None:
    attempts = folder.attempts()
    if not attempts:
        paths = outputs(folder)
        if not paths:
            raise UsageError(f"run folder {folder.path}: nothing was started yet, so there is no log")
        path = paths[-1]
    else:
        attempt = attempts[-1] if number is None else folder.attempt(number)
        path = attempt.log(rank)
        if not path.is_file():
            raise UsageError(f"--rank {rank}: {_ranks_of(attempt)}")
    Printer().print_from(path, 0)


def _ranks_of(attempt: AttemptFolder) -> str:
    ranks = sorted(int(path.stem.rpartition("-")[2]) for path in attempt.log(0).parent.glob("rank-*.log"))
    if not ranks:
        return f"no rank of attempt {attempt.number} has a log yet"
    return f"attempt {attempt.number} has logs of ranks " + (f"0 to {ranks[-1]}" if len(ranks) > 1 else str(ranks[0]))


def outputs(folder: RunFolder) -> list[Path]:
    """Return the files with what a run's jobs printed, the newest last; an array's lie beside the run folders."""
    names = [f"slurm-{submitted.job}.out" for submitted in jobs_of(folder)]
    found = [place / name for name in names for place in (folder.path, folder.path.parent) if (place / name).is_file()]
    return found or sorted(folder.path.glob("slurm-*.out"), key=lambda path: path.stat().st_mtime)


class Printer:
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


class Follower:
    """Prints what is added to a run's logs, attempt after attempt."""

    def __init__(
        self, folder: RunFolder, rank: int, first: int | None, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self._folder, self._rank, self._pause = folder, rank, pause
        self._printer = Printer()
        self._number, self._path, self._position = 0, Path(), 0
        self._first = first
        self._queue: Queue | None = None

    def go(self) -> None:
        """Print until the run is over."""
        for row in self._rows():
            # What was written before the run was seen to be over is printed after that.
            self._print_new()
            if row is not None and row.over:
                self._printer.title(f"{row.text}: {row.reason}" if row.reason else row.text)
                return
            self._pause(LOOK_SECONDS)

    def _rows(self) -> Iterator[Row | None]:
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
        for attempt in self._attempts():
            if attempt.number != self._number:
                self._end_of_file()
                self._number, self._path, self._position = attempt.number, attempt.log(self._rank), 0
                self._printer.title(f"attempt {attempt.number}")
            self._end_of_file()
        if self._number == 0:
            self._print_output()

    def _attempts(self) -> list[AttemptFolder]:
        """Return the attempts to be printed from here on: the present one and those after it."""
        attempts = self._folder.attempts()
        first = self._number or self._first or (attempts[-1].number if attempts else 0)
        return [attempt for attempt in attempts if attempt.number >= first]

    def _print_output(self) -> None:
        newest = outputs(self._folder)[-1:]
        if newest and newest[0] != self._path:
            self._end_of_file()
            self._path, self._position = newest[0], 0
            self._printer.title(newest[0].name)
        self._end_of_file()

    def _end_of_file(self) -> None:
        if self._path != Path():
            self._position = self._printer.print_from(self._path, self._position)
