"""All that can be asked on this machine, in the order in which it is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from hsadml_dist.launch.doctor.disk import DiskSpeed, check_disk, existing_parent
from hsadml_dist.launch.doctor.finding import CheckResult
from hsadml_dist.launch.doctor.machine import check_host_limits, host_limits
from hsadml_dist.launch.doctor.programs import check_versions
from hsadml_dist.launch.doctor.queue import check_slurm, find_site, select_partition
from hsadml_dist.launch.doctor.saves import read_save_cost
from hsadml_dist.run.folder import RunFolder


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
