"""``hsadml doctor``: check whether this machine and its cluster can run a training."""

from __future__ import annotations

import dataclasses
import os
import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

from hsadml_dist.errors import ExitCode, UsageError
from hsadml_dist.jobs.prepare import RUNS
from hsadml_dist.launch.cli.terminal import AsJson, echo, echo_coloured, echo_json, terminal_width
from hsadml_dist.launch.doctor import CheckResult, CheckStatus
from hsadml_dist.launch.doctor.host_checks import check_this_machine
from hsadml_dist.printable import printable
from hsadml_dist.slurm import client
from hsadml_dist.slurm.profiles import Profile, load_profile

PIPED_WIDTH = 100
MAX_WIDTH = 120
MARKS = {CheckStatus.OK: "ok", CheckStatus.WARN: "warn", CheckStatus.FAIL: "FAIL", CheckStatus.UNKNOWN: "?"}
MARK_WIDTH = 4
COLOURS = {CheckStatus.OK: "32", CheckStatus.WARN: "33", CheckStatus.FAIL: "1;31", CheckStatus.UNKNOWN: "2"}


def doctor(
    *,
    run: Path = RUNS,
    nodes: int | None = None,
    tasks_per_node: int = 1,
    cpus_per_task: int | None = None,
    partition: str | None = None,
    profile: str | None = None,
    timeout: int = 600,
    as_json: AsJson = False,
) -> int:
    """Check whether this machine and its cluster can run a training. Exit code 1 if a check fails.

    Writes 64 MiB to the file system of the run folder and removes them. With --nodes it also queues a job of about a
    minute.

    Args:
        run: A run folder, existing or planned. For an existing run the time that it needs to save is estimated.
        nodes: Check this number of nodes too, by a job.
        tasks_per_node: Ranks on each node.
        cpus_per_task: CPUs of each rank; by default the profile's number, or 1.
        partition: Slurm partition; by default the profile's or the site's.
        profile: Saved options of your cluster, as for hsadml submit.
        timeout: Seconds to wait for the job, which is cancelled then.
        as_json: Print a JSON list of results.
    """
    for option, value in (("--nodes", nodes), ("--tasks-per-node", tasks_per_node), ("--timeout", timeout)):
        if value is not None and value < 1:
            raise UsageError(f"{option} {value}: at least 1")
    options = Profile() if profile is None else load_profile(profile)
    options = dataclasses.replace(
        options,
        partition=partition or options.partition,
        cpus_per_task=cpus_per_task or options.cpus_per_task,
    )
    if nodes is not None:
        client.require_slurm()
    results = list(check_this_machine(run, options.partition))
    if nodes is not None:
        results += _check_nodes(run, nodes, tasks_per_node, options, timeout)
    if as_json:
        echo_json([dataclasses.asdict(one) for one in results], indent=2)
    else:
        width = terminal_width()
        colour = width is not None and "NO_COLOR" not in os.environ
        echo_coloured(format_results(results, width or PIPED_WIDTH, colour=colour))
    return ExitCode.USER_ERROR if any(one.verdict is CheckStatus.FAIL for one in results) else ExitCode.SUCCESS


def _check_nodes(run: Path, nodes: int, tasks_per_node: int, options: Profile, timeout: float) -> Iterator[CheckResult]:
    from hsadml_dist.config.yaml_loader import load_recipe
    from hsadml_dist.launch.doctor.disk_checks import existing_parent, temporary_folder
    from hsadml_dist.launch.doctor.probe_job import probe_request, run_probe_job
    from hsadml_dist.launch.doctor.rank_checks import check_reports
    from hsadml_dist.run.folder import RunFolder
    from hsadml_dist.slurm.site import try_query_site

    site = try_query_site()
    partition = None if site is None else site.partition(options.partition)
    config = RunFolder(run).config
    workers = load_recipe(config, stored=True).recipe.data.workers if config.is_file() else None
    with temporary_folder(existing_parent(run)) as folder:
        max_seconds = None if partition is None else partition.max_seconds
        request = probe_request(folder, options, nodes=nodes, tasks_per_node=tasks_per_node, max_seconds=max_seconds)
        reports, last_line = run_probe_job(request, timeout, partial(echo, error=True))
    yield from check_reports(reports, nodes * tasks_per_node, last_line, workers)


def format_results(results: Sequence[CheckResult], width: int, *, colour: bool = False) -> str:
    """Return the results, of which those of a group are consecutive, under headings, and a count of each status."""
    name_width = max((len(one.name) for one in results), default=0)
    lines: list[str] = []
    for group, members in groupby(results, key=lambda one: one.group):
        lines += [group]
        for result in members:
            lines += _format_result(result, name_width, min(width, MAX_WIDTH), colour)
        lines += [""]
    return "\n".join([*lines, count_statuses(results)])


def count_statuses(results: Sequence[CheckResult]) -> str:
    """Return one line with the number of results of each status."""
    counts = Counter(one.verdict for one in results)
    names = {
        CheckStatus.FAIL: "failed",
        CheckStatus.WARN: "warnings" if counts[CheckStatus.WARN] > 1 else "warning",
        CheckStatus.UNKNOWN: "unknown",
        CheckStatus.OK: "ok",
    }
    return ", ".join(f"{counts[status]} {name}" for status, name in names.items() if counts[status])


def _format_result(result: CheckResult, name_width: int, width: int, colour: bool) -> Iterator[str]:
    mark = f"{MARKS[result.verdict]:<{MARK_WIDTH}}"
    if colour:
        mark = f"\033[{COLOURS[result.verdict]}m{mark}\033[0m"
    margin = 2 + MARK_WIDTH + 2 + name_width + 2
    text_width = max(width - margin, 24)
    first, *rest = _wrap(result.found, text_width) or [""]
    yield f"  {mark}  {printable(result.name):<{name_width}}  {first}".rstrip()
    for line in rest:
        yield " " * margin + line
    for place, line in enumerate(_wrap(result.todo, text_width - 3)):
        yield " " * margin + ("-> " if place == 0 else "   ") + line


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(printable(re.sub(r"\s", " ", text)), width, break_on_hyphens=False)
