"""The matrix of interruptions: every way to interruption a run short, for each number of ranks and loader workers.

Each interruption has a run of its own. The same command then resumes it, and its end must equal that of the undisturbed
run: the digest, and the samples of every step.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hsadml_dist.errors import ExitCode
from hsadml_dist.run.folder import RunFolder
from tests.chaos.baseline_runs import Workspace
from tests.chaos.evidence import (
    Fault,
    allowed_loss,
    decide_outcome,
    end_problems,
    loss_problems,
    lost_steps,
    redone_steps,
    save_under_way,
)
from tests.chaos.training_process import EVERY, STEPS, LaunchedTraining, TimedOut

STOP_SIGNALS = {"TERM": signal.SIGTERM, "USR2": signal.SIGUSR2}
SLOW_DISK_SECONDS = "0.4"
LONGEST_START = 3.0
"""Seconds within which a start is interrupted before its first step."""
PREFETCHED = 3
"""Maximum number of prefetched batches per worker."""
SAVED_FILES = 3
"""Maximum number of files of a checkpoint that exist when its writers are killed."""


@dataclass(frozen=True, kw_only=True)
class Interruption:
    """One way to interrupt a run.

    Attributes:
        world: Number of ranks.
        workers: Loader workers per rank.
        how: TERM, USR2 (to the launcher or one rank), or KILL rank, KILL worker, KILL all.
        when: ``step``, ``start`` (before step 1), ``save`` (in the background), ``wait`` (in the foreground) or
            ``evaluation``.
    """

    world: int
    workers: int
    how: str
    when: str = "step"

    @property
    def is_stop_signal(self) -> bool:
        """Whether it is a signal on which the ranks save and stop."""
        return self.how in STOP_SIGNALS

    @property
    def kind(self) -> str:
        """How and when, as text."""
        moments = {
            "step": "",
            "start": " before step 1",
            "save": " during a background save",
            "wait": " during a foreground save",
            "evaluation": " during evaluation",
        }
        return self.how + moments[self.when]

    @property
    def overrides(self) -> tuple[str, ...]:
        """Settings that interrupt its moment occur."""
        needed = {"wait": ("checkpoint.background=false",), "evaluation": ("evaluation.at_end=true",)}
        return needed.get(self.when, ())


def _interruptions(world: int, workers: int, *ways: str) -> tuple[Interruption, ...]:
    """Return interruptions from texts such as ``TERM`` and ``KILL all@save``."""
    pairs = (way.partition("@") for way in ways)
    return tuple(Interruption(world=world, workers=workers, how=how, when=when or "step") for how, _, when in pairs)


MATRIX = (
    *_interruptions(1, 0, "TERM", "USR2", "KILL rank", "KILL rank", "TERM@start"),
    *_interruptions(1, 1, "TERM", "USR2", "KILL rank", "KILL worker", "KILL all@wait"),
    *_interruptions(1, 2, "TERM", "USR2", "KILL worker", "KILL all", "TERM@evaluation"),
    *_interruptions(2, 0, "TERM", "USR2", "KILL rank", "KILL all", "KILL all@save"),
    *_interruptions(2, 1, "TERM", "USR2", "KILL rank", "KILL worker", "KILL rank@start"),
    *_interruptions(2, 2, "TERM", "USR2", "KILL worker", "KILL all", "KILL all@evaluation"),
)


def run_interruption(workspace: Workspace, interruption: Interruption, rng: random.Random) -> Fault:
    """Start a run, interrupt it, start it again, and evaluate its end."""
    began = time.monotonic()
    job = workspace.job(interruption.world, interruption.workers, interruption.overrides)
    hit = InterruptionTarget()
    problems: list[str] = []
    try:
        with job.started() as start:
            hit = interrupt(interruption, start, rng)
            codes = [start.exit_code()]
        problems += _check_interruption(interruption, start, codes[0])
        codes.append(job.finish()[0])
    except TimedOut as fault:
        codes, problems = [], [*problems, str(fault)]
    if interruption.when == "evaluation" and not RunFolder(job.run).result.exists():
        problems.append("there is no result at the end")
    attempts = job.attempts()
    lost, redone = sum(lost_steps(attempts)), redone_steps(attempts)
    problems += end_problems(codes[-1] if codes else -1, job.digest(), attempts, workspace.baseline(interruption.world))
    may_lose = bool(attempts) and not interruption.is_stop_signal
    allowed = allowed_loss(attempts[0], EVERY, background=interruption.when != "wait") if may_lose else 0
    problems += loss_problems(lost, allowed)
    outcome, detail = decide_outcome(problems, "survived", f"resumed from step {attempts[-1].parent}")
    return Fault(
        kind=interruption.kind,
        step=hit.step,
        pids=hit.pids,
        exit_codes=codes,
        outcome=outcome,
        detail=detail,
        figures={
            "ranks": interruption.world,
            "workers": interruption.workers,
            "lost": lost,
            "allowed": allowed,
            "save_under_way": bool(attempts) and save_under_way(attempts[0], EVERY),
            "redone": redone,
            "seconds": round(time.monotonic() - began, 1),
        },
    )


@dataclass(frozen=True, kw_only=True)
class InterruptionTarget:
    """The processes that an interruption hit, and the last step before it."""

    step: int | None = None
    pids: tuple[int, ...] = ()


def interrupt(interruption: Interruption, start: LaunchedTraining, rng: random.Random) -> InterruptionTarget:
    """Wait for the moment of the interruption, which is random where possible, and send the signals."""
    moments: dict[str, Callable[[LaunchedTraining, random.Random], None]] = {
        "step": _at_a_step,
        "start": _before_step_1,
        "save": _in_a_save,
        "wait": _in_a_save,
        "evaluation": _in_evaluation,
    }
    pids = _victims(interruption, start, rng)
    moments[interruption.when](start, rng)
    step = start.step()
    for pid in pids:
        os.kill(pid, STOP_SIGNALS.get(interruption.how, signal.SIGKILL))
    (start.job.switches / "slow-disk").unlink(missing_ok=True)
    return InterruptionTarget(step=step, pids=tuple(pids))


def _victims(interruption: Interruption, start: LaunchedTraining, rng: random.Random) -> Sequence[int]:
    ranks = start.rank_pids()
    if interruption.how == "KILL all":
        return ranks
    if interruption.how == "KILL worker":
        rank = rng.randrange(interruption.world)
        start.wait_for_step(1)
        return [rng.choice(start.worker_pids(rank))]
    if interruption.is_stop_signal and (interruption.when == "start" or rng.random() < 0.5):
        return [start.process.pid]
    return [rng.choice(ranks)]


def _at_a_step(start: LaunchedTraining, rng: random.Random) -> None:
    # Near the end, a worker's last batches may all be ready; its death then disturbs nothing.
    start.wait_for_step(rng.randint(1, STEPS - 2 - PREFETCHED * start.job.workers))


def _before_step_1(start: LaunchedTraining, rng: random.Random) -> None:
    time.sleep(rng.uniform(0.0, LONGEST_START))
    if start.step():
        raise TimedOut("the first step was completed before the interruption")


def _in_a_save(start: LaunchedTraining, rng: random.Random) -> None:
    (start.job.switches / "slow-disk").write_text(SLOW_DISK_SECONDS)
    written = rng.randint(0, SAVED_FILES)
    root = RunFolder(start.job.run).checkpoints
    start.wait(lambda: any(len(list(tmp.iterdir())) >= written for tmp in root.glob(".*.tmp")), "a save")


def _in_evaluation(start: LaunchedTraining, rng: random.Random) -> None:
    start.wait_for_event("checkpoint", STEPS)
    time.sleep(rng.uniform(0.0, 0.3))


def _check_interruption(interruption: Interruption, start: LaunchedTraining, code: int) -> list[str]:
    """Return why the interruption was not the intended one, or its exit code not the documented one."""
    attempts = start.job.attempts()
    last = attempts[-1] if attempts else None
    allowed = {ExitCode.STOPPED} if interruption.is_stop_signal else {ExitCode.INTERNAL_ERROR}
    problems = []
    if interruption.when in ("save", "wait") and not list(RunFolder(start.job.run).checkpoints.glob(".*.tmp")):
        problems.append("no incomplete checkpoint is left: the save had ended before the interruption")
    if interruption.when == "evaluation":
        allowed |= {ExitCode.SUCCESS} if interruption.is_stop_signal else set()
        if last is None or (not interruption.is_stop_signal and "finished" in dict(last.events)):
            problems.append("the evaluation had ended before the interruption")
    if code not in allowed:
        problems.append(f"the interrupted start ended with exit code {code}, not {sorted(map(int, allowed))}")
    return problems
