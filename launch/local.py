"""The ranks of a run as processes of this machine, and what becomes of them."""

from __future__ import annotations

import contextlib
import os
import signal
import site
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import hsadml_dist
from hsadml_dist.errors import ExitCode
from hsadml_dist.process import die_with_this_process

RANK_COMMAND = (sys.executable, "-P", "-m", "hsadml_dist.launch.rank")
POLL_SECONDS = 0.05
FAILED_GRACE = 5.0
"""Seconds that ranks get after a peer has failed: one that waits for it in a collective cannot stop by itself."""
STOPPED_GRACE = 15.0
"""Seconds that ranks get after a peer has stopped as told: they leave together, so more is a defect."""
# A terminal's Ctrl-C, its closing and a plain kill all mean: save and stop.
FORWARDED = {
    signal.SIGINT: signal.SIGTERM,
    signal.SIGHUP: signal.SIGTERM,
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGUSR2: signal.SIGUSR2,
}
GOOD = (ExitCode.SUCCESS, ExitCode.STOPPED)
USER_ERRORS = (ExitCode.USER_ERROR, ExitCode.USAGE_ERROR, ExitCode.RUN_LOCKED)


@dataclass(frozen=True, kw_only=True)
class RankExit:
    """How a rank ended.

    Attributes:
        rank: Its number.
        code: Its exit code; below 0 the number of the signal that killed it.
        moment: Number of the look at which it was found ended; ranks of one moment ended within milliseconds.
        killed: Whether it was this launcher that killed it.
    """

    rank: int
    code: int
    moment: int
    killed: bool = False

    def __str__(self) -> str:
        if self.killed:
            return f"rank {self.rank} did not stop in time and was killed"
        if self.code < 0:
            return f"rank {self.rank} was killed by {signal.Signals(-self.code).name} (signal {-self.code})"
        return f"rank {self.rank} ended with exit code {self.code}"


def first_failure(ends: Sequence[RankExit]) -> RankExit | None:
    """Return the end that explains the run's failure, or None.

    A rank's death makes its peers fail milliseconds later; of the ranks that ended in the same moment a killed one
    explains the others, then one with an error of the user's.
    """
    failures = [end for end in ends if not end.killed and end.code not in GOOD]

    def order(end: RankExit) -> tuple[int, int, int]:
        return (end.moment, 0 if end.code < 0 else 1 if end.code in USER_ERRORS else 2, end.rank)

    return min(failures, key=order, default=None)


def exit_code(ends: Sequence[RankExit]) -> int:
    """Return the launcher's exit code: 0 if all ranks are done, 85 if some were stopped, else the first failure's."""
    failure = first_failure(ends)
    if failure is not None:
        return ExitCode.INTERNAL_ERROR if failure.code < 0 else failure.code
    return ExitCode.SUCCESS if all(end.code == ExitCode.SUCCESS for end in ends) else ExitCode.STOPPED


def run_ranks(
    run: Path, nproc: int, *, environ: Mapping[str, str] = os.environ, command: Sequence[str] = RANK_COMMAND
) -> int:
    """Start ``nproc`` ranks of a run, wait for all of them and return the exit code of the whole.

    TERM and USR2 go on to every rank; so do INT and HUP, as TERM; a second INT kills. Ranks have sessions of their
    own, so that a terminal's Ctrl-C reaches them once, through this process. They do not outlive it.

    Args:
        run: The run folder.
        nproc: Number of ranks.
        environ: Variables of the ranks, to which their places are added.
        command: What a rank runs; the run folder is appended.
    """
    signals: list[int] = []
    with _listening(signals):
        ranks = RankGroup(_start(run, nproc, environ, command))
        try:
            while ranks.alive:
                ranks.obey(signals)
                ranks.look()
                time.sleep(POLL_SECONDS if ranks.alive else 0)
        finally:
            ranks.kill()
    failure = first_failure(ranks.ends)
    for end in ([failure] if failure else []) + [end for end in ranks.ends if end.killed]:
        print(f"hsadml: {end}", file=sys.stderr)
    return exit_code(ranks.ends)


class RankGroup:
    """Processes that run together: when one ends badly or stops, the others are made to end too."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        self.alive = dict(enumerate(processes))
        self.ends: list[RankExit] = []
        self._told: set[int] = set()
        self._interrupts = 0
        self._moment = 0
        self._deadline: float | None = None

    def obey(self, signals: list[int]) -> None:
        """Pass on the signals that this process has received, and forget them."""
        while signals:
            number = signals.pop(0)
            self._interrupts += number == signal.SIGINT
            if self._interrupts > 1:
                self.kill()
            else:
                self._tell(FORWARDED[signal.Signals(number)])

    def look(self) -> None:
        """Note which ranks have ended, and see to the others."""
        self._moment += 1
        for rank, process in list(self.alive.items()):
            code = process.poll()
            if code is not None:
                self._note(rank, code)
        bad = [end for end in self.ends if end.code != ExitCode.SUCCESS]
        if bad and self.alive and self._deadline is None:
            grace = STOPPED_GRACE if all(end.code in GOOD for end in bad) else FAILED_GRACE
            self._deadline = time.monotonic() + grace
            self._tell(signal.SIGTERM)
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self.kill()

    def kill(self) -> None:
        """Kill the ranks that still run, with all processes of their sessions, and wait for them."""
        for rank, process in list(self.alive.items()):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            self._note(rank, process.wait(), killed=True)

    def _note(self, rank: int, code: int, killed: bool = False) -> None:
        del self.alive[rank]
        # A rank that has not yet come to its first line dies of the notice itself: it stopped as told.
        if -code in self._told:
            code = ExitCode.STOPPED
        self.ends.append(RankExit(rank=rank, code=code, moment=self._moment, killed=killed and code < 0))

    def _tell(self, number: int) -> None:
        self._told.add(number)
        for process in self.alive.values():
            process.send_signal(number)


@contextlib.contextmanager
def _listening(signals: list[int]) -> Iterator[None]:
    """Collect the signals to be forwarded; ones that are ignored (as nohup does) stay ignored."""

    def note(number: int, frame: FrameType | None) -> None:
        signals.append(number)

    before = {number: signal.getsignal(number) for number in FORWARDED}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(run: Path, nproc: int, environ: Mapping[str, str], command: Sequence[str]) -> list[subprocess.Popen[bytes]]:
    token, bind = uuid.uuid4().hex, die_with_this_process(ExitCode.INTERNAL_ERROR)
    processes: list[subprocess.Popen[bytes]] = []
    for rank in range(nproc):
        place = {"RANK": rank, "WORLD_SIZE": nproc, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": nproc}
        variables = {**environ, **_import_path(environ), **{name: str(value) for name, value in place.items()}}
        processes.append(
            subprocess.Popen(
                [*command, str(run)],
                env={**variables, "HSADML_LAUNCH": token},
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=bind,  # noqa: PLW1509  this process has no threads
            )
        )
    return processes


def _import_path(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the PYTHONPATH with which ranks import this very package, also from a clone that is not installed."""
    root = str(Path(hsadml_dist.__file__).parent.parent)
    # An installed package needs none, and on PYTHONPATH its neighbours would stand before the standard library.
    if root in (*site.getsitepackages(), site.getusersitepackages()):
        return {}
    others = environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": f"{root}{os.pathsep}{others}" if others else root}
