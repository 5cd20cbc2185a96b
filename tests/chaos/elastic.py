"""One training handed from 4 ranks to 2, to 1 and to 4 again, in fp64, beside one that always had 4."""

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


def elastic_chain(grounds: Workspace, draw: random.Random) -> dict[str, Any]:
    """Return the chain's figures: whether its ledger is the calm one's, how far its losses are, where it stopped."""
    calm = grounds.job(WORLDS[0], 0, FP64)
    _expect(calm.finish(), ExitCode.SUCCESS)
    chain = grounds.job(WORLDS[0], 0, FP64)
    handed_over = _stops(chain, draw)
    _expect(replace(chain, world=WORLDS[-1]).finish(), ExitCode.SUCCESS)
    ledgers = [[(row["step"], row["keys"]) for row in merged_ledger(job.run)] for job in (calm, chain)]
    losses = [[row["loss"] for row in merged_metrics(job.run)] for job in (calm, chain)]
    return judged_chain(ledgers, losses) | {"worlds": WORLDS, "handed_over_at": handed_over}


def judged_chain(ledgers: Sequence[Sequence[Any]], losses: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Compare the calm run (first) with the chain (second)."""
    same = ledgers[0] == ledgers[1] and len(ledgers[0]) == STEPS
    largest = max((abs(a - b) for a, b in zip(*losses, strict=False)), default=float("inf"))
    whole = len(losses[0]) == len(losses[1]) == STEPS
    return {"same_ledger": same, "largest_loss_difference": largest, "good": same and whole and largest <= TOLERANCE}


def _stops(chain: TrainingJob, draw: random.Random) -> list[int]:
    """Train with each number of ranks but the last for a while; return the steps at which it was stopped."""
    stops = []
    for part, world in enumerate(WORLDS[:-1]):
        with replace(chain, world=world).started() as start:
            start.wait_for_step(part * STEPS // len(WORLDS) + draw.randint(3, STEPS // len(WORLDS) - 2))
            start.process.send_signal(signal.SIGTERM)
            _expect((start.exit_code(), start.stderr), ExitCode.STOPPED)
        stops.append(chain.attempts()[-1].reached)
    return stops


def _expect(end: tuple[int, str], code: int) -> None:
    if end[0] != code:
        raise TimedOut(f"exit code {end[0]}, not {code}: {end[1][-400:]}")
