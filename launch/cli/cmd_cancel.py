"""``hsadml cancel``: cancel all jobs of runs."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hsadml_dist.errors import ClusterError, ExitCode, UsageError
from hsadml_dist.launch.cli.terminal import display_path, echo
from hsadml_dist.run.folder import RunFolder, find_runs
from hsadml_dist.run.run_state import read_run_state
from hsadml_dist.slurm import client, job_queue
from hsadml_dist.slurm.client import SlurmJob
from hsadml_dist.slurm.job_records import read_job_records

POLL_SECONDS = 0.5
MAX_POLL_SECONDS = 5.0
"""Longest pause between two queries to a controller that others need too."""
TIMEOUT_SECONDS = 90.0
"""A cancelled job has KillWait, often 30 s, to save and exit, and a busy controller takes its time."""
QUIET_SECONDS = 2.0
RETRY_SECONDS = 10.0
COMPLETING = "COMPLETING"


def cancel(*runs: Path) -> int:
    """Cancel all jobs of runs: first the pending ones, so that none starts when another ends, then the running ones.

    Returns when they have ended, because a job that has just started may still queue its successor, which is cancelled
    too. A running training gets Slurm's grace time to save.

    Args:
        runs: Run folders, or folders of run folders.
    """
    if not runs:
        raise UsageError("cancel: name at least one run folder")
    canceller = JobCanceller(find_runs(runs))
    try:
        canceller.run()
    finally:
        job_queue.record_cancelled(canceller.cancelled)
    return ExitCode.USER_ERROR if canceller.refused else ExitCode.SUCCESS


class JobCanceller:
    """Cancels the jobs of runs until none is left.

    Attributes:
        refused: Jobs that Slurm refused to cancel.
    """

    def __init__(
        self,
        runs: Sequence[RunFolder],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._runs, self._clock, self._sleep = runs, clock, sleep
        self._requested: dict[str, float] = {}
        self._printed = ""
        self.refused: set[str] = set()

    @property
    def cancelled(self) -> list[str]:
        """Jobs that were cancelled so far."""
        return [job for job in self._requested if job not in self.refused]

    def run(self) -> None:
        """Cancel all jobs of the runs and wait until they have ended.

        Raises:
            ClusterError: Slurm is missing or does not answer.
        """
        start, pause = self._clock(), POLL_SECONDS
        while True:
            ids = self._job_ids()
            left = self._poll(ids)
            # A job that ended during this poll may have queued another one before.
            if (not left and self._job_ids() == ids) or self._clock() > start + TIMEOUT_SECONDS:
                break
            if left and self._clock() > start + QUIET_SECONDS:
                self._print_once(f"waiting for job {', '.join(left)} to end")
            self._sleep(pause)
            pause = min(pause * 1.5, MAX_POLL_SECONDS)
        if left:
            self._print_once(f"job {', '.join(left)} has not ended yet; hsadml status shows when it has")
        for run, jobs in zip(self._runs, self._job_ids(), strict=True):
            if not any(job in self._requested for job in jobs):
                echo(_describe_nothing_cancelled(run, bool(jobs)))

    def _print_once(self, text: str) -> None:
        if text != self._printed:
            self._printed = text
            echo(text)

    def _job_ids(self) -> list[list[str]]:
        """Return each run's jobs, newest first."""
        return [[record.job for record in reversed(read_job_records(run))] for run in self._runs]

    def _poll(self, ids: Sequence[Sequence[str]]) -> list[str]:
        """Cancel the jobs that have not ended and return them."""
        wanted = [job for jobs in ids for job in jobs]
        known = job_queue.query_jobs(wanted) if wanted else {}
        live = {name: job for name, job in known.items() if not job.has_ended and name not in self.refused}
        for run, jobs in zip(self._runs, ids, strict=True):
            for job in sorted((live[name] for name in jobs if name in live), key=lambda job: not job.is_pending):
                self._cancel(run, job)
        return [name for name in live if name not in self.refused]

    def _cancel(self, run: RunFolder, job: SlurmJob) -> None:
        before = self._requested.get(job.job)
        if job.state == COMPLETING or (before is not None and self._clock() < before + RETRY_SECONDS):
            return
        try:
            client.cancel(job.job)
        except ClusterError as fault:
            self.refused.add(job.job)
            echo(f"hsadml: {display_path(run.path)}: job {job.job}: {fault}", error=True)
        self._requested[job.job] = self._clock()
        if job.job not in self.refused:
            state = "pending" if job.is_pending else "running"
            echo(f"{display_path(run.path)}: cancelled job {job.job} ({state})")


def _describe_nothing_cancelled(run: RunFolder, had_jobs: bool) -> str:
    state, name = read_run_state(run, time.time()), display_path(run.path)
    if state.job is None and state.phase in ("starting", "running"):
        return (
            f"{name}: trains without Slurm; to stop it press Ctrl-C where it runs, or: touch {shlex.quote(name)}/STOP"
        )
    return f"{name}: all its jobs have ended" if had_jobs else f"{name}: has no job"
