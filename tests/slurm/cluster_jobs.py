"""Jobs of fake ranks on a private cluster: what tests ask of them again and again."""

from __future__ import annotations

import json
from typing import Any

from hsadml_dist.slurm.devcluster import daemons
from hsadml_dist.slurm.devcluster.cluster import Cluster
from hsadml_dist.slurm.sbatch import JobRequest

RANKS = 4
"""Of the requests of the fixture ``request_of``."""


def rank_rows(request: JobRequest) -> list[dict[str, Any]]:
    """Return what the fake ranks wrote."""
    files = request.run_dir.glob("rank-*.jsonl")
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def count_events(request: JobRequest, event: str, restart: int) -> int:
    """Return of how many ranks a start has an event."""
    return sum(row["event"] == event and row["restart"] == restart for row in rank_rows(request))


def wait_for(request: JobRequest, event: str, restart: int, seconds: float = 30) -> None:
    """Return as soon as all ranks of a start have an event."""
    there = daemons.wait_until(lambda: count_events(request, event, restart) == RANKS, seconds=seconds, pause=0.1)
    assert there, f"{event} of restart {restart} not seen: {rank_rows(request)}\n{job_output(request)}"


def job_output(request: JobRequest) -> str:
    """Return the jobs' output."""
    return "\n".join(path.read_text() for path in request.run_dir.glob("slurm-*.out"))


def show_job(cluster: Cluster, job: str) -> dict[str, str]:
    """Return what scontrol shows of a job."""
    words = cluster.run(["scontrol", "--oneliner", "show", "job", job]).stdout.split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def wait_state(cluster: Cluster, job: str, *states: str, seconds: float = 20) -> dict[str, str]:
    """Return what scontrol shows of a job as soon as it is in one of the states."""
    daemons.wait_until(lambda: show_job(cluster, job)["JobState"] in states, seconds=seconds, pause=0.1)
    found = show_job(cluster, job)
    assert found["JobState"] in states, found
    return found


def preempt(cluster: Cluster) -> str:
    """Queue a short job that takes all nodes from others; return its id."""
    argv = ["sbatch", "--parsable", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1"]
    return cluster.run(argv).stdout.strip()
