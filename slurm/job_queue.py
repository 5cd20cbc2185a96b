"""This user's jobs as Slurm reports them, cached for 30 seconds for all processes of the user.

One ``squeue`` lists the jobs that are pending, running, or ended within ``MinJobAge``; its answer is stored in the
user's cache folder. Jobs that squeue does not list, because they ended long ago or belong to another user, are queried
with ``sacct``, or with ``scontrol`` where no accounts are kept; these answers are cached as well.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hsadml_dist.atomic import write_text
from hsadml_dist.errors import ClusterError
from hsadml_dist.private_files import make_private_folder, open_private_file
from hsadml_dist.slurm import client
from hsadml_dist.slurm.client import FORGOTTEN, SlurmJob

REFRESH_SECONDS = 30.0
KEEP_SECONDS = 86400.0
"""How long the end of a job stays cached; it does not change any more."""
LOCK_SECONDS = 10.0
"""How long to wait for another process that runs squeue at the moment."""
MAX_SCONTROL_QUERIES = 20
"""Limit of the jobs that are queried one by one at a time, where no accounts are kept."""

Clock = Callable[[], float]
"""Returns the time in seconds since 1970 UTC."""


@dataclass(frozen=True, kw_only=True)
class QueueSnapshot:
    """Jobs as Slurm reported them at one moment.

    Attributes:
        asked: Time of the last squeue, in seconds since 1970 UTC.
        answered: Time of the last squeue that answered; None means it never did.
        problem: Why the last squeue did not answer.
        jobs: The answer of squeue, by id.
        others: Jobs that squeue does not list, by id.
    """

    asked: float
    answered: float | None = None
    problem: str | None = None
    jobs: Mapping[str, SlurmJob] = field(default_factory=dict)
    others: Mapping[str, SlurmJob] = field(default_factory=dict)

    def find(self, job: str) -> SlurmJob | None:
        """Return a job by its id or numeric id; None if it is unknown."""
        known = self.jobs.get(job) or self.others.get(job)
        return known or next((one for one in self.jobs.values() if one.raw == job), None)

    def is_fresh(self, now: float) -> bool:
        """Return whether squeue was asked at most 30 seconds before ``now``."""
        # An answer from the future means that the clock was set back.
        return 0.0 <= now - self.asked < REFRESH_SECONDS


def query_queue(
    before: QueueSnapshot | None = None,
    *,
    fresh: bool = False,
    env: Mapping[str, str] | None = None,
    clock: Clock = time.time,
    lock_seconds: float = LOCK_SECONDS,
) -> QueueSnapshot:
    """Return this user's jobs, from the cache if squeue was asked within 30 seconds.

    Args:
        before: Snapshot that this process has; it counts as cached even if no file can be written.
        fresh: Ask squeue even if the cache is fresh.
        env: Complete environment to ask from; None means that of this process.
        clock: Source of the time.
        lock_seconds: How long to wait for another process that runs squeue at the moment.
    """
    cache = _Cache.of(env, clock)
    began = clock()
    known = cache.read() or before
    if known is not None and not fresh and known.is_fresh(began):
        return known
    with cache.lock(lock_seconds) as is_locked:
        # Another process may have asked while this one waited for the lock.
        known = cache.read() or before
        if known is not None and known.is_fresh(clock()) and (not fresh or known.asked >= began):
            return known
        if not is_locked:
            return replace(known or QueueSnapshot(asked=began), problem="another process waits for squeue's answer")
        snapshot = _ask_squeue(known, env, clock())
        cache.write(snapshot)
    return snapshot


def with_unlisted_jobs(
    queue: QueueSnapshot, jobs: Iterable[str], env: Mapping[str, str] | None = None, clock: Clock = time.time
) -> QueueSnapshot:
    """Return ``queue`` with those of ``jobs`` added that it lacks, each of which is queried once."""
    missing = [job for job in dict.fromkeys(jobs) if queue.find(job) is None]
    if not missing or queue.problem is not None:
        return queue
    extended = replace(queue, others={**queue.others, **_query_unlisted(missing, env)})
    _Cache.of(env, clock).write(extended)
    return extended


def query_jobs(jobs: Iterable[str], env: Mapping[str, str] | None = None) -> dict[str, SlurmJob]:
    """Return those of ``jobs`` that squeue knows, by id, without the cache.

    Raises:
        ClusterError: Slurm is not installed or does not answer.
    """
    return client.squeue([f"--jobs={','.join(jobs)}"], env)


def record_cancelled(jobs: Iterable[str], env: Mapping[str, str] | None = None, clock: Clock = time.time) -> None:
    """Cache that jobs were cancelled, and make the next query ask squeue.

    Slurm itself keeps no record of an array element that is cancelled before its start.
    """
    cache = _Cache.of(env, clock)
    known = cache.read() or QueueSnapshot(asked=0.0)
    cancelled = {name: SlurmJob(job=name, state="CANCELLED") for name in jobs}
    cache.write(replace(known, asked=0.0, others={**known.others, **cancelled}))


def _ask_squeue(before: QueueSnapshot | None, env: Mapping[str, str] | None, now: float) -> QueueSnapshot:
    known = before or QueueSnapshot(asked=now)
    try:
        jobs = client.squeue([f"--user={os.getuid()}"], env)
    except ClusterError as fault:
        return replace(known, asked=now, problem=str(fault))
    others = {name: job for name, job in known.others.items() if job.has_ended and name not in jobs}
    return QueueSnapshot(asked=now, answered=now, jobs=jobs, others=others)


def _query_unlisted(jobs: Sequence[str], env: Mapping[str, str] | None) -> dict[str, SlurmJob]:
    """Return jobs from the accounting database, or some of them from the controller where no accounts are kept."""
    with contextlib.suppress(ClusterError):
        rows = client.sacct(jobs, env)
        by_id = {job.raw: job for job in rows} | {job.job: job for job in rows}
        return {name: by_id.get(name, SlurmJob(job=name, state=FORGOTTEN)) for name in jobs}
    found = {}
    with contextlib.suppress(ClusterError):
        for job in jobs[:MAX_SCONTROL_QUERIES]:
            found[job] = client.show_job(job, env)
    return found


@dataclass(frozen=True)
class _Cache:
    """The cache file of one cluster.

    Attributes:
        conf_version: Modification time of SLURM_CONF: a private cluster may come up again under the same name.
    """

    path: Path
    conf_version: int | None
    clock: Clock

    @classmethod
    def of(cls, env: Mapping[str, str] | None, clock: Clock) -> _Cache:
        """Return the cache of the cluster that ``env`` points at."""
        known = os.environ if env is None else env
        root = known.get("XDG_CACHE_HOME") or os.path.join(known.get("HOME") or os.path.expanduser("~"), ".cache")
        conf = known.get("SLURM_CONF")
        # Without SLURM_CONF the machine determines the cluster; several clusters may share a home folder.
        where = f"host {socket.gethostname()}" if conf is None else f"conf {os.path.realpath(conf)}"
        identity = f"{where} clusters {known.get('SLURM_CLUSTERS', '')}"
        digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
        try:
            version: int | None = os.stat(known["SLURM_CONF"]).st_mtime_ns
        except (KeyError, OSError):
            version = None
        return cls(Path(root) / "hsadml" / f"squeue-{digest}.json", version, clock)

    def read(self) -> QueueSnapshot | None:
        """Return the cached snapshot; None if there is none that is valid."""
        try:
            with open(open_private_file(self.path, os.O_RDONLY), encoding="utf-8") as file:
                stored = json.load(file)
            if stored["uid"] != os.getuid() or stored["conf"] != self.conf_version:
                return None
            queue = stored["queue"]
            jobs, others = ({row["job"]: SlurmJob(**row) for row in queue.pop(name)} for name in ("jobs", "others"))
            return QueueSnapshot(**queue, jobs=jobs, others=others)
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def write(self, queue: QueueSnapshot) -> None:
        """Store a snapshot; where that is impossible each process asks for itself."""
        oldest = self.clock() - KEEP_SECONDS
        fields: dict[str, Any] = {name: getattr(queue, name) for name in ("asked", "answered", "problem")}
        fields["jobs"] = [asdict(job) for job in queue.jobs.values()]
        fields["others"] = [asdict(job) for job in queue.others.values() if job.start is None or job.start > oldest]
        text = json.dumps({"uid": os.getuid(), "conf": self.conf_version, "queue": fields})
        with contextlib.suppress(OSError):
            make_private_folder(self.path.parent)
            write_text(self.path, text, durable=False, mode=0o600)

    @contextlib.contextmanager
    def lock(self, seconds: float) -> Iterator[bool]:
        """Hold the lock of the cache; yields False if another process still holds it after ``seconds``."""
        with contextlib.ExitStack() as stack:
            is_locked = True
            with contextlib.suppress(OSError):  # no cache folder, or a file system without locks
                make_private_folder(self.path.parent)
                descriptor = open_private_file(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT)
                stack.callback(os.close, descriptor)
                deadline = time.monotonic() + seconds
                while not (is_locked := _try_lock(descriptor)) and time.monotonic() < deadline:
                    time.sleep(0.05)
            yield is_locked


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
