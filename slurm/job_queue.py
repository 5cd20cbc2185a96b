"""What Slurm says of this user's jobs, asked at most once in 30 seconds by all processes of the user together.

One ``squeue`` lists the jobs that wait, run, or have ended a short time ago (``MinJobAge``). Its answer is kept in the
user's cache folder. Of a job that it does not name, because it ended long ago or is another user's, ``sacct`` is asked,
and ``scontrol`` where no accounts are kept; those answers are kept too.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hsadml_dist.errors import ClusterError
from hsadml_dist.slurm import client
from hsadml_dist.slurm.client import (
    FORGOTTEN,
    SACCT_FIELDS,
    SQUEUE_FORMAT,
    SlurmJob,
    parse_sacct_line,
    parse_shown_job,
    parse_squeue_line,
)

REFRESH_SECONDS = 30.0
KEEP_SECONDS = 86400.0
"""How long it is remembered how a job ended; one that has ended does not change."""
WAIT_SECONDS = 10.0
"""How long to wait for another process that asks at this moment."""
MAX_SCONTROL_QUERIES = 20
"""So many jobs are asked for one by one at a time, where no accounts are kept."""


@dataclass(frozen=True, kw_only=True)
class QueueSnapshot:
    """What is known of jobs.

    Attributes:
        asked: When squeue was asked last, in seconds since 1970 UTC.
        answered: When it answered last; None: it never did.
        problem: Why it did not answer when it was asked last.
        jobs: Its answer, by id.
        others: What is known of jobs that squeue does not name, by id.
    """

    asked: float
    answered: float | None = None
    problem: str | None = None
    jobs: Mapping[str, SlurmJob] = field(default_factory=dict)
    others: Mapping[str, SlurmJob] = field(default_factory=dict)

    def find(self, job: str) -> SlurmJob | None:
        """Return what is known of a job, by its id or by its raw number; None: nothing."""
        known = self.jobs.get(job) or self.others.get(job)
        return known or next((one for one in self.jobs.values() if one.raw == job), None)


def query_queue(
    before: QueueSnapshot | None = None, *, fresh: bool = False, env: Mapping[str, str] | None = None
) -> QueueSnapshot:
    """Return what squeue says of this user's jobs, or said at most 30 seconds ago.

    Args:
        before: What this process knows already: it asks no sooner again, though nothing can be kept in files.
        fresh: Ask now, however short a time ago it was asked.
        env: Whole environment to ask from; this process's own if None.
    """
    known = os.environ if env is None else env
    path = _cache_file(known)
    began = time.time()
    kept = _read(path, known) or before
    if kept is not None and not fresh and _is_new(kept):
        return kept
    with _turn(path) as is_mine:
        # Somebody else may have asked while this process waited for its turn.
        kept = _read(path, known) or before
        if kept is not None and _is_new(kept) and (not fresh or kept.asked >= began):
            return kept
        if not is_mine:
            return replace(kept or QueueSnapshot(asked=began), problem="another process waits for squeue's answer")
        asked = _ask(kept, env)
        _write(path, asked, known)
    return asked


def with_unlisted_jobs(
    queue: QueueSnapshot, jobs: Iterable[str], env: Mapping[str, str] | None = None
) -> QueueSnapshot:
    """Return the same, and what Slurm knows of further jobs, each of which is asked for once.

    Args:
        queue: What is known.
        jobs: Ids of jobs; those that squeue named are left out.
        env: Whole environment to ask from; this process's own if None.
    """
    wanted = [job for job in dict.fromkeys(jobs) if queue.find(job) is None]
    if not wanted or queue.problem is not None:
        return queue
    found = _from_accounts(wanted, env)
    if found is None:
        found = _one_by_one(wanted[:MAX_SCONTROL_QUERIES], env)
    asked = replace(queue, others={**queue.others, **found})
    known = os.environ if env is None else env
    _write(_cache_file(known), asked, known)
    return asked


def query_jobs(jobs: Iterable[str], env: Mapping[str, str] | None = None) -> dict[str, SlurmJob]:
    """Ask squeue for some jobs, past the cache; returns those that it knows, by id.

    Raises:
        ClusterError: Slurm is absent or does not answer.
    """
    lines = client.squeue([f"--jobs={','.join(jobs)}"], SQUEUE_FORMAT, env)
    return {job.job: job for job in map(parse_squeue_line, lines) if job is not None}


def record_cancelled(jobs: Iterable[str], env: Mapping[str, str] | None = None) -> None:
    """Remember that jobs were cancelled, and let the next look ask anew.

    Of an array's element that is cancelled before its start Slurm itself remembers nothing.
    """
    known = os.environ if env is None else env
    path = _cache_file(known)
    kept = _read(path, known) or QueueSnapshot(asked=0.0)
    others = {name: SlurmJob(job=name, state="CANCELLED") for name in jobs}
    _write(path, replace(kept, asked=0.0, others={**kept.others, **others}), known)


def _ask(before: QueueSnapshot | None, env: Mapping[str, str] | None) -> QueueSnapshot:
    asked = time.time()
    kept = before or QueueSnapshot(asked=asked)
    try:
        lines = client.squeue([f"--user={os.getuid()}"], SQUEUE_FORMAT, env)
    except ClusterError as fault:
        return replace(kept, asked=asked, problem=str(fault))
    jobs = {job.job: job for job in map(parse_squeue_line, lines) if job is not None}
    others = {name: job for name, job in kept.others.items() if job.has_ended and name not in jobs}
    return QueueSnapshot(asked=asked, answered=asked, jobs=jobs, others=others)


def _from_accounts(jobs: list[str], env: Mapping[str, str] | None) -> dict[str, SlurmJob] | None:
    """Return what sacct says of the jobs; None where no accounts are kept."""
    try:
        lines = client.sacct(jobs, SACCT_FIELDS, env)
    except ClusterError:
        return None
    rows = [job for job in map(parse_sacct_line, lines) if job is not None]
    by_id = {job.raw: job for job in rows} | {job.job: job for job in rows}
    return {name: by_id.get(name, SlurmJob(job=name, state=FORGOTTEN)) for name in jobs}


def _one_by_one(jobs: list[str], env: Mapping[str, str] | None) -> dict[str, SlurmJob]:
    found = {}
    for job in jobs:
        try:
            text = client.show_job(job, env)
        except ClusterError:
            break
        found[job] = parse_shown_job(job, text) if text else SlurmJob(job=job, state=FORGOTTEN)
    return found


def _is_new(queue: QueueSnapshot) -> bool:
    # An answer from the future: the clock was set back.
    return 0.0 <= time.time() - queue.asked < REFRESH_SECONDS


def _cluster(known: Mapping[str, str]) -> str:
    """Return what tells one cluster from another."""
    conf = known.get("SLURM_CONF")
    # Without SLURM_CONF it is the machine that knows its cluster; a home folder may be shared by several.
    where = f"host {socket.gethostname()}" if conf is None else f"conf {os.path.realpath(conf)}"
    return f"{where} clusters {known.get('SLURM_CLUSTERS', '')}"


def _cache_file(known: Mapping[str, str]) -> Path:
    root = known.get("XDG_CACHE_HOME") or os.path.join(known.get("HOME") or os.path.expanduser("~"), ".cache")
    digest = hashlib.sha256(_cluster(known).encode()).hexdigest()[:12]
    return Path(root) / "hsadml" / f"squeue-{digest}.json"


def _version(known: Mapping[str, str]) -> int | None:
    """Return when SLURM_CONF was written: a private cluster may come up again under the same name."""
    try:
        return os.stat(known["SLURM_CONF"]).st_mtime_ns
    except (KeyError, OSError):
        return None


def _read(path: Path, known: Mapping[str, str]) -> QueueSnapshot | None:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["uid"] != os.getuid() or stored["conf"] != _version(known):
            return None
        jobs, others = (
            {row["job"]: SlurmJob(**row) for row in stored["queue"].pop(name)} for name in ("jobs", "others")
        )
        return QueueSnapshot(**stored["queue"], jobs=jobs, others=others)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _write(path: Path, queue: QueueSnapshot, known: Mapping[str, str]) -> None:
    """Keep what is known; where that is impossible each process asks for itself."""
    oldest = time.time() - KEEP_SECONDS
    rows: dict[str, Any] = {name: getattr(queue, name) for name in ("asked", "answered", "problem")}
    rows["jobs"] = [asdict(job) for job in queue.jobs.values()]
    rows["others"] = [asdict(job) for job in queue.others.values() if job.start is None or job.start > oldest]
    text = json.dumps({"uid": os.getuid(), "conf": _version(known), "queue": rows})
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)


@contextlib.contextmanager
def _turn(path: Path) -> Iterator[bool]:
    """Wait until no other process asks; provides whether it is this one's turn, which it is not if that takes long."""
    with contextlib.ExitStack() as held:
        is_mine = True
        with contextlib.suppress(OSError):  # no cache folder, or a file system without locks
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = held.enter_context(open(os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600), "rb"))
            deadline = time.monotonic() + WAIT_SECONDS
            while not (is_mine := _locked(file.fileno())) and time.monotonic() < deadline:
                time.sleep(0.05)
        yield is_mine


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
