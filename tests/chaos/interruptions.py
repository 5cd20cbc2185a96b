"""The matrix of cuts: every way to cut a run short, for each number of ranks and loader workers, each in its own run.

After a cut the same command goes on. The end must be the calm run's: the digest, and the samples of every step.
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

NOTICES = {"TERM": signal.SIGTERM, "USR2": signal.SIGUSR2}
SLOW_DISK_SECONDS = "0.4"
LONGEST_START = 3.0
"""Seconds within which a start is cut that has not come to its first step."""
AHEAD = 3
"""Batches, at most, that are prepared ahead for each worker."""
SAVED_FILES = 3
"""Files of a checkpoint, at most, that are there when its writers are killed."""


@dataclass(frozen=True, kw_only=True)
class Interruption:
    """One way to cut a run short.

    Attributes:
        world: Ranks.
        workers: Loader workers of each.
        how: TERM, USR2 (to the launcher or one rank), or KILL rank, KILL worker, KILL all.
        when: ``step``, ``start`` (before step 1), ``save`` (beside the steps), ``wait`` (a save that they wait for) or
            ``evaluation``.
    """

    world: int
    workers: int
    how: str
    when: str = "step"

    @property
    def is_notice(self) -> bool:
        """Whether the ranks are told, and so can save."""
        return self.how in NOTICES

    @property
    def kind(self) -> str:
        """How and when, as words."""
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
        """Settings without which its moment would not come."""
        needed = {"wait": ("checkpoint.background=false",), "evaluation": ("evaluation.at_end=true",)}
        return needed.get(self.when, ())


def _cuts(world: int, workers: int, *ways: str) -> tuple[Interruption, ...]:
    """Return cuts from texts such as ``TERM`` and ``KILL all@save``."""
    pairs = (way.partition("@") for way in ways)
    return tuple(Interruption(world=world, workers=workers, how=how, when=when or "step") for how, _, when in pairs)


MATRIX = (
    *_cuts(1, 0, "TERM", "USR2", "KILL rank", "KILL rank", "TERM@start"),
    *_cuts(1, 1, "TERM", "USR2", "KILL rank", "KILL worker", "KILL all@wait"),
    *_cuts(1, 2, "TERM", "USR2", "KILL worker", "KILL all", "TERM@evaluation"),
    *_cuts(2, 0, "TERM", "USR2", "KILL rank", "KILL all", "KILL all@save"),
    *_cuts(2, 1, "TERM", "USR2", "KILL rank", "KILL worker", "KILL rank@start"),
    *_cuts(2, 2, "TERM", "USR2", "KILL worker", "KILL all", "KILL all@evaluation"),
)


def run_cut(grounds: Workspace, cut: Interruption, draw: random.Random) -> Fault:
    """Start a run, cut it, start it again, and judge its end."""
    began = time.monotonic()
    job = grounds.job(cut.world, cut.workers, cut.overrides)
    done = InterruptionDone()
    problems: list[str] = []
    try:
        with job.started() as start:
            done = make(cut, start, draw)
            codes = [start.exit_code()]
        problems += _aftermath(cut, start, codes[0])
        codes.append(job.finish()[0])
    except TimedOut as fault:
        codes, problems = [], [*problems, str(fault)]
    if cut.when == "evaluation" and not RunFolder(job.run).result.exists():
        problems.append("there is no verdict in the end")
    attempts = job.attempts()
    lost, redone = sum(lost_steps(attempts)), redone_steps(attempts)
    problems += end_problems(codes[-1] if codes else -1, job.digest(), attempts, grounds.calm(cut.world))
    allowed = 0 if cut.is_notice or not attempts else allowed_loss(attempts[0], EVERY, beside=cut.when != "wait")
    problems += loss_problems(lost, allowed)
    outcome, detail = decide_outcome(problems, "survived", f"went on from step {attempts[-1].parent}")
    return Fault(
        kind=cut.kind,
        step=done.step,
        pids=done.pids,
        exit_codes=codes,
        outcome=outcome,
        detail=detail,
        figures={
            "ranks": cut.world,
            "workers": cut.workers,
            "lost": lost,
            "allowed": allowed,
            "save_under_way": bool(attempts) and save_under_way(attempts[0], EVERY),
            "redone": redone,
            "seconds": round(time.monotonic() - began, 1),
        },
    )


@dataclass(frozen=True, kw_only=True)
class InterruptionDone:
    """What a cut was done to, and after which step."""

    step: int | None = None
    pids: tuple[int, ...] = ()


def make(cut: Interruption, start: LaunchedTraining, draw: random.Random) -> InterruptionDone:
    """Wait for the cut's moment, drawn where it is free, and cut."""
    moments: dict[str, Callable[[LaunchedTraining, random.Random], None]] = {
        "step": _at_a_step,
        "start": _before_step_1,
        "save": _in_a_save,
        "wait": _in_a_save,
        "evaluation": _in_evaluation,
    }
    pids = _victims(cut, start, draw)
    moments[cut.when](start, draw)
    step = start.step()
    for pid in pids:
        os.kill(pid, NOTICES.get(cut.how, signal.SIGKILL))
    (start.job.switches / "slow-disk").unlink(missing_ok=True)
    return InterruptionDone(step=step, pids=tuple(pids))


def _victims(cut: Interruption, start: LaunchedTraining, draw: random.Random) -> Sequence[int]:
    ranks = start.rank_pids()
    if cut.how == "KILL all":
        return ranks
    if cut.how == "KILL worker":
        rank = draw.randrange(cut.world)
        start.wait_for_step(1)
        return [draw.choice(start.worker_pids(rank))]
    if cut.is_notice and (cut.when == "start" or draw.random() < 0.5):
        return [start.process.pid]
    return [draw.choice(ranks)]


def _at_a_step(start: LaunchedTraining, draw: random.Random) -> None:
    # A worker's last batches may all be there already; its death near the end is no fault to anybody.
    start.wait_for_step(draw.randint(1, STEPS - 2 - AHEAD * start.job.workers))


def _before_step_1(start: LaunchedTraining, draw: random.Random) -> None:
    time.sleep(draw.uniform(0.0, LONGEST_START))
    if start.step():
        raise TimedOut("the first step was done before the cut")


def _in_a_save(start: LaunchedTraining, draw: random.Random) -> None:
    (start.job.switches / "slow-disk").write_text(SLOW_DISK_SECONDS)
    written = draw.randint(0, SAVED_FILES)
    root = RunFolder(start.job.run).checkpoints
    start.wait(lambda: any(len(list(tmp.iterdir())) >= written for tmp in root.glob(".*.tmp")), "a save")


def _in_evaluation(start: LaunchedTraining, draw: random.Random) -> None:
    start.wait_for_event("checkpoint", STEPS)
    time.sleep(draw.uniform(0.0, 0.3))


def _aftermath(cut: Interruption, start: LaunchedTraining, code: int) -> list[str]:
    """Return why the cut was not the one that was meant, or its exit code not the one promised."""
    attempts = start.job.attempts()
    last = attempts[-1] if attempts else None
    allowed = {ExitCode.STOPPED} if cut.is_notice else {ExitCode.INTERNAL_ERROR}
    problems = []
    if cut.when in ("save", "wait") and not list(RunFolder(start.job.run).checkpoints.glob(".*.tmp")):
        problems.append("no half-written checkpoint is left: the save was over before the cut")
    if cut.when == "evaluation":
        allowed |= {ExitCode.SUCCESS} if cut.is_notice else set()
        if last is None or (not cut.is_notice and "finished" in dict(last.events)):
            problems.append("the evaluation was over before the cut")
    if code not in allowed:
        problems.append(f"the cut start ended with exit code {code}, not {sorted(map(int, allowed))}")
    return problems
