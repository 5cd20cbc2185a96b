"""Processes, ports and device files of a private cluster.

A daemon runs in its own session, is identified by pid and start time, and is ended by pid.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hsadml_dist.errors import ClusterError
from hsadml_dist.process import process_start_time, read_proc_stat

SYSTEM_PATHS = ("/usr/sbin", "/sbin", "/usr/local/sbin")
GPUS_PER_NODE = 4
# Below the ports that the kernel hands out for outgoing connections.
PORTS = range(20000, 32000)
# A Unix socket's path holds 107 bytes; the socket of a step adds /spool/n12/n12_4294967295.4294967295 to the folder.
MAX_ROOT_BYTES = 60


@dataclass(frozen=True, kw_only=True)
class Daemon:
    """A process that outlives its parent.

    Attributes:
        name: Name for messages.
        pid: Process id.
        started: Start time in clock ticks since boot; with the pid it is unique.
    """

    name: str
    pid: int
    started: int

    @property
    def alive(self) -> bool:
        """Whether the process runs; a zombie does not."""
        return process_start_time(self.pid) == self.started


def find_tool(name: str) -> str:
    """Return the path of a program; system folders are searched even if PATH lacks them.

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
    """Return the parent pid of every process on this machine, by pid."""
    table = {}
    for entry in os.listdir("/proc"):
        fields = read_proc_stat(int(entry)) if entry.isdigit() else None
        if fields is not None:
            table[int(entry)] = int(fields[1])
    return table


def children(pid: int) -> list[int]:
    """Return the pids of the children of a process."""
    return [child for child, parent in parents().items() if parent == pid]


def descendants(roots: Iterable[int]) -> set[int]:
    """Return the pids of ``roots`` and of all their descendants."""
    table = parents()
    found = set(roots)
    size = -1
    while size != len(found):
        size = len(found)
        found |= {pid for pid, parent in table.items() if parent in found}
    return found


def running_processes(name: str, pids: Iterable[int]) -> list[Daemon]:
    """Return those of ``pids`` that still run, as processes called ``name``."""
    stamped = ((pid, process_start_time(pid)) for pid in pids)
    return [Daemon(name=name, pid=pid, started=started) for pid, started in stamped if started is not None]


def spawn(name: str, argv: Sequence[str], *, output: Path, env: Mapping[str, str]) -> Daemon:
    """Start a process in its own session, so that it survives the caller.

    Args:
        name: Name for messages.
        argv: Path of the program and its arguments.
        output: File that its output is appended to.
        env: Its complete environment.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(output), flags, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    # Not Popen, because its object would warn about a child without a wait().
    # Signals that the caller ignores or blocks must work in the jobs.
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
    """End processes by SIGTERM, and after ``patience`` seconds by SIGKILL."""
    running = [daemon for daemon in daemons if daemon.alive]
    if not _end(running, signal.SIGTERM, patience):
        kill(running)


def kill(daemons: Iterable[Daemon]) -> None:
    """End processes by SIGKILL and wait until they are gone."""
    _end(list(daemons), signal.SIGKILL, 5)


def _end(doomed: Sequence[Daemon], number: signal.Signals, seconds: float) -> bool:
    """Send a signal to processes, wait for their end and reap them; return False if any remains."""
    for daemon in doomed:
        send(daemon, number)
    is_over = wait_until(lambda: not any(daemon.alive for daemon in doomed), seconds=seconds)
    for daemon in doomed:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(daemon.pid, os.WNOHANG)
    return is_over


def kill_tree(root: Daemon) -> None:
    """End a process and all its descendants by SIGKILL."""
    if root.alive:
        kill(running_processes(root.name, descendants([root.pid])))


def send(daemon: Daemon, number: signal.Signals) -> None:
    """Send a signal to a process if its pid has not been reused."""
    if daemon.alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(daemon.pid, number)


def job_processes(root: Path, conf: Path) -> list[Daemon]:
    """Return the processes of the cluster's jobs on this machine: each slurmstepd and everything that a job started.

    slurmd leaves its steps running when it stops, so that an upgrade does not end jobs; here nothing may remain.

    Args:
        root: Folder of the cluster, as the daemons see it.
        conf: Path of the cluster's slurm.conf.
    """
    steps = {pid for pid in parents() if _is_slurmstepd(pid, root)}
    found = descendants(steps) | {pid for pid in parents() if _is_in_job(pid, conf)}
    return running_processes("job", found - {os.getpid()})


def _is_slurmstepd(pid: int, root: Path) -> bool:
    try:
        if Path(f"/proc/{pid}/comm").read_text().strip() != "slurmstepd":
            return False
        return any(Path(os.path.realpath(file)).is_relative_to(root) for file in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def _is_in_job(pid: int, conf: Path) -> bool:
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    # Only slurmd sets SLURMD_NODENAME: a user's shell that points at this cluster is spared.
    return f"SLURM_CONF={conf}".encode() in entries and any(e.startswith(b"SLURMD_NODENAME=") for e in entries)


def short_path(folder: Path) -> Path:
    """Return a path to ``folder`` that is short enough for Unix sockets: itself, or a link under /tmp."""
    if len(os.fsencode(folder)) <= MAX_ROOT_BYTES:
        return folder
    link = Path(tempfile.mkdtemp(prefix="hsadml-", dir="/tmp")) / "cluster"
    link.symlink_to(folder)
    return link


def free_ports(count: int, taken: Sequence[int] = ()) -> list[int]:
    """Return ``count`` different TCP ports that are free at the moment."""
    shuffled = random.SystemRandom().sample(PORTS, len(PORTS))
    return list(itertools.islice((port for port in shuffled if port not in taken and _can_bind(port)), count))


def _can_bind(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def fake_gpus(root: Path) -> tuple[str, ...]:
    """Return device files that act as GPUs; Slurm only checks that they exist."""
    folder = root / "dev"
    folder.mkdir(exist_ok=True)
    devices = [folder / f"fakegpu{number}" for number in range(GPUS_PER_NODE)]
    try:
        for path in devices:
            if not path.exists():
                os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        devices = [Path(f"/dev/tty{number}") for number in range(GPUS_PER_NODE)]
    return tuple(str(path) for path in devices if path.exists())
