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
from hsadml_dist.launch.doctor import CheckResult, check_result, unknown_result
from hsadml_dist.launch.doctor.disk_checks import check_disk, existing_parent, read_save_cost
from hsadml_dist.launch.doctor.slurm_checks import check_slurm, find_site, select_partition
from hsadml_dist.run.folder import RunFolder

VERSIONS_GROUP = "programs"
PACKAGES = ("hsadml-dist", "torch", "monai", "webdataset", "deepspeed")
TRAINING_PACKAGES = ("torch", "monai", "webdataset")
"""Packages without which nothing can be trained; a login node needs none of them."""

HOST_GROUP = "this machine"
SHARED_MEMORY = Path("/dev/shm")
GIBIBYTE = 2**30
MIN_SHARED_BYTES = 1 * GIBIBYTE
MIN_OPEN_FILES = 1024
UNLIMITED = -1


def check_this_machine(run: Path, partition: str | None, env: Mapping[str, str] | None = None) -> Iterator[CheckResult]:
    """Yield the results of all checks that need no job.

    Args:
        run: A run folder, existing or planned.
        partition: Partition that the run would use; None means the site's default.
        env: Whole environment for Slurm's commands; None means this process's own.

    Raises:
        UsageError: There is no such partition.
    """
    site, site_results = find_site(env)
    chosen = None if site is None else select_partition(site, partition)
    cost = read_save_cost(RunFolder(run))
    yield from check_versions()
    yield from check_host_limits(host_limits())
    disk_results, speed = check_disk(existing_parent(run), None if cost is None else cost.kept)
    yield from disk_results
    yield from site_results
    if site is not None:
        yield from check_slurm(site, chosen, cost.stop_seconds(speed) if cost and speed else None, env)


def installed_versions() -> dict[str, str | None]:
    """Return the versions of Python and of each package, without importing them; None if it is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def parse_constraints(text: str) -> dict[str, str]:
    """Return the pinned versions of a constraints file."""
    return {name.lower(): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", text, flags=re.MULTILINE)}


def check_versions() -> Iterator[CheckResult]:
    """Compare the versions on this machine with the tested ones, where this is a clone."""
    path = Path(hsadml_dist.__file__).parent.parent / "constraints.txt"
    tested = parse_constraints(path.read_text(encoding="utf-8")) if path.is_file() else {}
    yield from compare_versions(installed_versions(), tested)


def compare_versions(installed: Mapping[str, str | None], tested: Mapping[str, str]) -> Iterator[CheckResult]:
    """Yield one result per installed package; ``tested`` are versions that were tested together, by name."""
    for name, version in installed.items():
        yield check_result(VERSIONS_GROUP, name, _describe_version(name, version, tested.get(name)))
    missing = [name for name in TRAINING_PACKAGES if installed[name] is None]
    if missing:
        text = f"{', '.join(missing)} missing: fine on a login node; a node that trains needs them"
        yield check_result(VERSIONS_GROUP, "training", text)


@dataclass(frozen=True, kw_only=True)
class HostLimits:
    """Resources and limits of this process.

    Attributes:
        umask: Permissions that new files do not get.
        shared_total: Size of the shared memory in bytes; None if there is none.
        shared_free: Free bytes of it.
        files: Maximum number of open files.
        locked: Maximum bytes of locked memory, which fast networks need; -1 means no limit.
        cpus: CPUs that this process may use.
    """

    umask: int
    shared_total: int | None
    shared_free: int | None
    files: int
    locked: int
    cpus: int


def host_limits() -> HostLimits:
    """Return the resources and limits of this process."""
    umask = os.umask(0o077)
    os.umask(umask)
    shared = shutil.disk_usage(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else None
    allowed = len(os.sched_getaffinity(0))
    # Without cgroups a site does not limit a task to its share.
    share = os.environ.get("SLURM_CPUS_PER_TASK", "") if "SLURM_STEP_ID" in os.environ else ""
    return HostLimits(
        umask=umask,
        shared_total=shared.total if shared else None,
        shared_free=shared.free if shared else None,
        files=_soft_limit(resource.RLIMIT_NOFILE),
        locked=_soft_limit(resource.RLIMIT_MEMLOCK),
        cpus=min(allowed, int(share)) if share.isdecimal() else allowed,
    )


def check_host_limits(limits: HostLimits, group: str = HOST_GROUP) -> Iterator[CheckResult]:
    """Yield the results for this machine's limits."""
    yield check_umask(limits.umask, group)
    yield check_shared_memory(limits.shared_total, limits.shared_free, group)
    yield check_open_files(limits.files, group)
    yield check_result(group, "processors", str(limits.cpus))


def check_umask(umask: int, group: str) -> CheckResult:
    """Check that other users cannot write to a run's files."""
    todo = "set `umask 0027` in your shell or in the profile: otherwise other users can change checkpoints"
    return check_result(group, "umask", f"{umask:04o}", warn="" if umask & 0o002 else todo)


def check_shared_memory(total: int | None, free: int | None, group: str) -> CheckResult:
    """Check the space through which loader workers pass their batches."""
    name = "shared memory"
    if total is None or free is None:
        return unknown_result(group, name, f"no {SHARED_MEMORY}", "loader workers need it; train with data.workers=0")
    todo = "loader workers pass batches through it: enlarge it (containers: --shm-size) or train with data.workers=0"
    found = f"{free / GIBIBYTE:.1f} of {total / GIBIBYTE:.1f} GiB free in {SHARED_MEMORY}"
    return check_result(group, name, found, warn=todo if free < MIN_SHARED_BYTES else "")


def check_open_files(files: int, group: str) -> CheckResult:
    """Check the maximum number of open files."""
    found = "no limit" if files == UNLIMITED else f"{files:,}"
    too_few = files != UNLIMITED and files < MIN_OPEN_FILES
    return check_result(group, "open files", found, warn="raise it: ulimit -n 4096" if too_few else "")


def _describe_version(name: str, version: str | None, tested: str | None) -> str:
    if version is None:
        return "not installed; running from a clone" if name == "hsadml-dist" else "not installed"
    if tested is None or version.partition("+")[0] == tested:
        return version
    return f"{version}; tested with {tested}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _soft_limit(kind: int) -> int:
    soft = resource.getrlimit(kind)[0]
    return UNLIMITED if soft == resource.RLIM_INFINITY else soft
