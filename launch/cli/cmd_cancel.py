"""``hsadml cancel``."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from hsadml_dist.errors import ClusterError, ExitCode, UsageError
from hsadml_dist.launch.cli.cmd_status import shown
from hsadml_dist.run.folder import RunFolder, find_runs
from hsadml_dist.run.run_state import read_run_state
from hsadml_dist.slurm import client
from hsadml_dist.slurm import job_queue as queue
from hsadml_dist.slurm.client import SlurmJob
from hsadml_dist.slurm.job_records import read_job_records

LOOK_SECONDS = 0.5
LONGEST_PAUSE = 5.0
"""Between two questions to a controller that others need too."""
PATIENCE_SECONDS = 90.0
"""A job that was cancelled gets KillWait, often 30 s, to save and leave; a busy controller takes its time too."""
SAY_SECONDS = 2.0
AGAIN_SECONDS = 10.0
ENDING = "COMPLETING"


def cancel(*runs: Path) -> int:
    """Cancel all jobs of runs: those that wait first, so that none goes on where another ends; then those that run.

    Returns once they have ended: until then a job that has just begun may queue its successor, which is cancelled too.
    A running training gets Slurm's grace time to save.

    Args:
        runs: Run folders, or folders of run folders.
    """
    if not runs:
        raise UsageError("cancel: name at least one run folder")
    work = JobCanceller(find_runs(runs))
    try:
        work.go()
    finally:
        queue.record_cancelled(work.cancelled)
    return ExitCode.USER_ERROR if work.refused else ExitCode.SUCCESS


class JobCanceller:
    """Cancels until a look finds nothing more."""

    def __init__(self, runs: Sequence[RunFolder]) -> None:
        self._runs = runs
        self._told: dict[str, float] = {}
        self._said = ""
        self.refused: set[str] = set()

    @property
    def cancelled(self) -> list[str]:
        """The jobs that were cancelled so far."""
        return [job for job in self._told if job not in self.refused]

    def go(self) -> None:
        """Cancel all jobs of the runs and wait for their ends.

        Raises:
            ClusterError: Slurm is absent or does not answer.
        """
        began, pause = time.monotonic(), LOOK_SECONDS
        while True:
            ids = self._ids()
            left = self._look(ids)
            # A job that ended during this look may have queued another one before.
            if (not left and self._ids() == ids) or time.monotonic() > began + PATIENCE_SECONDS:
                break
            if left and time.monotonic() > began + SAY_SECONDS:
                self._say(f"waiting for the end of job {', '.join(left)}")
            time.sleep(pause)
            pause = min(pause * 1.5, LONGEST_PAUSE)
        if left:
            self._say(f"still ending: job {', '.join(left)}; hsadml status tells when it is over")
        for run, jobs in zip(self._runs, self._ids(), strict=True):
            if not any(job in self._told for job in jobs):
                print(_nothing_done(run, bool(jobs)))

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            print(text, flush=True)

    def _ids(self) -> list[list[str]]:
        """Return each run's jobs, the newest first."""
        return [[submitted.job for submitted in reversed(read_job_records(run))] for run in self._runs]

    def _look(self, ids: Sequence[Sequence[str]]) -> list[str]:
        """Cancel what has not ended; return what is left."""
        asked = [job for jobs in ids for job in jobs]
        known = queue.query_jobs(asked) if asked else {}
        live = {name: job for name, job in known.items() if not job.has_ended and name not in self.refused}
        for run, jobs in zip(self._runs, ids, strict=True):
            for job in _in_order(jobs, live):
                self._cancel(run, job)
        return [name for name in live if name not in self.refused]

    def _cancel(self, run: RunFolder, job: SlurmJob) -> None:
        before = self._told.get(job.job)
        if job.state == ENDING or (before is not None and time.monotonic() < before + AGAIN_SECONDS):
            return
        try:
            client.cancel(job.job)
        except ClusterError as fault:
            self.refused.add(job.job)
            print(f"hsadml: {shown(run.path)}: job {job.job}: {fault}", file=sys.stderr)
        self._told[job.job] = time.monotonic()
        if job.job not in self.refused:
            print(f"{shown(run.path)}: cancelled job {job.job} ({'waited' if job.is_pending else 'ran'})", flush=True)


def _in_order(jobs: Sequence[str], live: Mapping[str, SlurmJob]) -> list[SlurmJob]:
    """Return the live ones of ``jobs``, those that wait before those that run."""
    return sorted((live[name] for name in jobs if name in live), key=lambda job: not job.is_pending)


def _nothing_done(run: RunFolder, had_jobs: bool) -> str:
    """Return what to say of a run of which nothing was cancelled."""
    state, name = read_run_state(run, time.time()), shown(run.path)
    if state.job is None and state.phase in ("starting", "running"):
        return f"{name}: trains without Slurm: Ctrl-C where it was started ends it, or touch {shlex.quote(name)}/STOP"
    return f"{name}: no job is left" if had_jobs else f"{name}: has no job"
