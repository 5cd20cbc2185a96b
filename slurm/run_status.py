"""The status of runs, from their run folders and from Slurm.

Where the two disagree the run folder counts: it is seconds old, squeue's answer up to half a minute.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hsadml_dist.errors import ExitCode
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.jsonl import tail_bytes
from hsadml_dist.run.run_state import RunState, format_age, read_run_state
from hsadml_dist.slurm.client import FORGOTTEN, SlurmJob
from hsadml_dist.slurm.job_queue import QueueSnapshot, with_unlisted_jobs
from hsadml_dist.slurm.job_records import DeclineReason, JobRecord, job_output_paths, read_decline, read_job_records

Phase = Literal[
    "empty", "queued", "starting", "running", "stopped", "finished", "failed", "cancelled", "lost", "silent"
]
OUTPUT_BYTES = 4096
STAGES = {"save": "running (saving)", "evaluate": "running (evaluating)"}
STUCK_REASONS = {
    "JobHeldUser": "the job is held: scontrol release {job}",
    "JobHeldAdmin": "an administrator holds the job",
    "DependencyNeverSatisfied": "the dependency can no longer be satisfied: hsadml cancel {run}",
    "BadConstraints": "no node satisfies the request: hsadml cancel {run}",
}
"""Pending reasons that do not resolve by themselves, and what to do about them."""
PROGRESS_KEYS = (
    *("step", "total_steps", "loss", "samples_per_second", "elapsed_seconds", "left_seconds", "knn_accuracy"),
    *("checkpoint_step", "attempts", "restart"),
)
"""Fields of the state of a run that its row reports under the same keys."""
DECLINED = {
    DeclineReason.PREDECESSOR_CANCELLED: "job {after} was cancelled",
    DeclineReason.RUN_OVER: "the run has ended",
    DeclineReason.PREDECESSOR_FAILED: "job {after} failed",
    DeclineReason.ALREADY_ENDED: "it has ended before",
    DeclineReason.REQUEUED_BY_SITE: "Slurm requeued it because of its exit code (RequeueExit)",
}


@dataclass(frozen=True, kw_only=True)
class StatusRow:
    """The status of a run.

    Attributes:
        run: Run folder.
        phase: One word. empty: never started. silent: job or process may be alive, but the heartbeat has stopped.
            lost: job or process ended without recording how.
        text: The phase in words, with the reason and how the run continues.
        over: True if the run will not change by itself any more.
        job: The running Slurm job, or the pending one, or the last one; None if there is no job.
        reason: Why the run failed, stopped or is lost; one line.
        advice: Remedy; one line.
    """

    run: Path
    phase: Phase
    text: str
    over: bool
    state: RunState
    job: SlurmJob | None = None
    reason: str | None = None
    advice: str | None = None

    def as_json(self, now: float) -> dict[str, Any]:
        """Return the row for programs: always the same keys; times in seconds since 1970 UTC."""
        state, job = self.state, self.job
        return {
            "run": str(self.run),
            "phase": self.phase,
            "text": self.text,
            "over": self.over,
            **{key: getattr(state, key) for key in PROGRESS_KEYS},
            "ranks": state.world_size,
            "last_sign": state.last_sign,
            "age_seconds": None if state.last_sign is None else max(0.0, now - state.last_sign),
            "job": None if job is None else job.job,
            "job_state": None if job is None else job.state,
            "job_reason": None if job is None else job.reason or None,
            "job_start": None if job is None else job.start,
            "job_nodes": None if job is None else job.nodes or None,
            "exit_code": state.exit_code,
            "reason": self.reason,
            "advice": self.advice,
        }


@dataclass(frozen=True, kw_only=True)
class RunJobs:
    """The jobs of a run.

    Attributes:
        records: All jobs in the order of submission.
        known: Those that Slurm knows, by id; a job submitted after squeue's answer counts as pending.
        answered: Time of squeue's answer; None if Slurm did not answer at all.
    """

    records: Sequence[JobRecord]
    known: Mapping[str, SlurmJob]
    answered: float | None

    @property
    def current(self) -> SlurmJob | None:
        """The newest job that is running or completing."""
        return next((job for job in self._known(newest_first=True) if not job.has_ended and not job.is_pending), None)

    @property
    def next(self) -> SlurmJob | None:
        """The oldest pending job."""
        return next((job for job in self._known() if job.is_pending), None)

    def record_of(self, job: SlurmJob) -> JobRecord:
        """Return the record of a job."""
        return next(record for record in self.records if record.job == job.job)

    def job_of_attempt(self, state: RunState) -> SlurmJob | None:
        """Return the job of the newest attempt, or the newest job if that one is unknown."""
        newest = self._newest()
        return next((job for job in newest if state.job in (job.job, job.raw)), next(iter(newest), None))

    def cancelled(self) -> SlurmJob | None:
        """Return a cancelled job among the last two; cancelling a chain may reach its pending or its running link."""
        return next((job for job in self._newest()[:2] if job.state == "CANCELLED"), None)

    def _newest(self) -> list[SlurmJob]:
        ids = [record.job for record in reversed(self.records)]
        return [self.known.get(job, SlurmJob(job=job, state=FORGOTTEN)) for job in ids]

    def _known(self, newest_first: bool = False) -> Iterator[SlurmJob]:
        records = reversed(self.records) if newest_first else self.records
        return (self.known[record.job] for record in records if record.job in self.known)


def read_status(runs: Iterable[RunFolder], queue: QueueSnapshot | None, now: float) -> list[StatusRow]:
    """Return the status of each run.

    Args:
        runs: Run folders.
        queue: Jobs from squeue; None means that no run has a job.
        now: Time in seconds since 1970 UTC.
    """
    states = [(run, read_run_state(run, now), read_job_records(run)) for run in runs]
    if queue is not None and queue.answered is not None:
        # In these phases the status depends on how the last two jobs ended.
        open_runs = [records for _, state, records in states if state.phase in ("empty", "stopped", "silent")]
        last = [record for records in open_runs for record in records[-2:]]
        queue = with_unlisted_jobs(queue, [record.job for record in last if record.time < queue.answered])
    return [build_status_row(run, state, _join_queue(records, queue), now) for run, state, records in states]


def _join_queue(records: Sequence[JobRecord], queue: QueueSnapshot | None) -> RunJobs:
    if queue is None:
        return RunJobs(records=records, known={}, answered=None)
    known = {}
    for record in records:
        job = queue.find(record.job)
        if job is not None:
            known[record.job] = replace(job, job=record.job)
        elif queue.answered is not None and record.time >= queue.answered:
            known[record.job] = SlurmJob(job=record.job, state="PENDING")
    return RunJobs(records=records, known=known, answered=queue.answered)


def build_status_row(run: RunFolder, state: RunState, jobs: RunJobs, now: float) -> StatusRow:
    """Return the status of a run from the state of its folder and its jobs."""
    # The row shows the path already.
    reason = state.reason and state.reason.removeprefix(f"{run.path.absolute()}: ").removeprefix(f"{run.path}: ")
    row = StatusRow(run=run.path, phase=state.phase, text=state.phase, over=False, state=state, reason=reason)
    if state.phase == "finished":
        return replace(row, over=True, job=jobs.job_of_attempt(state))
    # A lost node makes the other ranks fail with an internal error; their successor resumes.
    has_failed = state.phase == "failed" and state.exit_code != ExitCode.INTERNAL_ERROR
    ended_for_good = has_failed or (state.phase == "stopped" and state.stop_is_final)
    if ended_for_good and not _was_resubmitted(jobs, state):
        # A job that is pending or completing exits without a step.
        return replace(row, over=True, job=jobs.job_of_attempt(state), advice=_resume_advice(row, jobs))
    if state.phase in ("starting", "running"):
        text = STAGES.get(state.stage or "", row.text)
        return replace(row, text=text, job=jobs.current or jobs.job_of_attempt(state))
    return _without_live_attempt(row, jobs, now)


def _without_live_attempt(row: StatusRow, jobs: RunJobs, now: float) -> StatusRow:
    if jobs.current is not None and _started_after(jobs.current, row.state):
        return replace(row, phase="starting", text="starting", job=jobs.current, reason=None)
    if jobs.next is not None:
        return _pending(row, jobs, jobs.next, now)
    if jobs.current is not None:
        return _completing(row, jobs, jobs.current, now)
    return _without_live_job(row, jobs, now)


def _was_resubmitted(jobs: RunJobs, state: RunState) -> bool:
    """Return whether a user submitted a pending or running job after the end of the newest attempt."""
    live = (jobs.record_of(job) for job in (jobs.current, jobs.next) if job is not None)
    return any(record.after is None and record.time >= (state.last_sign or 0.0) for record in live)


def _started_after(job: SlurmJob, state: RunState) -> bool:
    """Return whether a running job started after the last heartbeat of the newest attempt."""
    is_newer = state.last_sign is None or (job.start is not None and job.start >= state.last_sign)
    return is_newer and job.state != "COMPLETING"


def _pending(row: StatusRow, jobs: RunJobs, job: SlurmJob, now: float) -> StatusRow:
    state = row.state
    if state.job in (job.job, job.raw) and (jobs.answered or 0.0) < (state.last_sign or 0.0):
        # squeue was asked before the job was requeued: reason and start are those of its previous start.
        job = replace(job, reason="", start=None)
    because = f" ({job.reason})" if job.reason else ""
    advice = STUCK_REASONS.get(job.reason, "").format(job=job.job, run=shlex.quote(str(row.run))) or None
    row = replace(row, job=job, advice=advice)
    if state.phase == "empty" or _was_resubmitted(jobs, state):
        return replace(row, phase="queued", text=f"queued{because}")
    if state.phase == "failed":
        return replace(row, text=f"failed, job {job.job} is still queued{because}")
    if state.phase == "silent" and jobs.current is not None:
        return _completing(row, jobs, jobs.current, now)
    # A silent attempt whose job is gone was killed, or its node was lost: its successor resumes.
    return replace(row, phase="stopped", text=f"stopped, resumes as job {job.job}{because}")


def _completing(row: StatusRow, jobs: RunJobs, job: SlurmJob, now: float) -> StatusRow:
    """Return the row of a job that is still running although its attempt ended or lost its heartbeat."""
    state = row.state
    row = replace(row, job=job)
    if state.phase == "silent":
        return replace(row, text=f"running, but silent for {format_age(now, state.last_sign)}")
    if state.phase == "stopped" and jobs.record_of(job).requeue == "self":
        return replace(row, text=f"stopped, resumes as job {job.job}")
    return replace(row, text=f"{state.phase}, job {job.job} is completing")


def _without_live_job(row: StatusRow, jobs: RunJobs, now: float) -> StatusRow:
    state, job = row.state, jobs.job_of_attempt(row.state)
    row = replace(row, job=job, advice=_resume_advice(row, jobs))
    if state.phase == "failed":
        return replace(row, over=True)
    if job is None:
        return _local(row, now)
    if jobs.answered is None:
        return _without_answer(row, job, now)
    cancelled = jobs.cancelled()
    if cancelled is not None:
        return replace(row, phase="cancelled", text="cancelled", over=True, job=cancelled)
    if state.phase == "stopped":
        return replace(row, over=True, reason=_why_declined(row.run, jobs) or row.reason)
    return _lost(row, job, _why_declined(row.run, jobs))


def _lost(row: StatusRow, job: SlurmJob, declined: str | None) -> StatusRow:
    """Return the row of a run whose last job ended without recording why in the run folder."""
    row = replace(row, over=True)
    if row.state.phase == "empty" and job.state == FORGOTTEN:
        return replace(row, phase="lost", text="lost: its job left the queue without a trace")
    if row.state.phase == "empty":
        return replace(row, phase="failed", text="failed", reason=_failed_early(row.run, job))
    facts = [text for text in (None if job.state == FORGOTTEN else _describe_end(job), declined) if text]
    return replace(row, phase="lost", text="lost: its job is gone", reason="; ".join(facts) or row.reason)


def _local(row: StatusRow, now: float) -> StatusRow:
    """Return the row of a run that was never submitted."""
    state = row.state
    if state.phase == "empty":
        return replace(row, text="not started")
    if state.phase == "stopped":
        return replace(row, over=True)
    text = "its process is gone" if state.reason else f"no heartbeat for {format_age(now, state.last_sign)}"
    return replace(row, phase="lost", text=f"lost: {text}", over=True)


def _without_answer(row: StatusRow, job: SlurmJob, now: float) -> StatusRow:
    """Return the row from the run folder alone, because Slurm does not answer."""
    if row.state.phase == "empty":
        return replace(row, phase="queued", text=f"submitted as job {job.job}", advice=None)
    is_silent = row.state.phase == "silent"
    return replace(row, text=f"silent for {format_age(now, row.state.last_sign)}" if is_silent else row.text)


def _describe_end(job: SlurmJob) -> str:
    detail = job.reason or (f"exit code {job.exit_code}" if job.exit_code not in (None, "0:0") else "")
    return f"job {job.job} ended as {job.state}" + (f" ({detail})" if detail and detail != job.state else "")


def _failed_early(run: Path, job: SlurmJob) -> str:
    text = f"{_describe_end(job)} before the training began"
    for path in job_output_paths(RunFolder(run), job.job):
        lines = tail_bytes(path, OUTPUT_BYTES).decode(errors="replace").split("\n")
        filled = [line.strip() for line in lines if line.strip()]
        if filled:
            return f"{text}; its last line: {filled[-1]} (in {path})"
    return text


def _why_declined(run: Path, jobs: RunJobs) -> str | None:
    """Return why the newest job declined to train; None if it did not."""
    record = jobs.records[-1]
    reason = read_decline(RunFolder(run), record.job)
    return None if reason is None else f"job {record.job} did not train: {DECLINED[reason].format(after=record.after)}"


def _resume_advice(row: StatusRow, jobs: RunJobs) -> str:
    run = shlex.quote(str(row.run))
    recipe = shlex.quote(str(RunFolder(row.run).config))
    if jobs.records:
        return f"to resume: hsadml submit {recipe} --run {run} with the options of the last submission"
    aim = "start" if row.state.phase == "empty" else "resume"
    return f"to {aim}: hsadml train {recipe} --run {run} --nproc {row.state.world_size or 1}"
