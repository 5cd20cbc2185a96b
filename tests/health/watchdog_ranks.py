"""Ranks that train in miniature under a watchdog until a fault strikes the last of them."""

from __future__ import annotations

import ctypes
import os
import signal
import time

import torch
from rank_script import RankArguments, connect

from hsadml_dist.config.recipe import RunConfig
from hsadml_dist.distributed.comm import SoloComm
from hsadml_dist.health import hang_report, heartbeat
from hsadml_dist.health.external_watchdog import open_external_watchdog
from hsadml_dist.health.hang_report import raise_on_lost_peer
from hsadml_dist.health.watchdog import HealthMonitor
from hsadml_dist.preemption.agreement import StopAgreement
from hsadml_dist.preemption.signals import StopSignal
from hsadml_dist.run.attempts import current_holder
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.rendezvous import RankContext
from hsadml_dist.run.trackers import configure_rank_logging

LIMIT = 2
FAULT_STEP = 3
STEPS = 30


def fail_as(case: str) -> None:
    """Make this process fail in the way of the case."""
    match case:
        case "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "paused":
            time.sleep(0.6)  # before and after, so that the watchdog polls this step on both sides of the pause
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(0.6)
        case "asleep" | "data":
            time.sleep(60)
        case "lock":
            ctypes.PyDLL(None).sleep(60)  # PyDLL holds the interpreter's lock
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)


def body(arguments: RankArguments, context: RankContext, watch: HealthMonitor) -> None:
    """Run the steps."""
    comm = context.comm
    agreement = StopAgreement(comm, StopSignal())
    for step in range(1, STEPS + 1):
        due = step == FAULT_STEP and arguments.rank == arguments.world - 1
        watch.enter_stage(step, "data")
        if due and arguments.case == "data":
            fail_as(arguments.case)
        watch.enter_stage(step, "vote")
        agreement.decide(step, has_batch=True)
        watch.enter_stage(step, "step")
        if due and arguments.case != "data":
            fail_as(arguments.case)
        comm.all_reduce_sum(torch.ones(3))
        time.sleep(0.01)


def main() -> None:
    """Run as one rank; its process id is written for the test."""
    arguments = RankArguments.read()
    # Faster than in production.
    heartbeat.RANK_HEARTBEAT_SECONDS, hang_report.SILENT_SECONDS = 0.2, 1.5
    run = RunFolder(arguments.folder / "run")
    attempt = run.attempt(1)
    attempt.path.mkdir(parents=True, exist_ok=True)
    with open_external_watchdog(True) as external_watchdog:
        comm = SoloComm() if arguments.world == 1 else connect(arguments)
        configure_rank_logging(attempt, arguments.rank)
        (arguments.folder / f"pid-{arguments.rank}").write_text(str(os.getpid()))
        context = RankContext(attempt=attempt, holder=current_holder("test"), comm=comm)
        watch = HealthMonitor(context, RunConfig(step_timeout_seconds=LIMIT), external_watchdog)
        with raise_on_lost_peer(run, attempt, lambda: watch.position, watch.wait_for_report):
            body(arguments, context, watch)
        watch.close()
        comm.close()


if __name__ == "__main__":
    main()
