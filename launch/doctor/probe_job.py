"""The doctor's job: queue it, wait for it, and read the reports that its ranks write.

It uses the same batch script as a training, with :mod:`hsadml_dist.launch.doctor.probe_rank` in place of the trainer.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hsadml_dist.atomic import write_text
from hsadml_dist.errors import ClusterError
from hsadml_dist.jobs.submission import DEFAULT_SIGNAL_LEAD_SECONDS, job_request
from hsadml_dist.launch.doctor.host_checks import HostLimits
from hsadml_dist.slurm import client
from hsadml_dist.slurm.profiles import Profile
from hsadml_dist.slurm.sbatch import JobRequest, render

PROBE_MODULE = "hsadml_dist.launch.doctor.probe_rank"
TIME_LIMIT_SECONDS = 600
POLL_SECONDS = 1.0
SETTLE_SECONDS = 10.0
"""Longest time until the reports of ended ranks are visible here, on a slow network file system."""

Log = Callable[[str], None]
"""Called with a line about the job's progress."""


@dataclass(frozen=True, kw_only=True)
class GpuReport:
    """A rank's GPUs.

    Attributes:
        names: Names of the GPUs that torch sees.
        bf16: True if all of them support bfloat16.
        promised: GPUs that Slurm assigned (CUDA_VISIBLE_DEVICES); None if none.
    """

    names: tuple[str, ...] = ()
    bf16: bool = False
    promised: str | None = None


@dataclass(frozen=True, kw_only=True)
class CollectiveTiming:
    """Duration of a collective.

    Attributes:
        backend: ``gloo`` or ``nccl``.
        operation: ``all_reduce`` or ``all_gather``.
        size: Bytes of the result on each rank.
        seconds: Median over several calls.
    """

    backend: str
    operation: str
    size: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class GroupReport:
    """Measurements of a rank together with its peers.

    Attributes:
        address: This rank's address as its peers see it.
        interface: Network interface with this address; empty if unknown.
        stamps: This rank's clock in seconds since 1970 UTC, right after each of several all-reduces.
        round_trip: Shortest duration of these all-reduces in seconds.
        timings: Durations of collectives.
        seen: Number of ranks whose files in the shared folder are visible here.
        seen_seconds: Seconds until they were visible.
        won: For each race, True if this rank won it to create a folder.
        write_rate: MB/s while all nodes write; None on all but one rank of a node.
    """

    address: str
    interface: str
    stamps: tuple[float, ...]
    round_trip: float
    timings: tuple[CollectiveTiming, ...]
    seen: int
    seen_seconds: float
    won: tuple[bool, ...]
    write_rate: float | None


@dataclass(frozen=True, kw_only=True)
class RankReport:
    """Everything that a rank found out.

    Attributes:
        host: Name of its node.
        versions: Versions of Python and the packages; None for a package that is not installed.
        package: Folder from which this package was imported.
        machine: Resources and limits of the process.
        programs: Slurm's programs that are not on its PATH.
        submit: Why sbatch refuses a job from this node; empty if it accepts one; None if another rank of the node tests
            it.
        together: Measurements with its peers; None if the ranks did not connect.
        error: Why they did not connect.
    """

    rank: int
    host: str
    versions: Mapping[str, str | None]
    package: str
    machine: HostLimits
    programs: tuple[str, ...]
    submit: str | None
    gpus: GpuReport
    together: GroupReport | None = None
    error: str = ""


def probe_request(
    folder: Path, options: Profile, *, nodes: int, tasks_per_node: int, max_seconds: int | None = None
) -> JobRequest:
    """Return the request for the job.

    Args:
        folder: Folder for the reports, visible to all nodes.
        max_seconds: Time limit of the partition; None if there is none or it is unknown.
    """
    seconds = min(max_seconds or TIME_LIMIT_SECONDS, TIME_LIMIT_SECONDS)
    request = job_request(folder, options, nodes=nodes, tasks_per_node=tasks_per_node, mounts=[str(folder)])
    return replace(
        request,
        job_name="hsadml-doctor",
        time_limit=str(max(1, seconds // 60)),
        requeue="none",
        signal_lead_seconds=DEFAULT_SIGNAL_LEAD_SECONDS,
        rank_module=PROBE_MODULE,
    )


def run_probe_job(
    request: JobRequest, timeout: float, log: Log, env: Mapping[str, str] | None = None
) -> tuple[dict[int, RankReport], str]:
    """Queue the job, wait for its end and read the reports. The job is cancelled if this function ends first.

    Args:
        request: See :func:`probe_request`.
        timeout: Seconds to wait.
        log: Called with a line about each state of the job.
        env: Whole environment for Slurm's commands; None means this process's own.

    Returns:
        The reports by rank, of which some may be missing, and the last line of the job's output.

    Raises:
        ClusterError: Slurm refused the job, or it did not end in time.
        ConfigError: The request cannot be written as a batch script.
    """
    path = request.run_dir / "job.sbatch"
    write_text(path, render(request))
    job = client.sbatch(path, env)
    try:
        state = _wait_for_end(job, time.monotonic() + timeout, log, env)
    except BaseException:
        with contextlib.suppress(ClusterError):
            client.cancel(job, env)
            log(f"job {job}: cancelled")
        raise
    if state is not None and state != "COMPLETED":
        log(f"job {job}: {state}")
    return wait_for_reports(request.run_dir), last_output_line(request.run_dir)


def wait_for_reports(folder: Path, seconds: float = SETTLE_SECONDS) -> dict[int, RankReport]:
    """Return the reports as soon as all that are visible are complete, or when the time is over."""
    deadline = time.monotonic() + seconds
    while True:
        reports = read_rank_reports(folder)
        complete = all(one.together is not None or one.error for one in reports.values())
        if (reports and complete) or time.monotonic() > deadline:
            return reports
        time.sleep(POLL_SECONDS / 2)


def last_output_line(folder: Path) -> str:
    """Return the last line of the job's output; empty if there is none."""
    lines = [line.strip() for path in folder.glob("slurm-*.out") for line in path.read_text().splitlines()]
    return next((line for line in reversed(lines) if line), "")


def write_rank_report(folder: Path, report: RankReport) -> None:
    """Write a rank's report to the folder that the login node reads."""
    write_text(folder / f"rank-{report.rank:04d}.json", json.dumps(asdict(report), indent=1))


def read_rank_reports(folder: Path) -> dict[int, RankReport]:
    """Return the reports in a folder by rank."""
    reports = {}
    for path in sorted(folder.glob("rank-*.json")):
        report = _parse_report(_lists_to_tuples(json.loads(path.read_text(encoding="utf-8"))))
        reports[report.rank] = report
    return reports


def _parse_report(raw: dict[str, Any]) -> RankReport:
    together = raw["together"]
    if together is not None:
        timings = tuple(CollectiveTiming(**one) for one in together["timings"])
        together = GroupReport(**together | {"timings": timings})
    parsed = {"machine": HostLimits(**raw["machine"]), "gpus": GpuReport(**raw["gpus"]), "together": together}
    return RankReport(**raw | parsed)


def _lists_to_tuples(raw: Any) -> Any:
    if isinstance(raw, dict):
        return {key: _lists_to_tuples(value) for key, value in raw.items()}
    return tuple(map(_lists_to_tuples, raw)) if isinstance(raw, list) else raw


def _wait_for_end(job: str, deadline: float, log: Log, env: Mapping[str, str] | None) -> str | None:
    """Return the job's last state; None if Slurm does not know the job any more."""
    logged: str | None = ""
    while True:
        state = client.job_state(job, env)
        if state is None or state in client.END_STATES:
            return state
        if state != logged:
            logged = state
            log(f"job {job}: {state}")
        if time.monotonic() > deadline:
            raise ClusterError(f"the doctor's job {job} was still {state} after --timeout; it is cancelled")
        time.sleep(POLL_SECONDS)
