"""Ranks that vote and reduce step by step under a watchdog, until the last of them does what the case says."""

from __future__ import annotations

import ctypes
import os
import signal
import time

import torch
from rank_start import Call, meet

from hsadml_dist.comm import SoloComm
from hsadml_dist.config.run import RunConfig
from hsadml_dist.run import heartbeat
from hsadml_dist.run.attempts import this_process
from hsadml_dist.run.entry import Entry
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.log import open_log
from hsadml_dist.stop import hang
from hsadml_dist.stop.agreement import StopAgreement
from hsadml_dist.stop.deadman import standing_by
from hsadml_dist.stop.peers import peers_expected
from hsadml_dist.stop.signals import Notice
from hsadml_dist.stop.watchdog import Watch

LIMIT = 2
STRIKE = 3
STEPS = 30


def strike(case: str) -> None:
    """Do to this process what the case says."""
    match case:
        case "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "paused":
            time.sleep(0.6)  # before and after, so that the watchdog looks at this step on both sides of the pause
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(0.6)
        case "asleep" | "data":
            time.sleep(60)
        case "lock":
            ctypes.PyDLL(None).sleep(60)  # a PyDLL keeps the interpreter's lock
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)


def body(call: Call, entry: Entry, watch: Watch) -> None:
    """Do steps."""
    comm = entry.comm
    agreement = StopAgreement(comm, Notice())
    for step in range(1, STEPS + 1):
        due = step == STRIKE and call.rank == call.world - 1
        watch.at(step, "data")
        if due and call.case == "data":
            strike(call.case)
        watch.at(step, "vote")
        agreement.decide(step, has_batch=True)
        watch.at(step, "step")
        if due and call.case != "data":
            strike(call.case)
        comm.sum(torch.ones(3))
        time.sleep(0.01)


def main() -> None:
    """Be one rank; its process id is left for the test."""
    call = Call.read()
    # Everything twice as fast as in earnest.
    heartbeat.SIGN_SECONDS, hang.SILENT_SECONDS = 0.2, 1.5
    run = RunFolder(call.folder / "run")
    attempt = run.attempt(1)
    attempt.path.mkdir(parents=True, exist_ok=True)
    with standing_by(True) as deadman:
        comm = SoloComm() if call.world == 1 else meet(call)
        open_log(attempt, call.rank)
        (call.folder / f"pid-{call.rank}").write_text(str(os.getpid()))
        entry = Entry(attempt=attempt, holder=this_process("test"), comm=comm)
        watch = Watch(entry, RunConfig(step_timeout_seconds=LIMIT), deadman)
        with peers_expected(run, attempt, lambda: watch.place, watch.let_report):
            body(call, entry, watch)
        watch.close()
        comm.close()


if __name__ == "__main__":
    main()
