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
from hsadml_dist.slurm.job_records import JobRecord, job_output_paths, read_job_records

Phase = Literal[
    "empty", "queued", "starting", "running", "stopped", "finished", "failed", "cancelled", "lost", "silent"
]


@dataclass(frozen=True, kw_only=True)
class StatusRow:
    """How a run stands.

    Attributes:
        run: Its folder.
        phase: One word. empty: never started. silent: its job or process may live, but it gives no sign of life.
            lost: job or process is gone without a word.
        text: The same in words, with why and how it goes on.
        over: Whether nothing more will happen by itself.
        state: What the folder says.
        job: The Slurm job that runs, else the one that waits, else the last. None: no job.
        reason: Why it failed, was stopped or is lost; one line.
        advice: What to do, as one line.
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
            "step": state.step,
            "total_steps": state.total_steps,
            "loss": state.loss,
            "samples_per_second": state.samples_per_second,
            "checkpoint_step": state.checkpoint_step,
            "attempts": state.attempts,
            "restart": state.restart,
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


OUTPUT_BYTES = 4096
STOP_FILE = "STOP file"
"""How a run says that it was asked by a file to stop."""
REFUSED = "nothing to do"
"""How a job's script says that it starts no rank."""
STAGES = {"save": "running (saving)", "evaluate": "running (judging)"}
NEVER = {
    "JobHeldUser": "it is held: scontrol release {job}",
    "JobHeldAdmin": "an administrator holds it",
    "DependencyNeverSatisfied": "what it waits for cannot happen any more: hsadml cancel {run}",
    "BadConstraints": "no node is as it asks: hsadml cancel {run}",
}
"""Reasons for which a job waits until somebody does something, and what."""


@dataclass(frozen=True, kw_only=True)
class RunJobs:
    """A run's jobs, as far as they are known.

    Attributes:
        submitted: All of them, in the order in which they were queued.
        known: What Slurm says of them, by id; a job that was queued after squeue's answer counts as waiting.
        answered: When squeue answered; None: Slurm could not be asked at all.
    """

    submitted: Sequence[JobRecord]
    known: Mapping[str, SlurmJob]
    answered: float | None

    @property
    def current(self) -> SlurmJob | None:
        """The newest one that runs or is just ending."""
        live = (job for job in self._newest_first() if not job.has_ended and not job.is_pending)
        return next(live, None)

    @property
    def next(self) -> SlurmJob | None:
        """The oldest one that waits."""
        return next((job for job in reversed(list(self._newest_first())) if job.is_pending), None)

    def queued(self, job: SlurmJob) -> JobRecord:
        """Return the record of a job."""
        return next(one for one in self.submitted if one.job == job.job)

    def own(self, state: RunState) -> SlurmJob | None:
        """Return the newest attempt's job; where that is not known, the newest one."""
        newest = self._newest()
        return next((job for job in newest if state.job in (job.job, job.raw)), next(iter(newest), None))

    def cancelled(self) -> SlurmJob | None:
        """Return a cancelled one of the last two: whoever cancels a chain may meet its waiting link or the other."""
        return next((job for job in self._newest()[:2] if job.state == "CANCELLED"), None)

    def _newest(self) -> list[SlurmJob]:
        return [self.known.get(one.job, SlurmJob(job=one.job, state=FORGOTTEN)) for one in reversed(self.submitted)]

    def _newest_first(self) -> Iterator[SlurmJob]:
        return (self.known[one.job] for one in reversed(self.submitted) if one.job in self.known)


def read_status(runs: Iterable[RunFolder], queue: QueueSnapshot | None, now: float) -> list[StatusRow]:
    """Return how each run stands at ``now``.

    Args:
        runs: The run folders.
        queue: What squeue says; None: no run has a job.
        now: In seconds since 1970 UTC.
    """
    states = [(run, read_run_state(run, now), read_job_records(run)) for run in runs]
    if queue is not None:
        queue = with_unlisted_jobs(queue, _unexplained(states, queue))
    return [build_status_row(run, state, _known(submitted, queue), now) for run, state, submitted in states]


def _unexplained(
    states: Iterable[tuple[RunFolder, RunState, Sequence[JobRecord]]], queue: QueueSnapshot
) -> Iterator[str]:
    """Yield the jobs of which squeue says nothing though how they ended matters: the last two of unsettled runs."""
    for _, state, submitted in states:
        if state.phase in ("empty", "stopped", "silent") and queue.answered is not None:
            yield from (one.job for one in submitted[-2:] if one.time < queue.answered)


def _known(submitted: Sequence[JobRecord], queue: QueueSnapshot | None) -> RunJobs:
    known = {}
    for one in submitted if queue is not None else ():
        job = queue.find(one.job) if queue is not None else None
        if job is not None:
            known[one.job] = replace(job, job=one.job)
        elif queue is not None and queue.answered is not None and one.time >= queue.answered:
            known[one.job] = SlurmJob(job=one.job, state="PENDING")
    return RunJobs(submitted=submitted, known=known, answered=None if queue is None else queue.answered)


def build_status_row(run: RunFolder, state: RunState, jobs: RunJobs, now: float) -> StatusRow:
    """Return how a run stands, from what its folder says and what is known of its jobs."""
    reason = _without_name(state.reason, run.path)
    row = StatusRow(run=run.path, phase=state.phase, text=state.phase, over=False, state=state, reason=reason)
    if state.phase == "finished":
        return replace(row, over=True, job=jobs.own(state))
    if _is_for_good(state) and not _is_submitted_anew(jobs, state):
        # What waits or is just ending leaves without a step.
        return replace(row, over=True, job=jobs.own(state), advice=_to_go_on(row, jobs))
    if state.phase in ("starting", "running"):
        return replace(row, text=STAGES.get(state.stage or "", row.text), job=jobs.current or jobs.own(state))
    return _without_an_attempt(row, jobs, now)


def _without_an_attempt(row: StatusRow, jobs: RunJobs, now: float) -> StatusRow:
    """No attempt is known to train at this moment."""
    if jobs.current is not None and _is_newer(jobs.current, row.state):
        return replace(row, phase="starting", text="starting", job=jobs.current, reason=None)
    if jobs.next is not None:
        return _going_on(row, jobs, jobs.next, now)
    if jobs.current is not None:
        return _at_its_end(row, jobs, jobs.current, now)
    return _left(row, jobs, now)


def _without_name(reason: str | None, run: Path) -> str | None:
    """Return a reason without the run's name before it: the reader sees it already."""
    return reason and reason.removeprefix(f"{run.absolute()}: ").removeprefix(f"{run}: ")


def _is_for_good(state: RunState) -> bool:
    """Whether the run does not go on by itself, whatever its jobs are."""
    if state.phase == "failed":
        return state.exit_code != ExitCode.INTERNAL_ERROR  # a lost node costs the other ranks their peers
    return state.phase == "stopped" and STOP_FILE in (state.reason or "")


def _is_submitted_anew(jobs: RunJobs, state: RunState) -> bool:
    """Whether a job waits or runs that somebody has submitted after the newest attempt ended."""
    live = (jobs.queued(job) for job in (jobs.current, jobs.next) if job is not None)
    return any(one.after is None and one.time >= (state.last_sign or 0.0) for one in live)


def _is_newer(job: SlurmJob, state: RunState) -> bool:
    """Whether a job that runs was started after the newest attempt gave its last sign."""
    if job.state == "COMPLETING":
        return False
    return state.last_sign is None or (job.start is not None and job.start >= state.last_sign)


def _going_on(row: StatusRow, jobs: RunJobs, job: SlurmJob, now: float) -> StatusRow:
    """A job waits."""
    state = row.state
    if state.job in (job.job, job.raw) and (jobs.answered or 0.0) < (state.last_sign or 0.0):
        job = replace(
            job, reason="", start=None
        )  # it waited for its last start when squeue was asked, not for the next
    because = f" ({job.reason})" if job.reason else ""
    advice = NEVER.get(job.reason, "").format(job=job.job, run=shlex.quote(str(row.run))) or None
    row = replace(row, job=job, advice=advice)
    if state.phase == "empty" or _is_submitted_anew(jobs, state):
        return replace(row, phase="queued", text=f"queued{because}")
    if state.phase == "failed":
        return replace(row, text=f"failed, job {job.job} is still queued{because}")
    if state.phase == "silent" and jobs.current is not None:
        return _at_its_end(row, jobs, jobs.current, now)
    # A silent one whose job is gone was killed, or its machine was lost: that is what successors are for.
    return replace(row, phase="stopped", text=f"stopped, goes on as job {job.job}{because}")


def _at_its_end(row: StatusRow, jobs: RunJobs, job: SlurmJob, now: float) -> StatusRow:
    """A job runs, but the attempt is over or gives no sign of life."""
    state = row.state
    row = replace(row, job=job)
    if state.phase == "silent":
        return replace(row, text=f"running, but silent for {format_age(now, state.last_sign)}")
    if state.phase == "stopped" and jobs.queued(job).requeue == "self":
        return replace(row, text=f"stopped, goes on as job {job.job}")
    return replace(row, text=f"{state.phase}, job {job.job} is just ending")


def _left(row: StatusRow, jobs: RunJobs, now: float) -> StatusRow:
    """No job waits or runs."""
    state, job = row.state, jobs.own(row.state)
    row = replace(row, job=job, advice=_to_go_on(row, jobs))
    if state.phase == "failed":
        return replace(row, over=True)
    if job is None:
        return _without_jobs(row, now)
    if jobs.answered is None:
        return _unasked(row, job, now)
    cancelled = jobs.cancelled()
    if cancelled is not None:
        return replace(row, phase="cancelled", text="cancelled", over=True, job=cancelled)
    if state.phase == "stopped":
        return replace(row, over=True, reason=_refusal(row.run, jobs) or row.reason)
    return _without_a_word(row, job, _refusal(row.run, jobs))


def _without_a_word(row: StatusRow, job: SlurmJob, refusal: str | None) -> StatusRow:
    """The last job has ended, and the run folder does not say why."""
    row = replace(row, over=True)
    if row.state.phase == "empty" and job.state == FORGOTTEN:
        return replace(row, phase="lost", text="lost: its job left the queue, and nothing tells how")
    if row.state.phase == "empty":
        ended = f"job {job.job} {_how(job)} before the training began"
        return replace(row, phase="failed", text="failed", reason=_last_words(row.run, job, ended))
    told = [text for text in (None if job.state == FORGOTTEN else f"job {job.job} {_how(job)}", refusal) if text]
    return replace(row, phase="lost", text="lost: its job is gone", reason="; ".join(told) or row.reason)


def _without_jobs(row: StatusRow, now: float) -> StatusRow:
    """It was never handed to Slurm."""
    state = row.state
    if state.phase == "empty":
        return replace(row, text="not started")
    if state.phase == "stopped":
        return replace(row, over=True)
    text = "its process is gone" if state.reason else f"no sign of life for {format_age(now, state.last_sign)}"
    return replace(row, phase="lost", text=f"lost: {text}", over=True)


def _unasked(row: StatusRow, job: SlurmJob, now: float) -> StatusRow:
    """Slurm cannot be asked; what the folder says must do."""
    if row.state.phase == "empty":
        return replace(row, phase="queued", text=f"submitted as job {job.job}", advice=None)
    silent = row.state.phase == "silent"
    return replace(row, text=f"silent for {format_age(now, row.state.last_sign)}" if silent else row.text)


def _how(job: SlurmJob) -> str:
    code = job.exit_code
    more = job.reason or (f"exit code {code}" if code not in (None, "0:0") else "")
    return f"ended as {job.state}" + (f" ({more})" if more and more != job.state else "")


def _refusal(run: Path, jobs: RunJobs) -> str | None:
    """Return why the newest job did nothing, in its own words; None: it says nothing of the kind."""
    last = _last_line(run, jobs.submitted[-1].job)
    return f"job {jobs.submitted[-1].job}: {last[0]}" if last is not None and REFUSED in last[0] else None


def _last_words(run: Path, job: SlurmJob, ended: str) -> str:
    """Return how a job ended and the last line of what it printed."""
    last = _last_line(run, job.job)
    return ended if last is None else f"{ended}; its last line: {last[0]} (in {last[1]})"


def _last_line(run: Path, job: str) -> tuple[str, Path] | None:
    """Return the last line that a job printed, and where; an array's output lies beside its run folders."""
    for output in job_output_paths(RunFolder(run), job):
        lines = tail_bytes(output, OUTPUT_BYTES).decode(errors="replace").split("\n")
        words = [line.strip() for line in lines if line.strip()]
        if words:
            return words[-1], output
    return None


def _to_go_on(row: StatusRow, jobs: RunJobs) -> str:
    run = shlex.quote(str(row.run))
    recipe = shlex.quote(str(RunFolder(row.run).config))
    if jobs.submitted:
        return f"to go on: hsadml submit {recipe} --run {run} and the options of before"
    aim = "start" if row.state.phase == "empty" else "go on"
    return f"to {aim}: hsadml train {recipe} --run {run} --nproc {row.state.world_size or 1}"
