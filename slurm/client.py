"""Slurm's commands as functions, and their answers as values.

A command that fails raises ClusterError with one line: what failed, why, and what to do where that is known.
"""

from __future__ import annotations

import datetime
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hsadml_dist.errors import ClusterError

TIMEOUT_SECONDS = 60.0
QUERY_TIMEOUT_SECONDS = 20.0
"""Limit of the queries that a user waits for at a terminal."""
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
"""State of a job that Slurm no longer knows; not one of Slurm's own states."""

_UNREACHABLE = re.compile(
    r"unable to contact slurm controller|configuration source|connection refused|connection timed out|"
    r"unable to establish control|zero bytes were transmitted|socket timed out|error parsing conf|"
    r"munge .*(connect|socket)|protocol authentication error",
    re.IGNORECASE,
)
_UNKNOWN_JOB = re.compile(r"invalid job id|job \S+ not found", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """A job as Slurm reports it.

    Attributes:
        job: Job id: ``12``, or ``12_3`` for an array element.
        raw: Numeric id, which the job itself sees as SLURM_JOB_ID.
        state: Slurm's state, for instance ``PENDING``.
        reason: Slurm's reason for a pending or failed state; empty if there is none.
        start: Actual or expected start in seconds since 1970 UTC.
        exit_code: ``code:signal``, where known.
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
        """Whether the job waits for its start."""
        return self.state in PENDING_STATES

    @property
    def has_ended(self) -> bool:
        """Whether the job has ended."""
        return self.state in END_STATES or self.state == FORGOTTEN


def run_command(argv: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    """Run a Slurm command and return its standard output.

    Raises:
        ClusterError: Slurm is not installed, does not answer, or refused.
    """
    return _run(argv, env).stdout


def require_slurm(env: Mapping[str, str] | None = None) -> None:
    """Check that jobs can be submitted from here, without asking the controller.

    Raises:
        ClusterError: Slurm is not installed, or SLURM_CONF names a missing file.
    """
    _find("sbatch", env)


def sbatch(script: Path, env: Mapping[str, str] | None = None) -> str:
    """Queue a batch script and return the job id.

    Raises:
        ClusterError: Slurm is not installed, does not answer, or refused the job.
    """
    return parse_job_id(run_command(["sbatch", "--parsable", str(script)], env))


def sbatch_test(script: str, env: Mapping[str, str] | None = None) -> str:
    """Return Slurm's estimate of when and where a script would start, from ``sbatch --test-only``; queue nothing.

    Raises:
        ClusterError: Slurm is not installed, does not answer, or would refuse the job.
    """
    return " ".join(_run(["sbatch", "--test-only"], env, stdin=script).stderr.removeprefix("sbatch: ").split())


def job_state(job_id: str, env: Mapping[str, str] | None = None) -> str | None:
    """Return the state of a job, for instance ``PENDING``; None once the controller has forgotten it.

    Raises:
        ClusterError: Slurm is not installed or does not answer.
    """
    state = show_job(job_id, env).state
    return None if state == FORGOTTEN else state


def job_is_known(job_id: str, env: Mapping[str, str] | None = None) -> bool | None:
    """Return whether a job is queued, running or completing; None if Slurm cannot be asked."""
    try:
        done = _run(["squeue", "--noheader", f"--jobs={job_id}", "--format=%i"], env, may_be_unknown=True)
    except ClusterError:
        return None
    return done.returncode == 0 and bool(done.stdout.strip())


def squeue(selection: Sequence[str], env: Mapping[str, str] | None = None) -> dict[str, SlurmJob]:
    """Return jobs by id from squeue: array elements one by one, and also jobs that ended within MinJobAge.

    Args:
        selection: Option that selects jobs, ``--user=...`` or ``--jobs=...``; unknown ids are left out.
        env: Complete environment to ask from; None means that of this process.

    Raises:
        ClusterError: Slurm is not installed or does not answer.
    """
    # A user's SQUEUE_PARTITION and the like would hide jobs.
    clean = {name: value for name, value in (env or os.environ).items() if not name.startswith("SQUEUE_")}
    clean["SLURM_TIME_FORMAT"] = "standard"
    argv = ["squeue", "--noheader", "--array", "--states=all", *selection, f"--format={SQUEUE_FORMAT}"]
    done = _run(argv, clean, seconds=QUERY_TIMEOUT_SECONDS, may_be_unknown=True)
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    return {job.job: job for job in map(parse_squeue_line, lines) if job is not None}


def sacct(job_ids: Sequence[str], env: Mapping[str, str] | None = None) -> list[SlurmJob]:
    """Return what the accounting database knows of jobs.

    Raises:
        ClusterError: Slurm is not installed, keeps no accounts, or does not answer.
    """
    selection = [f"--jobs={','.join(job_ids)}", f"--format={','.join(SACCT_FIELDS)}"]
    argv = ["sacct", "--noheader", "--parsable2", "--allocations", *selection]
    lines = _run(argv, env, seconds=QUERY_TIMEOUT_SECONDS).stdout.splitlines()
    return [job for job in map(parse_sacct_line, lines) if job is not None]


def show_job(job_id: str, env: Mapping[str, str] | None = None) -> SlurmJob:
    """Return a job from ``scontrol show job``; its state is FORGOTTEN once the controller has forgotten it.

    Raises:
        ClusterError: Slurm is not installed or does not answer.
    """
    argv = ["scontrol", "--oneliner", "show", "job", job_id]
    done = _run(argv, env, seconds=QUERY_TIMEOUT_SECONDS, may_be_unknown=True)
    return parse_shown_job(job_id, done.stdout if done.returncode == 0 else "")


def cancel(job_id: str, env: Mapping[str, str] | None = None) -> None:
    """Cancel a job; a job that has ended is no error.

    Raises:
        ClusterError: Slurm is not installed, does not answer, or refused.
    """
    _run(["scancel", job_id], env, may_be_unknown=True)


def parse_job_id(answer: str) -> str:
    """Return the id from the output of ``sbatch --parsable``: ``12`` or ``12;cluster``.

    Raises:
        ClusterError: There is none.
    """
    # A site's plug-in may print lines of its own before the id.
    lines = answer.strip().splitlines()
    match = re.fullmatch(r"(\d+)(;\S+)?", lines[-1].strip()) if lines else None
    if match is None:
        raise ClusterError(f"sbatch printed no job id but {answer.strip()!r}")
    return match.group(1)


def parse_squeue_line(line: str) -> SlurmJob | None:
    """Return the job of a line in :data:`SQUEUE_FORMAT`; None for other lines, which a site's plug-in may print."""
    parts = line.strip().split("|", 5)
    if len(parts) != 6 or not parts[1].isdecimal():
        return None
    job, raw, state, start, nodes, reason = parts
    return SlurmJob(job=job, raw=raw, state=state, reason=_value(reason), start=parse_timestamp(start), nodes=nodes)


def parse_sacct_line(line: str) -> SlurmJob | None:
    """Return the job of a line of sacct with :data:`SACCT_FIELDS`; None for other lines."""
    parts = line.strip().split("|")
    if len(parts) != len(SACCT_FIELDS) or not parts[1].isdecimal():
        return None
    job, raw, state, start, nodes, code = parts
    state = state.partition(" ")[0]  # "CANCELLED by 1000"
    return SlurmJob(job=job, raw=raw, state=state, start=parse_timestamp(start), nodes=_value(nodes), exit_code=code)


def parse_shown_job(job: str, text: str) -> SlurmJob:
    """Return ``job`` from the output of ``scontrol --oneliner show job``."""
    fields = dict(re.findall(r"(?<!\S)(\w+)=(\S*)", text.strip().partition("\n")[0]))
    return SlurmJob(
        job=job,
        raw=fields.get("JobId", ""),
        state=fields.get("JobState", FORGOTTEN),
        reason=_value(fields.get("Reason", "")),
        start=parse_timestamp(fields.get("StartTime", "")),
        nodes=_value(fields.get("NodeList", "")),
        exit_code=fields.get("ExitCode"),
    )


def parse_timestamp(text: str) -> float | None:
    """Return a local time as Slurm prints it in seconds since 1970 UTC; None for ``N/A`` and the like."""
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def explain(command: str, stderr: str, env: Mapping[str, str] | None = None) -> str:
    """Return one line with the reason why a command failed, and what to do where that is known."""
    reason = "; ".join(line.strip() for line in stderr.splitlines() if line.strip()) or "no reason given"
    if not _UNREACHABLE.search(reason):
        return f"{command} failed: {reason}"
    hint = "SLURM_CONF is unset; a login node needs none, for a private cluster export the line that `up` printed"
    if (conf := _slurm_conf(env)) is not None:
        hint = f"SLURM_CONF={conf}: its controller does not answer"
    return f"{command} failed: {hint} ({reason})"


def _value(text: str) -> str:
    return "" if text in ("None", "(null)", "None assigned", "N/A") else text


def _slurm_conf(env: Mapping[str, str] | None) -> str | None:
    return (os.environ if env is None else env).get("SLURM_CONF")


def _run(
    argv: Sequence[str],
    env: Mapping[str, str] | None,
    *,
    stdin: str | None = None,
    seconds: float = TIMEOUT_SECONDS,
    may_be_unknown: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a Slurm command; it may fail only if ``may_be_unknown`` is set and Slurm does not know the job."""
    command = [_find(argv[0], env), *argv[1:]]
    try:
        done = subprocess.run(
            command, env=env, input=stdin, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{argv[0]}: no answer within {seconds:.0f} s; is the controller up?") from None
    # For an array element scontrol prints on stdout that it does not know the job.
    is_unknown = may_be_unknown and _UNKNOWN_JOB.search(done.stderr + done.stdout)
    if done.returncode != 0 and not is_unknown:
        raise ClusterError(explain(argv[0], done.stderr, env))
    return done


def _find(command: str, env: Mapping[str, str] | None) -> str:
    program = shutil.which(command, path=None if env is None else env.get("PATH"))
    if program is None:
        raise ClusterError(f"Slurm is not installed here: {command} is not on PATH; `hsadml train` runs without it")
    conf = _slurm_conf(env)
    if conf is not None and not Path(conf).exists():
        # Slurm's commands would retry for a minute.
        raise ClusterError(f"SLURM_CONF={conf}: no such file; is the private cluster up?")
    return program
