"""Ranks that decide before every step until one of them gets a signal, has no batch, or a request file appears."""

from __future__ import annotations

import os
import signal
import threading
import time

from rank_script import RankArguments, with_comm

from hsadml_dist.distributed.comm import Comm
from hsadml_dist.errors import RunLockedError
from hsadml_dist.preemption.agreement import StopAgreement
from hsadml_dist.preemption.requests import RequestFiles, StepDecision
from hsadml_dist.preemption.signals import StopSignal
from hsadml_dist.run.folder import RunFolder

STEPS = 2000


def body(comm: Comm, case: str) -> dict[str, object]:
    """Return the step before which this rank stopped, its stop reason, and the result of the last decision."""
    stop_signal = StopSignal()
    stop_signal.install()
    rank, world = comm.topology.rank, comm.topology.world_size
    run = RunFolder(RankArguments.read().folder / "run")
    agreement = StopAgreement(comm, stop_signal, RequestFiles(run, run.attempt(1)) if rank == 0 else None)
    if case == "signal" and rank == world - 1:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR2)).start()
    if case in {"STOP", "SAVE", "attempts/0002"} and rank == world - 1:
        threading.Timer(0.1, (run.path / case).mkdir, (0o777, True)).start()
    decisions: list[StepDecision] = []
    try:
        for step in range(1, STEPS + 1):
            has_batch = not (case == "no batch" and rank == 0 and step == 7)
            decisions.append(agreement.decide(step, has_batch=has_batch, seconds=step + rank / 10))
            if decisions[-1] is not StepDecision.CONTINUE:
                break
            comm.all_reduce_max([step])  # the collective of the step, which no rank may enter alone
            time.sleep(0.001 * (1 + rank))
    except RunLockedError:
        return {"locked": True, "step": step}
    return {"step": step, "reason": agreement.stop_reason, "last": decisions[-1], "seconds": agreement.seconds}


if __name__ == "__main__":
    with_comm(body)
