"""Run the whole workflow in a few minutes: generate patients, build shards, train twice, preempt, resume, evaluate.

Each step is a command that you can also type. If Slurm is installed, the trainings are jobs on a private cluster, and
one is preempted by a job of higher priority. Otherwise they run in local processes, and one is stopped by a signal.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HSADML = [sys.executable, "-m", "hsadml_dist.launch.cli"]
PATIENTS = 120
RANKS = 2
LOSSES = ("sphereface", "softmax")
PREEMPTED_LOSS = "sphereface"
PREEMPT_AT_STEP = 250
"""Half of the recipe's 500 steps."""
SYSTEM_PATHS = os.pathsep.join(["/usr/sbin", "/sbin"])
SLURM_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
HANG_SECONDS = 540


def main() -> int:
    """Run the demo; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for all output")
    out = parser.parse_args().out
    if _on_login_node():
        print("This is a login node of a real cluster, and the demo would start its own Slurm daemons. Run instead:")
        print("  hsadml shards build phantom 120 --size 128 --out out/demo/shards")
        print("  hsadml submit demo --nodes 1 --tasks-per-node 2 --smoke")
        return 0
    _build_shards(out / "shards")
    runs = {loss: out / loss for loss in LOSSES}
    for run in runs.values():
        shutil.rmtree(run, ignore_errors=True)
    if _has_slurm():
        with _private_cluster(out / "cluster"):
            for loss, run in runs.items():
                _train_as_job(run, _settings(out, loss, run), preempted=loss == PREEMPTED_LOSS)
    else:
        print("Slurm is not installed: training in local processes instead of jobs.")
        for loss, run in runs.items():
            _train_in_local_processes(run, _settings(out, loss, run), stopped=loss == PREEMPTED_LOSS)
    return _evaluate(out, list(runs.values()))


def _settings(out: Path, loss: str, run: Path) -> list[str]:
    return ["demo", f"data.shards={out / 'shards'}", f"loss.name={loss}", "--run", str(run)]


def _on_login_node() -> bool:
    squeue = shutil.which("squeue")
    if squeue is None:
        return False
    return subprocess.run([squeue, "--noheader"], capture_output=True, timeout=60, check=False).returncode == 0


def _has_slurm() -> bool:
    path = os.pathsep.join([os.environ.get("PATH", ""), SYSTEM_PATHS])
    return all(shutil.which(name, path=path) for name in SLURM_PROGRAMS)


def _build_shards(shards: Path) -> None:
    if shards.exists():
        print(f"{shards} exists; using it")
        return
    _run("shards", "build", "phantom", str(PATIENTS), "--size", "128", "--out", str(shards))


@contextmanager
def _private_cluster(cluster: Path) -> Iterator[None]:
    if cluster.exists():
        _run("cluster", "down", str(cluster))
    _run("cluster", "up", str(cluster), "--nodes", "1")
    os.environ["SLURM_CONF"] = str((cluster / "slurm.conf").resolve())
    try:
        yield
    finally:
        _run("cluster", "down", str(cluster))


def _train_as_job(run: Path, settings: list[str], *, preempted: bool) -> None:
    _run("submit", *settings, "--nodes", "1", "--tasks-per-node", str(RANKS), "--requeue", "self")
    if preempted:
        _wait_for_step(run, PREEMPT_AT_STEP)
        print(
            "\nA job of higher priority preempts the training, which saves a checkpoint, is requeued and resumes:",
            flush=True,
        )
        _print_and_run(["sbatch", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap=sleep 2"])
    _wait_for_end(run)


def _train_in_local_processes(run: Path, settings: list[str], *, stopped: bool) -> None:
    command = [*HSADML, "train", *settings, "--nproc", str(RANKS)]
    print(f"\n$ hsadml {shlex.join(command[len(HSADML) :])}", flush=True)
    if stopped:
        first = subprocess.Popen(command)
        _wait_for_step(run, PREEMPT_AT_STEP)
        print("\nSIGTERM stops the training, which saves a checkpoint and ends with exit code 85:", flush=True)
        first.send_signal(signal.SIGTERM)
        print(f"exit code {first.wait()}; the same command resumes", flush=True)
    subprocess.run(command, check=True)


def _wait_for_step(run: Path, step: int) -> None:
    deadline = time.monotonic() + HANG_SECONDS
    while _count_steps(run) < step:
        if time.monotonic() > deadline:
            raise SystemExit(f"{run}: step {step} was not reached in {HANG_SECONDS} s; see the logs in the run folder")
        time.sleep(0.5)


def _wait_for_end(run: Path) -> None:
    deadline, printed = time.monotonic() + HANG_SECONDS, 0
    while True:
        events = [json.loads(line) for path in sorted(run.glob("attempts/*/events.jsonl")) for line in path.open()]
        for event in events[printed:]:
            print(f"  attempt {event['attempt']}, step {event['step']}: {event['event']}", flush=True)
        printed = len(events)
        if any(event["event"] == "finished" for event in events):
            return
        if any(event["event"] == "failed" for event in events) or time.monotonic() > deadline:
            raise SystemExit(f"{run}: the training failed or hangs; see the logs in the run folder")
        time.sleep(1)


def _count_steps(run: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in run.glob("attempts/*/metrics.jsonl"))


def _evaluate(out: Path, runs: list[Path]) -> int:
    _run("evaluate", *map(str, runs), "--combine", str(out / "combined"))
    for page in (out / "shards" / "card.html", *(run / "report.html" for run in runs), out / "combined/combined.html"):
        print(f"open {page.resolve()}")
    return 0


def _run(*arguments: str) -> None:
    print(f"\n$ hsadml {shlex.join(arguments)}", flush=True)
    subprocess.run([*HSADML, *arguments], check=True)


def _print_and_run(command: list[str]) -> None:
    print(f"$ {shlex.join(command)}", flush=True)
    subprocess.run(command, check=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as failed:
        sys.exit(f"demo: {shlex.join(failed.cmd)} ended with exit code {failed.returncode}")
