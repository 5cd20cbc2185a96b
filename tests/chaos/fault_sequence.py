"""Inject several faults into one training; each is evaluated immediately and again at the end of the run."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hsadml_dist.errors import ExitCode
from tests.chaos.baseline_runs import Workspace
from tests.chaos.evidence import (
    CONSEQUENCE,
    Fault,
    Outcome,
    allowed_loss,
    clear_error_problems,
    complaints,
    decide_outcome,
    end_problems,
    has_traceback,
    loss_problems,
    redone_steps,
    save_under_way,
)
from tests.chaos.training_process import EVERY, STEPS, LaunchedTraining, TimedOut, TrainingJob

ENDS_WITHIN = 60.0
"""Seconds within which a start must end after a stop signal or a fault."""


@dataclass
class PendingFault:
    """A fault before the end of the run is known.

    Attributes:
        kind: See :class:`Fault`; likewise ``step``, ``pids``, ``codes``, ``detail`` and ``figures``.
        good: Its outcome if there are no problems.
        problems: Problems found so far.
    """

    kind: str
    step: int | None = None
    pids: tuple[int, ...] = ()
    codes: list[int] = field(default_factory=list)
    good: Outcome = "survived"
    detail: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass
class FaultSequence:
    """One training and the faults injected into it.

    Attributes:
        workspace: Shards and baseline runs.
        rng: Draws the moments.
        job: How the training is started.
        entries: The faults so far.
    """

    workspace: Workspace
    rng: random.Random
    job: TrainingJob
    entries: list[PendingFault] = field(default_factory=list)

    @contextlib.contextmanager
    def fault(self, kind: str, good: Outcome = "survived") -> Iterator[PendingFault]:
        """Open the record of a fault; a time-out in the block is recorded as a problem."""
        entry = PendingFault(kind=kind, good=good)
        self.entries.append(entry)
        began = time.monotonic()
        try:
            yield entry
        except TimedOut as fault:
            entry.problems.append(str(fault))
        entry.figures["seconds"] = round(time.monotonic() - began, 1)

    @property
    def reached(self) -> int:
        """The step from which the next start resumes, according to rows and checkpoints."""
        attempts = [attempt for attempt in self.job.attempts() if attempt.parent is not None]
        return attempts[-1].reached if attempts else 0

    def next_step(self, most: int = 5) -> int:
        """Draw a step shortly after the one reached, but never so near the end that nothing is left to do."""
        return min(self.reached + self.rng.randint(2, most), STEPS - 2)

    def started(self, *overrides: str) -> contextlib.AbstractContextManager[LaunchedTraining]:
        """Start the training with additional settings."""
        return replace(self.job, overrides=(*self.job.overrides, *overrides)).started()

    def signal_at_step(
        self,
        entry: PendingFault,
        start: LaunchedTraining,
        pids: Sequence[int],
        number: int,
        step: int,
        after: Callable[[], object] = int,
    ) -> None:
        """Send a signal at a step and record the end; ``after`` completes the fault."""
        entry.step = start.wait_for_step(step)
        entry.pids = tuple(pids)
        for pid in pids:
            os.kill(pid, number)
        after()
        self.record_end(entry, start)

    def record_end(self, entry: PendingFault, start: LaunchedTraining) -> None:
        """Wait for the end of a start and record its exit code and whether it printed a traceback."""
        entry.codes.append(start.exit_code(ENDS_WITHIN))
        entry.figures["traceback"] = has_traceback(start.stderr)

    def stop(self, step: int | None = None) -> int:
        """Train until a step, stop by a signal, and return the step reached; not a fault, but preparation for one."""
        with self.started() as start:
            start.wait_for_step(step or self.next_step())
            start.process.send_signal(signal.SIGTERM)
            code = start.exit_code(ENDS_WITHIN)
        if code != ExitCode.STOPPED:
            raise TimedOut(f"a stop ended with exit code {code}: {start.stderr[-400:]}")
        return self.reached

    def expect_code(self, entry: PendingFault, *codes: int) -> None:
        """Record a problem if the last start had another exit code."""
        if entry.codes[-1] not in codes:
            entry.problems.append(f"exit code {entry.codes[-1]}, not {' or '.join(map(str, codes))}")

    def expect_clear_error(self, entry: PendingFault, start: LaunchedTraining, *names: str) -> None:
        """Record a problem unless the last start ended with one clear line that contains ``names``."""
        entry.problems += clear_error_problems(entry.codes[-1], start.stderr, names=names)
        entry.detail.append(last_line(start.stderr, names))

    def expect_loss(self, entry: PendingFault, allowed: int | None = None) -> None:
        """Allow the next start to resume ``allowed`` steps back; None means as many as after a kill."""
        last = [attempt for attempt in self.job.attempts() if attempt.parent is not None]
        if last:
            most = allowed_loss(last[-1], EVERY) if allowed is None else allowed
            entry.figures |= {"attempt": last[-1].number, "reached": last[-1].reached, "allowed": most}
            entry.figures["save_under_way"] = save_under_way(last[-1], EVERY)

    def finish(self) -> list[Fault]:
        """Complete the training and evaluate all faults by its end."""
        try:
            code, stderr = self.job.finish()
        except TimedOut as fault:
            code, stderr = -1, str(fault)
        attempts = self.job.attempts()
        problems = end_problems(code, self.job.digest(), attempts, self.workspace.baseline(self.job.world))
        problems += [stderr[-300:]] if code else []
        for entry in self.entries:
            entry.codes.append(code)
            self._count_loss(entry)
            entry.figures |= {"ranks": self.job.world, "workers": self.job.workers}
        self.entries[-1].figures["redone_in_run"] = redone_steps(attempts)
        return [_evaluate(entry, problems) for entry in self.entries]

    def _count_loss(self, entry: PendingFault) -> None:
        """Count the steps lost by the next attempt that chose a checkpoint."""
        number = entry.figures.pop("attempt", None)
        if number is None:
            return
        later = [one.parent for one in self.job.attempts() if one.number > number and one.parent is not None]
        lost = entry.figures.pop("reached") - (later[0] if later else 0)
        entry.figures["lost"] = lost
        entry.problems += loss_problems(lost, entry.figures["allowed"])


def _evaluate(entry: PendingFault, problems: Sequence[str]) -> Fault:
    outcome, detail = decide_outcome(
        [*entry.problems, *problems], entry.good, "; ".join(entry.detail) or "the training completed"
    )
    return Fault(
        kind=entry.kind,
        step=entry.step,
        pids=entry.pids,
        exit_codes=entry.codes,
        outcome=outcome,
        detail=detail,
        figures=entry.figures,
    )


def new_sequence(workspace: Workspace, rng: random.Random, world: int, workers: int, *overrides: str) -> FaultSequence:
    """Return a sequence of faults in a new run folder."""
    return FaultSequence(workspace, rng, workspace.job(world, workers, overrides))


def last_line(stderr: str, names: Sequence[str] = ()) -> str:
    """Return the last line on stderr about the cause that contains all ``names``."""
    causes = [line for line in complaints(stderr) if not CONSEQUENCE.fullmatch(line)]
    lines = [line for line in causes if all(name in line for name in names)]
    return lines[-1][:240] if lines else "(no such line on stderr)"


def snapshot(folder: Path) -> dict[str, str]:
    """Return the digest of every file in a folder, by path."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
