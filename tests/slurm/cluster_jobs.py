"""Jobs of fake ranks on a private cluster: helpers to read, await and preempt them."""

from __future__ import annotations

import json
from typing import Any

from hsadml_dist.slurm.devcluster import daemons
from hsadml_dist.slurm.devcluster.cluster import Cluster
from hsadml_dist.slurm.sbatch import JobRequest

RANKS = 4
"""Number of ranks in requests of the fixture ``request_of``."""
HANG_SECONDS = 180.0
"""Limit that only guards against a hang; everything here takes seconds."""


def rank_rows(request: JobRequest) -> list[dict[str, Any]]:
    """Return the rows that the fake ranks wrote."""
    files = request.run_dir.glob("rank-*.jsonl")
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def count_events(request: JobRequest, event: str, restart: int) -> int:
    """Return the number of ranks that wrote an event in a start of the job."""
    return sum(row["event"] == event and row["restart"] == restart for row in rank_rows(request))


def wait_for(request: JobRequest, event: str, restart: int) -> None:
    """Wait until all ranks have written an event in a start of the job."""
    has_come = daemons.wait_until(
        lambda: count_events(request, event, restart) == RANKS, seconds=HANG_SECONDS, pause=0.1
    )
    assert has_come, f"no {event} of restart {restart}: {rank_rows(request)}\n{job_output(request)}"


def job_output(request: JobRequest) -> str:
    """Return the output of all jobs of a run."""
    return "\n".join(path.read_text() for path in request.run_dir.glob("slurm-*.out"))


def read_end(request: JobRequest, job: str) -> str:
    """Return the code for how a job ended, as its script recorded it; empty if there is none."""
    path = request.run_dir / "ended" / job
    return path.read_text().strip() if path.exists() else ""


def write_stop_event(request: JobRequest, *, legacy: bool = False) -> None:
    """Write the events of an attempt that a STOP file has stopped; ``legacy``: as version 0.1 wrote them."""
    attempt = request.run_dir / "attempts" / "0001"
    attempt.mkdir(parents=True)
    rows: list[dict[str, Any]] = [{"event": "signal", "step": 3, "noticed": ["rank 0: STOP file"]}]
    if not legacy:
        rows = [{"event": "signal", "step": 3}, {"event": "stopped", "step": 3, "time": 1.5, "final": True}]
    (attempt / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def show_job(cluster: Cluster, job: str) -> dict[str, str]:
    """Return the fields of ``scontrol show job``."""
    words = cluster.run(["scontrol", "--oneliner", "show", "job", job]).stdout.split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def wait_state(cluster: Cluster, job: str, *states: str) -> dict[str, str]:
    """Wait until a job is in one of the states and return the fields of ``scontrol show job``."""
    daemons.wait_until(lambda: show_job(cluster, job)["JobState"] in states, seconds=HANG_SECONDS, pause=0.1)
    found = show_job(cluster, job)
    assert found["JobState"] in states, found
    return found


def start_requeued(cluster: Cluster, job: str) -> None:
    """Start a requeued job before Slurm's own delay is over.

    Not at once: within the second in which a job ended, slurmd refuses to start it again (job credential revoked).
    """
    cluster.run(["scontrol", "update", f"jobid={job}", "starttime=now+2"])


def wait_empty(cluster: Cluster) -> None:
    """Wait until no job is queued or running."""
    argv = ["squeue", "--noheader", "--format=%i %T %r"]
    is_empty = daemons.wait_until(lambda: not cluster.run(argv).stdout.strip(), seconds=HANG_SECONDS, pause=0.1)
    assert is_empty, cluster.run(argv).stdout


def preempt(cluster: Cluster, seconds: int = 1) -> str:
    """Queue a job that takes both nodes from other jobs for ``seconds``; return its id."""
    options = ["--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null"]
    return cluster.run(["sbatch", "--parsable", *options, f"--wrap=sleep {seconds}"]).stdout.strip()
