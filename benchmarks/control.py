"""Measure the control overhead of a step and the time until a hang is reported.

Control is everything a step does besides learning: recording the position of the rank, the stop agreement, checking for
STOP and SAVE files and a later attempt, and comparing step times, while heartbeat and watchdog threads run. It is timed
directly; a barrier before each agreement aligns the ranks, so that waiting for a late rank does not count. A hang is a
rank stopped by SIGSTOP in the middle of a step, timed until its peer has reported it and exited.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import torch
import torch.distributed as dist
from bare_loop import rank_environ
from torch import nn

from hsadml_dist.config.recipe import RunConfig
from hsadml_dist.distributed.topology import topology_from_environ
from hsadml_dist.health.external_watchdog import open_external_watchdog
from hsadml_dist.health.stragglers import StragglerMonitor
from hsadml_dist.health.watchdog import HealthMonitor
from hsadml_dist.preemption.agreement import StopAgreement
from hsadml_dist.preemption.requests import RequestFiles
from hsadml_dist.preemption.signals import StopSignal
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.jsonl import read_jsonl
from hsadml_dist.run.rendezvous import RankContext, join_run
from hsadml_dist.run.trackers import configure_rank_logging

STEP_SECONDS = 0.2
"""Step time that the overhead is compared with."""
WARM_UP = 10
LIMIT_SECONDS = 3


def main() -> None:
    """Measure, print medians, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--hangs", type=int, default=3)
    parser.add_argument("--rank-in", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--hang", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_in:
        be_rank(options.rank_in, options.steps, hang=options.hang)
        os._exit(0)
    cases = [cost(world, options.steps) for world in (1, 2)]
    if options.hangs:
        cases.append(report(options.hangs))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        machine = {"processor_count": os.cpu_count(), "torch": torch.__version__}
        options.json.write_text(json.dumps({"machine": machine, "cases": cases}, indent=2) + "\n")


def cost(world: int, steps: int) -> dict[str, object]:
    """Return the control seconds of each step on its slowest rank."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = start(Path(folder), world, steps)
        codes = [rank.wait(timeout=600) for rank in ranks]
        if any(codes):
            raise SystemExit(f"ranks ended with exit codes {codes}")
        by_rank = [json.loads((Path(folder) / f"seconds-{rank}.json").read_text()) for rank in range(world)]
    seconds = [max(step) for step in zip(*by_rank, strict=True)]
    middle = statistics.median(seconds)
    high = statistics.quantiles(seconds, n=20)[-1]
    sys.stdout.write(
        f"{world} rank(s): control {1e3 * middle:.3f} ms a step (95 %: {1e3 * high:.3f} ms), "
        f"{100 * middle / STEP_SECONDS:.2f} % of a step of {1e3 * STEP_SECONDS:.0f} ms\n"
    )
    return {"case": f"control a step, {world} ranks", "implementation": "ours", "seconds": seconds}


def report(count: int) -> dict[str, object]:
    """Return the seconds from stopping a rank to the exit of the peer that reports it."""
    seconds = [one_report() for _ in range(count)]
    sys.stdout.write(
        f"a stopped rank is reported and its peer gone after {statistics.median(seconds):.2f} s "
        f"(largest {max(seconds):.2f} s) with a time-out of {LIMIT_SECONDS} s\n"
    )
    return {
        "case": f"hang to report, time-out {LIMIT_SECONDS} s",
        "implementation": "ours",
        "seconds": seconds,
        "timeout_seconds": LIMIT_SECONDS,
    }


def one_report() -> float:
    """Let one of two ranks stop itself; return the seconds until the other has named it and exited."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = start(Path(folder), 2, 10**6, "--hang")
        try:
            code = ranks[0].wait(timeout=120)
            ended = time.time()
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
        [event] = [row for row in read_jsonl(RunFolder(Path(folder)).attempt(1).events) if row["event"] == "hang"]
        if code != 70 or event["ranks"] != [1]:
            raise SystemExit(f"rank 0 ended with {code}, and named {event['ranks']}")
        return ended - float((Path(folder) / "stopped").read_text())


def start(folder: Path, world: int, steps: int, *more: str) -> list[subprocess.Popen[bytes]]:
    """Start the ranks."""
    token = uuid.uuid4().hex
    command = [sys.executable, __file__, "--rank-in", str(folder), "--steps", str(steps), *more]
    silent = subprocess.DEVNULL if more else None  # a hang is printed
    return [
        subprocess.Popen(command, env=os.environ | rank_environ(rank, world, token), stderr=silent)
        for rank in range(world)
    ]


def be_rank(folder: Path, steps: int, *, hang: bool) -> None:
    """Run one rank: steps with control only."""
    run, topology = RunFolder(folder), topology_from_environ()
    torch.set_num_threads(1)
    with open_external_watchdog(True) as external_watchdog:
        context = join_run(run, topology, {}, 60, lambda: False)
        configure_rank_logging(context.attempt, topology.rank)
        watch = HealthMonitor(context, RunConfig(step_timeout_seconds=LIMIT_SECONDS), external_watchdog)
        seconds = measure(run, context, watch, steps, folder / "stopped" if hang else None)
        (folder / f"seconds-{topology.rank}.json").write_text(json.dumps(seconds))
        watch.close()
        context.comm.close()


def measure(
    run: RunFolder, context: RankContext, watch: HealthMonitor, steps: int, stopped: Path | None
) -> list[float]:
    """Return this rank's seconds of control in each step; with ``stopped``, rank 1 writes the time there and stops."""
    comm = context.comm
    requests = RequestFiles(run, context.attempt) if comm.topology.is_rank_zero else None
    agreement = StopAgreement(comm, StopSignal(), requests)
    pace = StragglerMonitor(nn.Linear(1, 1), comm)
    seconds: list[float] = []
    for step in range(1, WARM_UP + steps + 1):
        if comm.group is not None:
            dist.barrier()
        began = time.perf_counter()
        watch.enter_stage(step, "data")
        watch.enter_stage(step, "vote")
        agreement.decide(step, has_batch=True, seconds=pace.compute_seconds())
        watch.enter_stage(step, "step")
        pace.find_stragglers(agreement.seconds)
        if step > WARM_UP:
            seconds.append(time.perf_counter() - began)
        if stopped is not None and step > 2 * WARM_UP and not comm.topology.is_rank_zero:
            stopped.write_text(repr(time.time()))
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(0.01)  # the other threads run as in a real step
    return seconds


if __name__ == "__main__":
    main()
