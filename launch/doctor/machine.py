"""What a machine gives to a process: file rights, shared memory, limits, processors. Asked on any machine."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hsadml_dist.launch.doctor.finding import CheckResult, check_result, unknown_result

HOST_GROUP = "this machine"
SHARED_MEMORY = Path("/dev/shm")
GIBIBYTE = 2**30
LITTLE_SHARED = 1 * GIBIBYTE
FEW_FILES = 1024
UNLIMITED = -1


@dataclass(frozen=True, kw_only=True)
class HostLimits:
    """What this process is given.

    Attributes:
        umask: Rights that new files do not get.
        shared_total: Bytes of shared memory; None: there is none.
        shared_free: How many of them are free.
        files: Most open files.
        locked: Most bytes of memory that may be locked, as fast networks need it; -1: no limit.
        cpus: Processors that this process may use.
    """

    umask: int
    shared_total: int | None
    shared_free: int | None
    files: int
    locked: int
    cpus: int


def host_limits() -> HostLimits:
    """Return what this process is given."""
    umask = os.umask(0o077)
    os.umask(umask)
    shared = shutil.disk_usage(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else None
    return HostLimits(
        umask=umask,
        shared_total=shared.total if shared else None,
        shared_free=shared.free if shared else None,
        files=_limit(resource.RLIMIT_NOFILE),
        locked=_limit(resource.RLIMIT_MEMLOCK),
        cpus=_cpus(os.environ),
    )


def check_host_limits(machine: HostLimits, group: str = HOST_GROUP) -> Iterator[CheckResult]:
    """Yield what a machine's gifts mean for a run."""
    yield check_umask(machine.umask, group)
    yield check_shared_memory(machine.shared_total, machine.shared_free, group)
    yield check_open_files(machine.files, group)
    yield check_result(group, "processors", str(machine.cpus))


def check_umask(umask: int, group: str) -> CheckResult:
    """Judge whether others may write into what a run writes."""
    todo = "set `umask 0027` in your shell, or in the profile: a stranger could change checkpoints"
    return check_result(group, "umask", f"{umask:04o}", warn="" if umask & 0o002 else todo)


def check_shared_memory(total: int | None, free: int | None, group: str) -> CheckResult:
    """Judge the room in which loader workers hand over their batches."""
    name = "shared memory"
    if total is None or free is None:
        return unknown_result(group, name, f"no {SHARED_MEMORY}", "loader workers need it; train with data.workers=0")
    todo = "loader workers hand batches over in it: enlarge it (containers: --shm-size), or train with data.workers=0"
    found = f"{free / GIBIBYTE:.1f} of {total / GIBIBYTE:.1f} GiB free in {SHARED_MEMORY}"
    return check_result(group, name, found, warn=todo if free < LITTLE_SHARED else "")


def check_open_files(files: int, group: str) -> CheckResult:
    """Judge the number of files that may be open."""
    found = "no limit" if files == UNLIMITED else f"{files:,}"
    few = files != UNLIMITED and files < FEW_FILES
    return check_result(group, "open files", found, warn="raise it: ulimit -n 4096" if few else "")


def _cpus(environ: Mapping[str, str]) -> int:
    """Return how many processors this process may use; a site without cgroups does not hold a task to its share."""
    given = environ.get("SLURM_CPUS_PER_TASK", "") if "SLURM_STEP_ID" in environ else ""
    allowed = len(os.sched_getaffinity(0))
    return min(allowed, int(given)) if given.isdecimal() else allowed


def _limit(what: int) -> int:
    soft = resource.getrlimit(what)[0]
    return UNLIMITED if soft == resource.RLIM_INFINITY else soft
