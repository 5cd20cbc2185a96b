"""Checks of this machine: installed versions, umask, shared memory, open files and CPUs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import resource
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import hsadml_dist
from hsadml_dist.launch.doctor.check_results import CheckResult, check_result, unknown_result
from hsadml_dist.launch.doctor.disk_checks import DiskSpeed, check_disk, existing_parent, read_save_cost
from hsadml_dist.launch.doctor.slurm_checks import check_slurm, find_site, select_partition
from hsadml_dist.run.folder import RunFolder

VERSIONS_GROUP = "programs"
PACKAGES = ("hsadml-dist", "torch", "monai", "webdataset", "deepspeed")
TRAINING = ("torch", "monai", "webdataset")
"""Without these nothing can be trained; a login node needs none of them."""


def versions() -> dict[str, str | None]:
    """Return the version of Python and of each package, None where it is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def pins(text: str) -> dict[str, str]:
    """Return the versions that a constraints file names."""
    return {name.lower(): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", text, flags=re.MULTILINE)}


def check_versions() -> Iterator[CheckResult]:
    """Yield what is installed on this machine."""
    path = Path(hsadml_dist.__file__).parent.parent / "constraints.txt"
    tested = pins(path.read_text(encoding="utf-8")) if path.is_file() else {}
    yield from compare_versions(versions(), tested)


def compare_versions(found: Mapping[str, str | None], tested: Mapping[str, str]) -> Iterator[CheckResult]:
    """Yield what the versions mean.

    Args:
        found: By name, as :func:`versions` has them.
        tested: The versions that were tested together, by name.
    """
    missing = [name for name in TRAINING if found[name] is None]
    for name, version in found.items():
        yield check_result(VERSIONS_GROUP, name, _text(name, version, tested.get(name)))
    if missing:
        text = f"no {', '.join(missing)} here: fine on a login node; a machine that trains needs them"
        yield check_result(VERSIONS_GROUP, "training", text)


def _text(name: str, version: str | None, tested: str | None) -> str:
    if version is None:
        return "runs from a clone, not installed" if name == "hsadml-dist" else "not installed"
    if tested is None or version.partition("+")[0] == tested:
        return version
    return f"{version}; {tested} was tested with the others"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


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


def check_this_machine(run: Path, partition: str | None, env: Mapping[str, str] | None = None) -> Iterator[CheckResult]:
    """Yield what is found without a job.

    Args:
        run: A run folder, or where one shall be.
        partition: Where the run would go; None: the site's default.
        env: Whole environment for Slurm's commands; this process's own if None.

    Raises:
        UsageError: There is no such partition.
    """
    site, said = find_site(env)
    where = None if site is None else select_partition(site, partition)
    saves, speed = read_save_cost(RunFolder(run)), None
    yield from check_versions()
    yield from check_host_limits(host_limits())
    for one in check_disk(existing_parent(run), None if saves is None else saves.kept):
        if isinstance(one, DiskSpeed):
            speed = one
        else:
            yield one
    yield from said
    if site is not None:
        yield from check_slurm(site, where, saves.stop_seconds(speed) if saves and speed else None, env)
