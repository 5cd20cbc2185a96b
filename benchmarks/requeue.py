"""Measure requeue time and start-up time of a job on a private Slurm cluster.

Requeue ("away"): from the last line of the old batch script to the first line of the next one, for a chain of jobs and
for a job that requeues itself, with Slurm's default settings. The run is stopped by a signal, so the nodes are free.
Start-up: from the first line of the script to the first step, interleaved with a job of as many ranks that only import
torch and monai.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hsadml_dist.jobs.prepare import prepare_run
from hsadml_dist.jobs.submission import JobOptions, Submission, plan_job
from hsadml_dist.slurm.devcluster.cluster import Cluster, up
from hsadml_dist.slurm.sbatch import COMMON_PART_MARKER, JobRequest, render

NODES, TASKS = 2, 2
SECONDS = 300.0
SLEEPER = """#!/bin/bash
# Replaces the interpreter: waits for a stop signal at its first start, exits at once at the second.
run=${!#}
[ -e "$run/stopped" ] && exit 0
trap 'touch "$run/stopped"; exit 85' TERM USR2
touch "$run/ready"
while :; do sleep 0.05; done
"""
BARE = "import sys, time, torch, monai; open(sys.argv[-1] + '/imported', 'a').write(f'{time.time()}\\\\n')"
SETTINGS = ("data.image_size=64", "train.steps=3", "train.global_batch=24", "evaluation.at_end=false")

Case = dict[str, Any]


def main() -> None:
    """Measure, print medians, write JSON."""
    options = read_options()
    folder = Path(tempfile.mkdtemp(prefix="hsadml-bench-", dir="/tmp"))
    try:
        with up(folder / "box", nodes=NODES, mode="local", site="default") as cluster:
            os.environ["SLURM_CONF"] = str(cluster.conf_file)
            cases = [away(cluster, folder, "chain", options.rounds), away(cluster, folder, "self", options.waits)]
            cases += starts(cluster, folder, options.rounds)
    finally:
        shutil.rmtree(folder)
    say(cases)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"machine": machine(), "cases": cases}, indent=2) + "\n")


def read_options() -> argparse.Namespace:
    """Return what was asked for on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--waits", type=int, default=1, help="rounds of a job that waits in the queue, 2 minutes each")
    return parser.parse_args()


def away(cluster: Cluster, folder: Path, requeue: str, rounds: int) -> Case:
    """Stop runs of sleeping ranks; return the seconds until their next script starts."""
    seconds = []
    for number in range(rounds):
        run = folder / f"away-{requeue}-{number}"
        run.mkdir()
        sleeper = folder / "sleeper"
        sleeper.write_text(SLEEPER)
        sleeper.chmod(0o755)
        request = asked(run, sleeper, requeue)
        job = queued(cluster, request)
        wait_for(lambda run=run: (run / "ready").exists())
        cluster.run(["scancel", "--signal=USR2", job])
        wait_for(lambda run=run: len(times(run / "begins")) == 2)
        wait_for(lambda: not cluster.run(["squeue", "--noheader"]).stdout.strip())
        seconds.append(times(run / "begins")[1] - times(run / "ends")[0])
    return {"case": "away", "implementation": requeue, "seconds": seconds}


def starts(cluster: Cluster, folder: Path, rounds: int) -> list[Case]:
    """Return the seconds from the script's first line to the first step, and to the end of bare imports."""
    shards = folder / "shards"
    hsadml = [sys.executable, "-m", "hsadml_dist.launch.cli"]
    build = [*hsadml, "shards", "build", "phantom", "12", "--out", str(shards), "--size", "64"]
    subprocess.run([*build, "--id-key", str(folder / "id.key")], check=True, capture_output=True)
    found: dict[str, list[float]] = {"ours": [], "bare-import": []}
    for number in range(rounds):
        run = folder / f"start-{number}"
        prepare_run("demo", [f"data.shards={shards}", *SETTINGS], run, False, NODES * TASKS)
        queued(cluster, asked(run, Path(sys.executable), "none"))
        metrics = run / "attempts" / "0001" / "metrics.jsonl"
        wait_for(lambda metrics=metrics: metrics.exists() and metrics.stat().st_size > 0)
        found["ours"].append(time.time() - times(run / "begins")[0])
        wait_for(lambda: not cluster.run(["squeue", "--noheader"]).stdout.strip())
        found["bare-import"].append(bare(cluster, folder / f"bare-{number}"))
    return [{"case": "start", "implementation": name, "seconds": seconds} for name, seconds in found.items()]


def bare(cluster: Cluster, run: Path) -> float:
    """Return the seconds from a script's first line to the last rank's last import."""
    run.mkdir()
    script = run / "bare.sbatch"
    shape = f"#SBATCH --nodes={NODES}\n#SBATCH --ntasks-per-node={TASKS}\n#SBATCH --output={run}/out\n"
    command = f'srun {sys.executable} -c "{BARE}" {run}\n'
    script.write_text(f"#!/bin/bash\n{shape}date +%s.%N >>{run}/begins\n{command}")
    cluster.run(["sbatch", str(script)])
    wait_for(lambda: len(times(run / "imported")) == NODES * TASKS)
    return max(times(run / "imported")) - times(run / "begins")[0]


def asked(run: Path, python: Path, requeue: str) -> JobRequest:
    """Return a job request for ``run``."""
    submission = Submission(
        recipe="demo",
        nodes=NODES,
        tasks_per_node=TASKS,
        run=run,
        overrides=("train.global_batch=24",),
        options=JobOptions(requeue=requeue),
    )
    return dataclasses.replace(plan_job(submission), python=str(python))


def queued(cluster: Cluster, request: JobRequest) -> str:
    """Queue our script with the times of its first and last line noted; return the job's id."""
    run = request.run_dir
    noted = f"date +%s.%N >>{run}/begins\ntrap 'date +%s.%N >>{run}/ends' EXIT\n"
    request.script.write_text(render(request).replace(COMMON_PART_MARKER, noted + COMMON_PART_MARKER))
    return cluster.run(["sbatch", "--parsable", str(request.script)]).stdout.strip()


def times(path: Path) -> list[float]:
    """Return the times in a file of one a line."""
    return [float(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(true: Callable[[], bool]) -> None:
    """Return as soon as ``true()``."""
    deadline = time.monotonic() + SECONDS
    while not true():
        if time.monotonic() > deadline:
            raise SystemExit("a job did not come so far in time")
        time.sleep(0.01)


def say(cases: list[Case]) -> None:
    """Print medians and the ratio that matters."""
    middle = {(case["case"], case["implementation"]): statistics.median(case["seconds"]) for case in cases}
    ratio = middle["start", "ours"] / middle["start", "bare-import"]
    lines = [f"{case:6} {name:12} {seconds:7.2f} s" for (case, name), seconds in middle.items()]
    lines.append(f"chain: {middle['away', 'chain']:.2f} s away (needed: at most 2)")
    lines.append(f"start: {ratio:.2f} times a bare import of torch and monai (needed: at most 1.5)")
    sys.stdout.write("\n".join(lines) + "\n")


def machine() -> dict[str, object]:
    """Return what the figures were measured on."""
    return {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version(), "system": platform.platform()}


if __name__ == "__main__":
    main()
