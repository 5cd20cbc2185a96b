"""One training resumed with 4, 2, 1 and again 4 ranks, in fp64, compared with one that always has 4."""

from __future__ import annotations

import random
import signal
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hsadml_dist.errors import ExitCode
from hsadml_dist.run.history import merged_ledger, merged_metrics
from tests.chaos.baseline_runs import Workspace
from tests.chaos.training_process import STEPS, TimedOut, TrainingJob

WORLDS = (4, 2, 1, 4)
TOLERANCE = 1e-9
FP64 = ("engine.precision=fp64",)


def elastic_chain(workspace: Workspace, rng: random.Random) -> dict[str, Any]:
    """Return how ledger and losses of the chain compare with the baseline, and the steps of its stops."""
    baseline = workspace.job(WORLDS[0], 0, FP64)
    _expect(baseline.finish(), ExitCode.SUCCESS)
    chain = workspace.job(WORLDS[0], 0, FP64)
    handed_over = _stops(chain, rng)
    _expect(replace(chain, world=WORLDS[-1]).finish(), ExitCode.SUCCESS)
    ledgers = [[(row["step"], row["keys"]) for row in merged_ledger(job.run)] for job in (baseline, chain)]
    losses = [[row["loss"] for row in merged_metrics(job.run)] for job in (baseline, chain)]
    return compare_chain(ledgers, losses) | {"worlds": WORLDS, "handed_over_at": handed_over}


def compare_chain(ledgers: Sequence[Sequence[Any]], losses: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Compare the baseline run (first) with the chain (second)."""
    same = ledgers[0] == ledgers[1] and len(ledgers[0]) == STEPS
    largest = max((abs(a - b) for a, b in zip(*losses, strict=False)), default=float("inf"))
    complete = len(losses[0]) == len(losses[1]) == STEPS
    return {"same_ledger": same, "largest_loss_difference": largest, "good": same and complete and largest <= TOLERANCE}


def _stops(chain: TrainingJob, rng: random.Random) -> list[int]:
    """Train some steps with each number of ranks but the last; return the steps of the stops."""
    stops = []
    for part, world in enumerate(WORLDS[:-1]):
        with replace(chain, world=world).started() as start:
            start.wait_for_step(part * STEPS // len(WORLDS) + rng.randint(3, STEPS // len(WORLDS) - 2))
            start.process.send_signal(signal.SIGTERM)
            _expect((start.exit_code(), start.stderr), ExitCode.STOPPED)
        stops.append(chain.attempts()[-1].reached)
    return stops


def _expect(end: tuple[int, str], code: int) -> None:
    if end[0] != code:
        raise TimedOut(f"exit code {end[0]}, not {code}: {end[1][-400:]}")
