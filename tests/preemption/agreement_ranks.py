"""Ranks that vote before every step, until one of them is told to stop, or has no batch, or a file asks for it."""

from __future__ import annotations

import os
import signal
import threading
import time

from rank_script import Call, with_comm

from hsadml_dist.distributed.comm import Comm
from hsadml_dist.errors import RunLockedError
from hsadml_dist.preemption.agreement import StopAgreement
from hsadml_dist.preemption.requests import RequestFiles, StepDecision
from hsadml_dist.preemption.signals import StopSignal
from hsadml_dist.run.folder import RunFolder

STEPS = 2000


def body(comm: Comm, case: str) -> dict[str, object]:
    """Return the step before which this rank stopped, what it had noticed, and what the votes said."""
    notice = StopSignal()
    notice.install()
    rank, world = comm.topology.rank, comm.topology.world_size
    run = RunFolder(Call.read().folder / "run")
    agreement = StopAgreement(comm, notice, RequestFiles(run, run.attempt(1)) if rank == 0 else None)
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
            comm.all_reduce_max([step])  # the step's collective, which no rank may enter alone
            time.sleep(0.001 * (1 + rank))
    except RunLockedError as fault:
        return {"held": str(fault), "step": step}
    return {"step": step, "told": agreement.stop_reason, "last": decisions[-1], "seconds": agreement.seconds}


if __name__ == "__main__":
    with_comm(body)
