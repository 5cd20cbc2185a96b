"""Which jobs a run was handed to: one row each in ``RUN/jobs.jsonl``.

The first row of a submission is written by who submits; each further link of a chain is written by the batch script of
the link before it, from a node. So rows are plain, short and appended in one write each.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.jsonl import JsonlWriter, read_jsonl

RequeueMode = Literal["chain", "self", "none"]
REQUEUE_MODES: tuple[str, ...] = get_args(RequeueMode)
Backend = Literal["sbatch", "submitit"]
BACKENDS: tuple[str, ...] = get_args(Backend)
JOBS_FILE = "jobs.jsonl"
"""Name in the run folder."""
SUBMITIT_FOLDER = "submitit"
"""Name of submitit's own folder, in the run folder or beside an array's."""


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """A job that was queued for a run.

    Attributes:
        job: What squeue, scontrol and scancel know it by: ``12``, or ``12_3`` for element 3 of an array.
        requeue: How it comes back once it was stopped.
        after: The job that it follows in a chain; None for the first.
        backend: Who wrote its batch script.
        time: When it was queued, in seconds since 1970 UTC.
    """

    job: str
    requeue: RequeueMode
    after: str | None = None
    backend: Backend = "sbatch"
    time: float


def record_job(run: RunFolder, job: str, requeue: RequeueMode, backend: Backend = "sbatch") -> None:
    """Note that ``job`` was queued now.

    Raises:
        RunError: The row could not be written.
    """
    writer = JsonlWriter(run.path / JOBS_FILE)
    try:
        writer.write(asdict(JobRecord(job=job, requeue=requeue, backend=backend, time=time.time())))
    finally:
        writer.close()


def read_job_records(run: RunFolder) -> list[JobRecord]:
    """Return the jobs of a run in the order in which they were queued; those of ``hsadml train`` have none."""
    return [JobRecord(**row) for row in read_jsonl(run.path / JOBS_FILE)]


def job_output_paths(run: RunFolder, job: str) -> list[Path]:
    """Return where a job's output may lie: in the run folder, or beside it where the job is an array's element."""
    names = (f"slurm-{job}.out", f"{SUBMITIT_FOLDER}/{job}_0_log.out")
    return [folder / name for folder in (run.path, run.path.parent) for name in names]
