"""``hsadml doctor``."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from hsadml_dist.errors import ExitCode, UsageError
from hsadml_dist.jobs.prepare import RUNS
from hsadml_dist.launch.doctor.check_results import CheckResult, CheckStatus, as_table
from hsadml_dist.launch.doctor.host_checks import check_this_machine
from hsadml_dist.slurm import client

PIPED_WIDTH = 100


def doctor(
    *,
    run: Path = RUNS,
    nodes: int | None = None,
    tasks_per_node: int = 1,
    cpus_per_task: int | None = None,
    partition: str | None = None,
    profile: str | None = None,
    timeout: int = 600,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Tell whether this machine and its cluster can carry a run; exit code 1 if something would fail.

    Writes 64 MiB to the run folder's file system and removes them. With --nodes it also queues a job of about a minute.

    Args:
        run: A run folder, or where one shall be. An existing run tells how long its saves take.
        nodes: Ask the nodes as well: a job on that many of them.
        tasks_per_node: Ranks on each node.
        cpus_per_task: CPUs of each rank; one if neither this nor the profile says.
        partition: Slurm's partition; the profile's or the site's default if left out.
        profile: What every job on the cluster needs, as for submit.
        timeout: Seconds to wait for the job; it is cancelled then.
        as_json: Print a JSON list of findings.
    """
    for option, value in (("--nodes", nodes), ("--tasks-per-node", tasks_per_node), ("--timeout", timeout)):
        if value is not None and value < 1:
            raise UsageError(f"{option} {value}: at least 1")
    if nodes is None and profile is None:
        findings = list(check_this_machine(run, partition))
    else:
        from hsadml_dist.launch.doctor.probe_job import ProbeRequest, check_nodes
        from hsadml_dist.slurm.profiles import Profile, load_profile

        given = Profile() if profile is None else load_profile(profile)
        partition = partition or given.partition
        if nodes is not None:
            client.require_slurm()
        findings = list(check_this_machine(run, partition))
        if nodes is not None:
            asked = ProbeRequest(
                nodes=nodes,
                tasks_per_node=tasks_per_node,
                cpus_per_task=cpus_per_task,
                partition=partition,
                profile=given,
            )
            findings += check_nodes(asked, run, timeout, _say)
    _show(findings, as_json)
    return ExitCode.USER_ERROR if any(one.verdict is CheckStatus.FAIL for one in findings) else ExitCode.SUCCESS


def _show(findings: Sequence[CheckResult], as_json: bool) -> None:
    if as_json:
        print(json.dumps([dataclasses.asdict(one) for one in findings], indent=2))
        return
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else PIPED_WIDTH
    print(as_table(findings, width, colour=terminal and "NO_COLOR" not in os.environ))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
