"""Several faults done to one training, one after the other; each is judged on the spot and again at the run's end."""

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
"""Seconds within which a start must end that was told to or cannot go on."""


@dataclass
class PendingFault:
    """A fault before the run's end is known.

    Attributes:
        kind: See :class:`Fault`; so for ``step``, ``pids``, ``codes`` and ``detail``.
        good: What it is if there are no problems.
        problems: What is wrong.
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
    """One training and what is done to it.

    Attributes:
        grounds: Shards and calm runs.
        draw: Draws the moments.
        job: How it is started.
    """

    grounds: Workspace
    draw: random.Random
    job: TrainingJob
    entries: list[PendingFault] = field(default_factory=list)

    @contextlib.contextmanager
    def fault(self, kind: str, good: Outcome = "survived") -> Iterator[PendingFault]:
        """Open the record of a fault; whatever gets stuck in the block is a problem of it."""
        entry = PendingFault(kind=kind, good=good)
        self.entries.append(entry)
        began = time.monotonic()
        try:
            yield entry
        except TimedOut as stuck:
            entry.problems.append(str(stuck))
        entry.figures["seconds"] = round(time.monotonic() - began, 1)

    @property
    def reached(self) -> int:
        """The step from which the next start goes on, as far as rows and checkpoints say."""
        attempts = [attempt for attempt in self.job.attempts() if attempt.parent is not None]
        return attempts[-1].reached if attempts else 0

    def next_step(self, most: int = 5) -> int:
        """Draw a step a little after the one reached; never so near the end that nothing is left to do."""
        return min(self.reached + self.draw.randint(2, most), STEPS - 2)

    def started(self, *overrides: str) -> contextlib.AbstractContextManager[LaunchedTraining]:
        """Start the training, with further settings."""
        return replace(self.job, overrides=(*self.job.overrides, *overrides)).started()

    def cut(
        self,
        entry: PendingFault,
        start: LaunchedTraining,
        pids: Sequence[int],
        number: int,
        step: int,
        after: Callable[[], object] = int,
    ) -> None:
        """Send a signal at a step and judge what it cost; ``after`` does what else belongs to the fault."""
        entry.step = start.wait_for_step(step)
        entry.pids = tuple(pids)
        for pid in pids:
            os.kill(pid, number)
        after()
        self.note_end(entry, start)

    def note_end(self, entry: PendingFault, start: LaunchedTraining) -> None:
        """Wait for a start's end and note its exit code and words."""
        entry.codes.append(start.exit_code(ENDS_WITHIN))
        entry.figures["traceback"] = has_traceback(start.stderr)

    def stop(self, step: int | None = None) -> int:
        """Go on until a step, stop by a notice, and return the step reached; no fault, but the way to one."""
        with self.started() as start:
            start.wait_for_step(step or self.next_step())
            start.process.send_signal(signal.SIGTERM)
            code = start.exit_code(ENDS_WITHIN)
        if code != 85:
            raise TimedOut(f"a stop ended with exit code {code}: {start.stderr[-400:]}")
        return self.reached

    def expect_code(self, entry: PendingFault, *codes: int) -> None:
        """Complain about another exit code of the last start."""
        if entry.codes[-1] not in codes:
            entry.problems.append(f"exit code {entry.codes[-1]}, not {' or '.join(map(str, codes))}")

    def expect_clear_error(self, entry: PendingFault, start: LaunchedTraining, *names: str) -> None:
        """Complain unless the last start ended with one clear line that holds ``names``."""
        entry.problems += clear_error_problems(entry.codes[-1], start.stderr, names=names)
        entry.detail.append(last_line(start.stderr, names))

    def expect_loss(self, entry: PendingFault, allowed: int | None = None) -> None:
        """Note to complain if the next start goes on from too early a step; None: as for a killed one."""
        last = [attempt for attempt in self.job.attempts() if attempt.parent is not None]
        if last:
            most = allowed_loss(last[-1], EVERY) if allowed is None else allowed
            entry.figures |= {"attempt": last[-1].number, "reached": last[-1].reached, "allowed": most}
            entry.figures["save_under_way"] = save_under_way(last[-1], EVERY)

    def finish(self) -> list[Fault]:
        """Let the training come to its end and judge all faults by it."""
        try:
            code, stderr = self.job.finish()
        except TimedOut as stuck:
            code, stderr = -1, str(stuck)
        attempts = self.job.attempts()
        problems = end_problems(code, self.job.digest(), attempts, self.grounds.calm(self.job.world))
        problems += [stderr[-300:]] if code else []
        for entry in self.entries:
            entry.codes.append(code)
            self._count_loss(entry)
            entry.figures |= {"ranks": self.job.world, "workers": self.job.workers}
        self.entries[-1].figures["redone_in_run"] = redone_steps(attempts)
        return [_judged(entry, problems) for entry in self.entries]

    def _count_loss(self, entry: PendingFault) -> None:
        """Look up from which step the next attempt went on that came so far as to choose one."""
        number = entry.figures.pop("attempt", None)
        if number is None:
            return
        later = [one.parent for one in self.job.attempts() if one.number > number and one.parent is not None]
        lost = entry.figures.pop("reached") - (later[0] if later else 0)
        entry.figures["lost"] = lost
        entry.problems += loss_problems(lost, entry.figures["allowed"])


def _judged(entry: PendingFault, problems: Sequence[str]) -> Fault:
    outcome, detail = decide_outcome(
        [*entry.problems, *problems], entry.good, "; ".join(entry.detail) or "went on to the end"
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


def new_sequence(grounds: Workspace, draw: random.Random, world: int, workers: int, *overrides: str) -> FaultSequence:
    """Return a tour in a run folder of its own."""
    return FaultSequence(grounds, draw, grounds.job(world, workers, overrides))


def last_line(stderr: str, names: Sequence[str] = ()) -> str:
    """Return the line of stderr that says why: the last one about the cause that holds all ``names``."""
    causes = [line for line in complaints(stderr) if not CONSEQUENCE.fullmatch(line)]
    lines = [line for line in causes if all(name in line for name in names)]
    return lines[-1][:240] if lines else "(no such line on stderr)"


def snapshot(folder: Path) -> dict[str, str]:
    """Return a digest of every file of a folder, by its path."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
