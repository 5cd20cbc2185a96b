"""What Slurm's commands answer about a job, as values: pure reading of text."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass

SQUEUE_FORMAT = "%i|%A|%T|%S|%N|%r"
SACCT_FIELDS = ("JobID", "JobIDRaw", "State", "Start", "NodeList", "ExitCode")
PENDING_STATES = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT"}
END_STATES = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}
FORGOTTEN = "FORGOTTEN"
"""Stands for the state of a job that Slurm knows nothing of."""


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """What Slurm says of a job.

    Attributes:
        job: Its id: ``12``, or ``12_3`` for an array's element.
        raw: The number that it has beside it: what the job itself sees as SLURM_JOB_ID.
        state: Slurm's word, for instance ``PENDING``.
        reason: Why it waits or how it ended, in Slurm's word; empty: none.
        start: When it started or is expected to, in seconds since 1970 UTC.
        nodes: Its nodes.
        exit_code: ``code:signal``, where it is known.
    """

    job: str
    raw: str = ""
    state: str
    reason: str = ""
    start: float | None = None
    nodes: str = ""
    exit_code: str | None = None

    @property
    def is_pending(self) -> bool:
        """Whether it waits for its start."""
        return self.state in PENDING_STATES

    @property
    def has_ended(self) -> bool:
        """Whether it has ended."""
        return self.state in END_STATES or self.state == FORGOTTEN


def parse_squeue_line(line: str) -> SlurmJob | None:
    """Return the job of a line in :data:`FORMAT`; None for a line of another kind, which a site's plug-in may print."""
    parts = line.strip().split("|", 5)
    if len(parts) != 6 or not parts[1].isdecimal():
        return None
    job, raw, state, start, nodes, reason = parts
    return SlurmJob(job=job, raw=raw, state=state, reason=_word(reason), start=parse_timestamp(start), nodes=nodes)


def parse_sacct_line(line: str) -> SlurmJob | None:
    """Return the job of a line of sacct's :data:`SACCT_FIELDS`; None for a line of another kind."""
    parts = line.strip().split("|")
    if len(parts) != len(SACCT_FIELDS) or not parts[1].isdecimal():
        return None
    job, raw, state, start, nodes, code = parts
    # "CANCELLED by 1000"
    word = state.partition(" ")[0]
    return SlurmJob(job=job, raw=raw, state=word, start=parse_timestamp(start), nodes=_word(nodes), exit_code=code)


def parse_shown_job(job: str, text: str) -> SlurmJob:
    """Return what ``scontrol show job`` says of ``job``."""
    shown = dict(re.findall(r"(?<!\S)(\w+)=(\S*)", text.splitlines()[0]))
    return SlurmJob(
        job=job,
        raw=shown.get("JobId", ""),
        state=shown.get("JobState", FORGOTTEN),
        reason=_word(shown.get("Reason", "")),
        start=parse_timestamp(shown.get("StartTime", "")),
        nodes=_word(shown.get("NodeList", "")),
        exit_code=shown.get("ExitCode"),
    )


def parse_timestamp(text: str) -> float | None:
    """Return a local time as Slurm writes it in seconds since 1970 UTC; None for ``N/A`` and the like."""
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def _word(text: str) -> str:
    return "" if text in ("None", "(null)", "None assigned", "N/A") else text
