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
QUERY_SECONDS = 20.0
"""For questions that somebody waits for at a terminal."""
_UNREACHABLE = re.compile(
    r"unable to contact slurm controller|configuration source|connection refused|connection timed out|"
    r"unable to establish control|zero bytes were transmitted|socket timed out|error parsing conf|"
    r"munge .*(connect|socket)|protocol authentication error",
    re.IGNORECASE,
)
_UNKNOWN_JOB = re.compile(r"invalid job id|job \S+ not found", re.IGNORECASE)
_ALREADY_REQUEUED = re.compile(r"job is pending execution|already requeued", re.IGNORECASE)


def run_command(argv: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    """Run one of Slurm's commands and return what it prints.

    Raises:
        ClusterError: Slurm is absent, does not answer, or refused.
    """
    done = _run(argv, env)
    if done.returncode != 0:
        raise ClusterError(explain(argv[0], done.stderr, env))
    return done.stdout


def require_slurm(env: Mapping[str, str] | None = None) -> None:
    """Check that jobs can be submitted at all; does not ask the controller.

    Raises:
        ClusterError: Slurm is absent, or SLURM_CONF names no file.
    """
    _find("sbatch", env)


def sbatch(script: Path, env: Mapping[str, str] | None = None) -> str:
    """Queue a batch script and return the job's id.

    Args:
        script: Path of the script.
        env: Whole environment to submit from; this process's own if None.

    Raises:
        ClusterError: Slurm is absent, does not answer, or refused the job.
    """
    return parse_job_id(run_command(["sbatch", "--parsable", str(script)], env))


def sbatch_test(script: str, env: Mapping[str, str] | None = None) -> str:
    """Ask whether a batch script's text would be taken; returns Slurm's estimate of its start. Queues nothing.

    Raises:
        ClusterError: Slurm is absent, does not answer, or would refuse the job.
    """
    done = _run(["sbatch", "--test-only"], env, script)
    if done.returncode != 0:
        raise ClusterError(explain("sbatch", done.stderr, env))
    return " ".join(done.stderr.removeprefix("sbatch: ").split())


def job_state(job_id: str, env: Mapping[str, str] | None = None) -> str | None:
    """Return a job's state, for instance ``PENDING``; None once the controller has forgotten the job.

    Raises:
        ClusterError: Slurm is absent or does not answer.
    """
    answer = show_job(job_id, env)
    return None if answer is None else parse_job_state(answer)


def job_is_known(job_id: str, env: Mapping[str, str] | None = None) -> bool | None:
    """Return whether a job is still queued, running or ending; None where Slurm cannot be asked."""
    try:
        done = _run(["squeue", "--noheader", f"--jobs={job_id}", "--format=%i"], env)
    except ClusterError:
        return None
    if done.returncode == 0:
        return bool(done.stdout.strip())
    return False if _UNKNOWN_JOB.search(done.stderr) else None


def squeue(selection: Sequence[str], form: str, env: Mapping[str, str] | None = None) -> list[str]:
    """Return squeue's lines, each element of an array on a line of its own, also of jobs that have just ended.

    Args:
        selection: Which jobs: ``--user=...`` or ``--jobs=...``; ids that are not known are left out.
        form: Format of a line, as after ``--format``.
        env: Whole environment to ask from; this process's own if None.

    Raises:
        ClusterError: Slurm is absent or does not answer.
    """
    # A user's SQUEUE_PARTITION and the like would hide jobs.
    asked_from = {name: value for name, value in (env or os.environ).items() if not name.startswith("SQUEUE_")}
    asked_from["SLURM_TIME_FORMAT"] = "standard"
    argv = ["squeue", "--noheader", "--array", "--states=all", *selection, f"--format={form}"]
    done = _run(argv, asked_from, seconds=QUERY_SECONDS)
    if done.returncode == 0:
        return done.stdout.splitlines()
    if _UNKNOWN_JOB.search(done.stderr):
        return []
    raise ClusterError(explain("squeue", done.stderr, env))


def sacct(job_ids: Sequence[str], fields: Sequence[str], env: Mapping[str, str] | None = None) -> list[str]:
    """Return the accounting's lines, ``|`` between the fields, one line a job.

    Raises:
        ClusterError: Slurm is absent, keeps no accounts, or does not answer.
    """
    chosen = [f"--jobs={','.join(job_ids)}", f"--format={','.join(fields)}"]
    done = _run(["sacct", "--noheader", "--parsable2", "--allocations", *chosen], env, seconds=QUERY_SECONDS)
    if done.returncode != 0:
        raise ClusterError(explain("sacct", done.stderr, env))
    return done.stdout.splitlines()


def show_job(job_id: str, env: Mapping[str, str] | None = None) -> str | None:
    """Return what ``scontrol show job`` says, on one line; None once the controller has forgotten the job.

    Raises:
        ClusterError: Slurm is absent or does not answer.
    """
    done = _run(["scontrol", "--oneliner", "show", "job", job_id], env, seconds=QUERY_SECONDS)
    if done.returncode == 0:
        return done.stdout.strip()
    if _UNKNOWN_JOB.search(done.stderr + done.stdout):  # of an array's element it is said on stdout
        return None
    raise ClusterError(explain("scontrol show job", done.stderr, env))


def scontrol_requeue(job_id: str, env: Mapping[str, str] | None = None) -> None:
    """Put a job back into the queue; one that is there already is no error.

    It would bring back a cancelled job too: look at ``job_state`` first.

    Raises:
        ClusterError: Slurm is absent, does not answer, or refused.
    """
    done = _run(["scontrol", "requeue", job_id], env)
    if done.returncode != 0 and not _ALREADY_REQUEUED.search(done.stderr + done.stdout):
        raise ClusterError(explain("scontrol requeue", done.stderr, env))


def cancel(job_id: str, env: Mapping[str, str] | None = None) -> None:
    """Cancel a job; one that has ended is no error.

    Raises:
        ClusterError: Slurm is absent, does not answer, or refused.
    """
    done = _run(["scancel", job_id], env)
    if done.returncode != 0 and not _UNKNOWN_JOB.search(done.stderr):
        raise ClusterError(explain("scancel", done.stderr, env))


def parse_job_id(answer: str) -> str:
    """Return the id in the answer of ``sbatch --parsable``: ``12`` or ``12;cluster``.

    Raises:
        ClusterError: The answer holds none.
    """
    # A site's plug-in may print lines of its own before the id.
    lines = answer.strip().splitlines()
    match = re.fullmatch(r"(\d+)(;\S+)?", lines[-1].strip()) if lines else None
    if match is None:
        raise ClusterError(f"sbatch gave no job id but {answer.strip()!r}")
    return match.group(1)


def parse_job_state(answer: str) -> str | None:
    """Return the state in the answer of ``scontrol show job``; None if there is none."""
    match = re.search(r"(?<!\S)JobState=(\w+)", answer)
    return match.group(1) if match else None


def explain(command: str, stderr: str, env: Mapping[str, str] | None = None) -> str:
    """Return one line that says why a command failed, and what to do where that is known."""
    reason = "; ".join(line.strip() for line in stderr.splitlines() if line.strip()) or "it gave no reason"
    if not _UNREACHABLE.search(reason):
        return f"{command} failed: {reason}"
    conf = _conf(env)
    if conf is None:
        hint = (
            "SLURM_CONF is unset: on a cluster's login node it need not be; for a private one export the line of `up`"
        )
    else:
        hint = f"SLURM_CONF={conf}: its controller does not answer"
    return f"{command} failed: {hint} ({reason})"


def _conf(env: Mapping[str, str] | None) -> str | None:
    return (os.environ if env is None else env).get("SLURM_CONF")


def _run(
    argv: Sequence[str], env: Mapping[str, str] | None, said: str | None = None, *, seconds: float = TIMEOUT_SECONDS
) -> subprocess.CompletedProcess[str]:
    command = [_find(argv[0], env), *argv[1:]]
    try:
        return subprocess.run(
            command, env=env, input=said, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{argv[0]} gave no answer within {seconds:.0f} s; is the controller up?") from None


def _find(command: str, env: Mapping[str, str] | None) -> str:
    program = shutil.which(command, path=None if env is None else env.get("PATH"))
    if program is None:
        raise ClusterError(f"Slurm is not installed here: {command} is not on PATH; `hsadml train` runs without it")
    conf = _conf(env)
    if conf is not None and not Path(conf).exists():
        # Slurm's commands would look for it again and again, for a minute.
        raise ClusterError(f"SLURM_CONF is {conf}: there is no such file; is the private cluster up?")
    return program


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
