"""Processes of a private cluster: started apart from the caller, known by pid and start time, ended by pid."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hsadml_dist.errors import ClusterError
from hsadml_dist.process import process_start_time, read_proc_stat

SYSTEM_PATHS = ("/usr/sbin", "/sbin", "/usr/local/sbin")


@dataclass(frozen=True, kw_only=True)
class Daemon:
    """A process that outlives the one that started it.

    Attributes:
        name: What it is, for messages.
        pid: Its process id.
        started: Its start time in clock ticks since boot: with the pid it names one process, never a later one.
    """

    name: str
    pid: int
    started: int

    @property
    def alive(self) -> bool:
        """Whether it runs; a zombie does not."""
        return process_start_time(self.pid) == self.started


def find_tool(name: str) -> str:
    """Return the path of a program; system folders count though a user's PATH lacks them.

    Raises:
        ClusterError: The program is not installed.
    """
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(SYSTEM_PATHS))
    if found is None:
        raise ClusterError(
            f"{name} is not installed: a private cluster needs slurmctld, slurmd, slurm-client and munge"
        )
    return found


def parents() -> dict[int, int]:
    """Return the parent of every process on this machine, by pid."""
    table = {}
    for entry in os.listdir("/proc"):
        fields = read_proc_stat(int(entry)) if entry.isdigit() else None
        if fields is not None:
            table[int(entry)] = int(fields[1])
    return table


def children(pid: int) -> list[int]:
    """Return the pids of a process's own children."""
    return [child for child, parent in parents().items() if parent == pid]


def descendants(roots: Iterable[int]) -> set[int]:
    """Return the pids below ``roots``, and ``roots`` themselves."""
    table = parents()
    found = set(roots)
    size = -1
    while size != len(found):
        size = len(found)
        found |= {pid for pid, parent in table.items() if parent in found}
    return found


def spawn(name: str, argv: Sequence[str], *, output: Path, env: Mapping[str, str]) -> Daemon:
    """Start a process in a session of its own, so that it stays when the caller leaves.

    Args:
        name: What it is, for messages.
        argv: Path of the program and its arguments.
        output: File that its output is appended to.
        env: Its whole environment.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(output), flags, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    # Not Popen: its object would complain about a child that it is not meant to wait for.
    # A caller that ignores or blocks a signal must not pass that on to the jobs.
    reset = set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}
    pid = os.posix_spawn(
        argv[0], list(argv), dict(env), file_actions=actions, setsid=True, setsigmask=(), setsigdef=reset
    )
    started = process_start_time(pid)
    return Daemon(name=name, pid=pid, started=-1 if started is None else started)


def wait_until(condition: Callable[[], bool], *, seconds: float, pause: float = 0.02) -> bool:
    """Return True as soon as ``condition()`` holds, False once ``seconds`` have passed."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(pause)
    return True


def stop(daemons: Iterable[Daemon], *, patience: float = 3.0) -> None:
    """End processes by SIGTERM, and by SIGKILL those that are still there ``patience`` seconds later."""
    asked = [daemon for daemon in daemons if daemon.alive]
    for daemon in asked:
        send(daemon, signal.SIGTERM)
    if not wait_until(lambda: not any(d.alive for d in asked), seconds=patience):
        kill(asked)
    for daemon in asked:
        _reap(daemon.pid)


def kill(daemons: Iterable[Daemon]) -> None:
    """End processes by SIGKILL and wait until they are gone."""
    doomed = list(daemons)
    for daemon in doomed:
        send(daemon, signal.SIGKILL)
    wait_until(lambda: not any(d.alive for d in doomed), seconds=5)
    for daemon in doomed:
        _reap(daemon.pid)


def kill_tree(root: Daemon) -> None:
    """End a process and all below it by SIGKILL."""
    if root.alive:
        stamped = ((pid, process_start_time(pid)) for pid in descendants([root.pid]))
        kill([Daemon(name=root.name, pid=pid, started=started) for pid, started in stamped if started is not None])


def send(daemon: Daemon, number: signal.Signals) -> None:
    """Send a signal to a process if it is still the one that was started."""
    if daemon.alive:
        try:
            os.kill(daemon.pid, number)
        except ProcessLookupError:
            return


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def job_processes(root: Path, conf: Path) -> list[Daemon]:
    """Return what the cluster's jobs left running on this machine: steps' minders, and all that a job started.

    Slurm's slurmd leaves its steps alone when it stops, so that an upgrade does not end jobs; here nothing may stay.

    Args:
        root: Folder of the cluster, as the daemons know it.
        conf: Path of the cluster's slurm.conf.
    """
    minders = {pid for pid in parents() if _is_minder(pid, root)}
    found = descendants(minders) | {pid for pid in parents() if _is_in_job(pid, conf)}
    stamped = ((pid, process_start_time(pid)) for pid in found - {os.getpid()})
    return [Daemon(name="job", pid=pid, started=started) for pid, started in stamped if started is not None]


def _is_minder(pid: int, root: Path) -> bool:
    try:
        if Path(f"/proc/{pid}/comm").read_text().strip() != "slurmstepd":
            return False
        return any(Path(target).is_relative_to(root) for target in _open_files(pid))
    except OSError:
        return False


def _open_files(pid: int) -> Iterator[str]:
    for entry in os.listdir(f"/proc/{pid}/fd"):
        try:
            yield os.readlink(f"/proc/{pid}/fd/{entry}")
        except FileNotFoundError:
            continue


def _is_in_job(pid: int, conf: Path) -> bool:
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    # SLURMD_NODENAME stands only in what slurmd started: a shell of the user's that points at this cluster is spared.
    return f"SLURM_CONF={conf}".encode() in entries and any(e.startswith(b"SLURMD_NODENAME=") for e in entries)
