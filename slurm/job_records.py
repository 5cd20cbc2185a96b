"""Files that jobs leave in a run folder: which jobs were submitted, and why a job declined to train.

``RUN/jobs.jsonl`` has one row per job. The first row of a submission is written by the process that submits; each
further link of a chain is written by the batch script of the link before it, from a node. Rows are therefore plain,
short, and appended in one write each. ``RUN/ended/JOBID.declined`` holds one code, written by the batch script.
"""

from __future__ import annotations

import contextlib
import enum
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.jsonl import JsonlWriter, Kinds, read_jsonl

RequeueMode = Literal["chain", "self", "none"]
REQUEUE_MODES: tuple[str, ...] = get_args(RequeueMode)
Backend = Literal["sbatch", "submitit"]
JOBS_FILE = "jobs.jsonl"
"""Name in the run folder."""
ROW_KINDS: Mapping[str, Kinds] = {"job": str, "requeue": str, "time": (int, float)}
SUBMITIT_FOLDER = "submitit"
"""Name of submitit's folder, in the run folder or in the parent folder of an array."""


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """A job that was queued for a run.

    Attributes:
        job: Id for squeue, scontrol and scancel: ``12``, or ``12_3`` for element 3 of an array.
        requeue: How the run continues after a stop.
        after: The job before it in a chain; None for the first.
        backend: Writer of the batch script.
        time: When it was queued, in seconds since 1970 UTC.
    """

    job: str
    requeue: RequeueMode
    after: str | None = None
    backend: Backend = "sbatch"
    time: float


class DeclineReason(enum.StrEnum):
    """Why a job ended without training; ``train.sbatch`` writes the codes."""

    PREDECESSOR_CANCELLED = "predecessor_cancelled"
    RUN_OVER = "run_over"
    PREDECESSOR_FAILED = "predecessor_failed"
    ALREADY_ENDED = "already_ended"
    REQUEUED_BY_SITE = "requeued_by_site"


def record_job(run: RunFolder, job: str, requeue: RequeueMode, backend: Backend = "sbatch") -> None:
    """Append a job that was queued now.

    Raises:
        RunError: The row could not be written.
    """
    with contextlib.closing(JsonlWriter(run.path / JOBS_FILE)) as writer:
        writer.write(asdict(JobRecord(job=job, requeue=requeue, backend=backend, time=time.time())))


def read_job_records(run: RunFolder) -> list[JobRecord]:
    """Return the jobs of a run in the order of submission; empty for runs of ``hsadml train``."""
    known = {field.name for field in fields(JobRecord)}
    rows = read_jsonl(run.path / JOBS_FILE, ROW_KINDS)
    return [JobRecord(**{name: value for name, value in row.items() if name in known}) for row in rows]


def read_decline(run: RunFolder, job: str) -> DeclineReason | None:
    """Return why a job declined to train; None if it did not, or its script wrote no code."""
    try:
        return DeclineReason((run.path / "ended" / f"{job}.declined").read_text().strip())
    except (OSError, ValueError):
        return None


def job_output_paths(run: RunFolder, job: str) -> list[Path]:
    """Return where the output of a job may be: in the run folder, or for an array element in its parent folder."""
    names = (f"slurm-{job}.out", f"{SUBMITIT_FOLDER}/{job}_0_log.out")
    return [folder / name for folder in (run.path, run.path.parent) for name in names]
