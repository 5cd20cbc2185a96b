"""Ranks that vote before every step, until a real signal reaches one of them, or one has no batch."""

from __future__ import annotations

import os
import signal
import threading
import time

from rank_start import with_comm

from hsadml_dist.comm import Comm
from hsadml_dist.stop.agreement import Decision, StopAgreement
from hsadml_dist.stop.signals import Notice

STEPS = 2000


def body(comm: Comm, case: str) -> dict[str, object]:
    """Return the step before which this rank stopped, and what it had noticed."""
    notice = Notice()
    notice.install()
    agreement, rank = StopAgreement(comm, notice), comm.topology.rank
    if case == "signal" and rank == comm.topology.world_size - 1:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR2)).start()
    for step in range(1, STEPS + 1):
        has_batch = not (case == "no batch" and rank == 0 and step == 7)
        if agreement.decide(has_batch=has_batch) is Decision.STOP:
            return {"step": step, "noticed": notice.signal_name}
        comm.vote(step)  # the step's collective, which no rank may enter alone
        time.sleep(0.001 * rank)
    return {"step": None, "noticed": notice.signal_name}


if __name__ == "__main__":
    with_comm(body)
