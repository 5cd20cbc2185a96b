"""Run the ranks of a run as processes of this machine: start, forward signals, stop them together, exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import site
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import hsadml_dist
from hsadml_dist.errors import ExitCode
from hsadml_dist.process import catches_signal, die_with_this_process

RANK_COMMAND = (sys.executable, "-P", "-m", "hsadml_dist.launch.rank")
POLL_SECONDS = 0.05
FAILED_GRACE_SECONDS = 5.0
"""Time to exit after a peer has failed. Short, since a rank that waits for it in a collective cannot stop by itself."""
STOPPED_GRACE_SECONDS = 15.0
"""Time to exit after a peer has stopped on request. Ranks stop together, so a rank that needs longer hangs."""
# Ctrl-C, a closed terminal and a plain kill all mean: save and stop.
FORWARDED_SIGNALS = {
    signal.SIGINT: signal.SIGINT,
    signal.SIGHUP: signal.SIGTERM,
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGUSR2: signal.SIGUSR2,
}
REGULAR_EXITS = (ExitCode.SUCCESS, ExitCode.STOPPED)
USER_ERRORS = (ExitCode.USER_ERROR, ExitCode.USAGE_ERROR, ExitCode.RUN_LOCKED)


@dataclass(frozen=True, kw_only=True)
class RankExit:
    """The end of a rank's process.

    Attributes:
        code: Exit code; negative for the signal that killed it.
        poll: Number of the poll that found it ended; ranks of the same poll ended within milliseconds.
        killed: True if the launcher killed it.
    """

    rank: int
    code: int
    poll: int
    killed: bool = False

    def __str__(self) -> str:
        if self.killed:
            return f"rank {self.rank} did not stop in time and was killed"
        if self.code < 0:
            return f"rank {self.rank} was killed by {signal.Signals(-self.code).name} (signal {-self.code})"
        return f"rank {self.rank} ended with exit code {self.code}"


def first_failure(exits: Sequence[RankExit]) -> RankExit | None:
    """Return the exit that explains the failure of the run, or None.

    The death of a rank makes its peers fail milliseconds later. Among ranks that ended in the same poll, a rank killed
    by a signal explains the others, then one with a user error.
    """
    failures = [one for one in exits if not one.killed and one.code not in REGULAR_EXITS]

    def order(one: RankExit) -> tuple[int, int, int]:
        return (one.poll, 0 if one.code < 0 else 1 if one.code in USER_ERRORS else 2, one.rank)

    return min(failures, key=order, default=None)


def exit_code(exits: Sequence[RankExit]) -> int:
    """Return 0 if all ranks finished, 85 if some were stopped on request, otherwise the code of the first failure."""
    failure = first_failure(exits)
    if failure is not None:
        return ExitCode.INTERNAL_ERROR if failure.code < 0 else failure.code
    return ExitCode.SUCCESS if all(one.code == ExitCode.SUCCESS for one in exits) else ExitCode.STOPPED


def run_ranks(
    run: Path, nproc: int, *, environ: Mapping[str, str] = os.environ, command: Sequence[str] = RANK_COMMAND
) -> int:
    """Start the ranks of a run, wait for all of them and return the exit code.

    SIGINT, SIGTERM and SIGUSR2 are forwarded to every rank, SIGHUP as SIGTERM; a second SIGINT kills. Each rank has
    its own session, so that Ctrl-C reaches it once, through this process, and it dies with this process.

    Args:
        nproc: Number of ranks.
        environ: Environment of the ranks, to which rank and world size are added.
        command: Command of a rank; the run folder is appended.
    """
    signals: list[int] = []
    with _collect_signals(signals):
        ranks = RankGroup(_start(run, nproc, environ, command))
        try:
            while ranks.alive:
                ranks.forward(signals)
                ranks.poll()
                time.sleep(POLL_SECONDS if ranks.alive else 0)
        finally:
            ranks.kill()
    failure = first_failure(ranks.exits)
    for one in ([failure] if failure else []) + [one for one in ranks.exits if one.killed]:
        sys.stderr.write(f"hsadml: {one}\n")
    return exit_code(ranks.exits)


class RankGroup:
    """The processes of one run: when one fails or stops, the others are stopped too."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        self.alive = dict(enumerate(processes))
        self.exits: list[RankExit] = []
        self._sent: set[int] = set()
        self._interrupts = 0
        self._polls = 0
        self._deadline: float | None = None

    def forward(self, signals: list[int]) -> None:
        """Forward the received signals to the ranks and clear the list."""
        while signals:
            number = signals.pop(0)
            self._interrupts += number == signal.SIGINT
            if self._interrupts > 1:
                self.kill()
            else:
                self._send(FORWARDED_SIGNALS[signal.Signals(number)])

    def poll(self) -> None:
        """Record the ranks that have ended. After a failure or a stop, stop the others; kill them when time is up."""
        self._polls += 1
        for rank, process in list(self.alive.items()):
            code = process.poll()
            if code is not None:
                self._record(rank, code)
        unfinished = [one for one in self.exits if one.code != ExitCode.SUCCESS]
        if unfinished and self.alive and self._deadline is None:
            stopped = all(one.code in REGULAR_EXITS for one in unfinished)
            self._deadline = time.monotonic() + (STOPPED_GRACE_SECONDS if stopped else FAILED_GRACE_SECONDS)
            self._send(signal.SIGTERM)
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self.kill()

    def kill(self) -> None:
        """Kill the remaining ranks with all processes of their sessions, and wait for them."""
        for rank, process in list(self.alive.items()):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            self._record(rank, process.wait(), killed=True)

    def _record(self, rank: int, code: int, killed: bool = False) -> None:
        del self.alive[rank]
        # A rank that has not installed its handlers yet dies of the forwarded signal: it stopped on request.
        if -code in self._sent:
            code = ExitCode.STOPPED
        self.exits.append(RankExit(rank=rank, code=code, poll=self._polls, killed=killed and code < 0))

    def _send(self, number: int) -> None:
        for process in self.alive.values():
            # Python's own handler would end a rank that has none of its own yet with a traceback.
            sent = number if catches_signal(process.pid, signal.SIGTERM) else signal.SIGTERM
            self._sent.add(sent)
            process.send_signal(sent)


@contextlib.contextmanager
def _collect_signals(signals: list[int]) -> Iterator[None]:
    """Append the signals to forward to a list. Ignored signals (nohup ignores SIGHUP) stay ignored.

    Only the main thread can handle signals; called from another one, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in FORWARDED_SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: signals.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(run: Path, nproc: int, environ: Mapping[str, str], command: Sequence[str]) -> list[subprocess.Popen[bytes]]:
    shared = {**environ, **_import_path(environ), "HSADML_LAUNCH": uuid.uuid4().hex}
    bind = die_with_this_process(ExitCode.INTERNAL_ERROR)
    world = {"WORLD_SIZE": str(nproc), "LOCAL_WORLD_SIZE": str(nproc)}
    return [
        subprocess.Popen(
            [*command, str(run)],
            env=shared | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=bind,  # noqa: PLW1509  this process has no threads
        )
        for rank in range(nproc)
    ]


def _import_path(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the PYTHONPATH with which ranks import this same package, also from a clone that is not installed."""
    root = str(Path(hsadml_dist.__file__).parent.parent)
    # An installed package needs none, and on PYTHONPATH its neighbours would come before the standard library.
    if root in (*site.getsitepackages(), site.getusersitepackages()):
        return {}
    others = environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": f"{root}{os.pathsep}{others}" if others else root}
