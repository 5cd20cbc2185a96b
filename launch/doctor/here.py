"""All that can be asked on this machine, in the order in which it is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from hsadml_dist.launch.doctor.disk import Speed, check_disk, existing_parent
from hsadml_dist.launch.doctor.finding import Finding
from hsadml_dist.launch.doctor.machine import judge_machine, this_machine
from hsadml_dist.launch.doctor.programs import check_programs
from hsadml_dist.launch.doctor.queue import check_queue, chosen_partition, find_site
from hsadml_dist.launch.doctor.saves import saves_of
from hsadml_dist.run.folder import RunFolder


def look_here(run: Path, partition: str | None, env: Mapping[str, str] | None = None) -> Iterator[Finding]:
    """Yield what is found without a job.

    Args:
        run: A run folder, or where one shall be.
        partition: Where the run would go; None: the site's default.
        env: Whole environment for Slurm's commands; this process's own if None.

    Raises:
        UsageError: There is no such partition.
    """
    site, said = find_site(env)
    where = None if site is None else chosen_partition(site, partition)
    saves, speed = saves_of(RunFolder(run)), None
    yield from check_programs()
    yield from judge_machine(this_machine())
    for one in check_disk(existing_parent(run), None if saves is None else saves.kept):
        if isinstance(one, Speed):
            speed = one
        else:
            yield one
    yield from said
    if site is not None:
        yield from check_queue(site, where, saves.stop_seconds(speed) if saves and speed else None, env)
