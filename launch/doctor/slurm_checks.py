"""What Slurm's settings mean for a run: how it is told to stop, and how it comes back."""

from __future__ import annotations

import getpass
import os
import shutil
from collections.abc import Iterator, Mapping

from hsadml_dist.errors import ClusterError, UsageError, did_you_mean
from hsadml_dist.launch.doctor.check_results import CheckResult, CheckStatus, check_result, unknown_result
from hsadml_dist.slurm.job_records import REQUEUE_MODES
from hsadml_dist.slurm.site import Partition, SlurmSite, query_site, submit_limit
from hsadml_dist.slurm.submit import requeue_problem, requeue_warning

GROUP = "slurm"
PROGRAMS = ("sbatch", "srun", "scontrol", "squeue", "scancel")
NO_CLUSTER = "configuration source"
"""In what Slurm's programs say where there is no slurm.conf."""
LONG_WAIT = 15
"""Seconds after which a requeued job's wait is worth a line."""
SHORT_MEMORY = 30
CHAIN_JOBS = 2
"""Jobs that a chain has in the queue: the one that runs and its successor."""


def find_site(env: Mapping[str, str] | None = None) -> tuple[SlurmSite | None, list[CheckResult]]:
    """Return the site, None where Slurm is absent or does not answer, and what is to be said of that."""
    path = (os.environ if env is None else env).get("PATH")
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if len(missing) == len(PROGRAMS):
        found = "none on this machine; `hsadml train` runs without it"
        return None, [CheckResult(group=GROUP, name="programs", verdict=CheckStatus.OK, found=found)]
    todo = f"put {', '.join(missing)} on PATH (module load slurm?): submit, cancel and status need them"
    there = ", ".join(name for name in PROGRAMS if name not in missing)
    programs = check_result(GROUP, "programs", there, fail=todo if missing else "")
    try:
        site = query_site(env)
    except ClusterError as fault:
        return None, [programs, check_controller_error(str(fault))]
    return site, [programs, check_result(GROUP, "controller", f"{site.cluster} answers, Slurm {site.version}")]


def check_controller_error(fault: str) -> CheckResult:
    """Judge why the controller gave no answer: a machine with Slurm's programs need not belong to a cluster."""
    if "SLURM_CONF is unset" in fault and NO_CLUSTER in fault:
        found = "Slurm's programs know of no cluster (no slurm.conf); `hsadml train` runs without one"
        todo = "for Slurm: ask on a login node, or `hsadml cluster up` and export the SLURM_CONF that it prints"
        return check_result(GROUP, "controller", found, warn=todo)
    todo = "ask again when it is up; for a private cluster export the SLURM_CONF that `hsadml cluster up` prints"
    return check_result(GROUP, "controller", fault, fail=todo)


def select_partition(site: SlurmSite, name: str | None) -> Partition | None:
    """Return the partition that is asked for, without a name the default one; None: there is no default.

    Raises:
        UsageError: There is none of that name.
    """
    if name is not None and name not in site.partitions:
        known = ", ".join(site.partitions)
        raise UsageError(
            f"--partition {name}: no such partition; there are: {known}{did_you_mean(name, site.partitions)}"
        )
    return site.partition(name)


def check_slurm(
    site: SlurmSite, partition: Partition | None, stop_seconds: float | None, env: Mapping[str, str] | None = None
) -> Iterator[CheckResult]:
    """Yield what the site's settings mean.

    Args:
        site: The site.
        partition: Where the run would go.
        stop_seconds: How long the run goes on after a notice; None: not known.
        env: Whole environment for Slurm's commands.
    """
    if partition is None:
        todo = "name one: hsadml doctor --partition NAME"
        yield unknown_result(GROUP, "partition", f"no default among {', '.join(site.partitions) or 'none'}", todo)
    else:
        yield check_partition(partition, len(site.partitions))
        yield check_preemption(site, partition, stop_seconds)
    yield from check_requeue_modes(site, partition)
    yield check_requeue_wait(site)
    yield check_min_job_age(site)
    yield _submit_limit(site, env)


def check_partition(partition: Partition, of: int) -> CheckResult:
    """Judge whether jobs start in a partition, and say how long they may run."""
    limit = "no time limit" if partition.max_seconds is None else f"at most {duration(partition.max_seconds)}"
    others = f" (of {of}; another: --partition NAME)" if of > 1 else ""
    found = f"{partition.name}{others}: {partition.nodes} nodes, {partition.cpus} CPUs, {limit}"
    todo = "" if partition.is_up else "it is not up: no job starts there; choose another partition"
    return check_result(GROUP, "partition", found, fail=todo)


def check_preemption(site: SlurmSite, partition: Partition, stop_seconds: float | None) -> CheckResult:
    """Judge whether a run that is preempted has the time to save.

    A preempted job is told at once, is ended after the grace time, and is killed KillWait later.
    """
    name, mode = "preemption", partition.preempt_mode
    if mode == "OFF":
        return check_result(GROUP, name, f"jobs in {partition.name} are not preempted")
    if mode in ("SUSPEND", "GANG"):
        return check_result(GROUP, name, f"jobs in {partition.name} are suspended, not ended")
    signal = "USR2 (preempt_send_user_signal)" if site.user_signal and partition.grace_seconds else "TERM"
    given = partition.grace_seconds + site.kill_wait_seconds
    found = (
        f"{mode}: told by {signal}, {given} s to save "
        f"(GraceTime {partition.grace_seconds} s, KillWait {site.kill_wait_seconds} s)"
    )
    if stop_seconds is None:
        return unknown_result(
            GROUP, name, found, "give --run of a run with a checkpoint to compare with its time to save"
        )
    found += f"; the run needs about {stop_seconds:.1f} s (two steps, two saves)"
    todo = (
        "its last save may not be finished: set checkpoint.every low, as a preemption costs the steps since the "
        "newest checkpoint, or write to a faster file system"
    )
    return check_result(GROUP, name, found, warn=todo if stop_seconds > given / 2 else "")


def check_requeue_modes(site: SlurmSite, partition: Partition | None) -> Iterator[CheckResult]:
    """Yield whether a run comes back by each mode; it is grave only if it can come back by none."""
    name_of = None if partition is None else partition.name
    problems = {mode: requeue_problem(site, mode, name_of) for mode in REQUEUE_MODES}
    stuck = all(problems[mode] for mode in ("chain", "self"))
    for mode, problem in problems.items():
        name = f"--requeue {mode}"
        remark = requeue_warning(site, mode)
        if problem is not None:
            reason, _, todo = problem.removeprefix(f"{name}: ").rpartition("; ")
            yield check_result(GROUP, name, reason, fail=todo if stuck else "", warn=todo)
        elif remark is not None:
            todo = "look at `hsadml status`, not at sacct, for how a run ended"
            yield check_result(GROUP, name, remark.removeprefix(f"{name}: "), warn=todo)
        else:
            yield check_result(GROUP, name, "nothing in the site's settings is against it")


def check_requeue_wait(site: SlurmSite) -> CheckResult:
    """Judge how long a requeued job waits before it may start."""
    wait = site.credential_seconds + 1
    found = f"{wait} s before a requeued job may start (cred_expire {site.credential_seconds} s, and 1)"
    todo = "submit with --requeue chain: a successor that is queued already starts within seconds"
    return check_result(GROUP, "requeue wait", found, warn=todo if wait > LONG_WAIT else "")


def check_min_job_age(site: SlurmSite) -> CheckResult:
    """Judge how long the controller says what became of a job."""
    found = f"{site.min_job_age_seconds} s that the controller knows an ended job (MinJobAge)"
    todo = "a chain may not learn how its predecessor ended, and goes by the run's own records then"
    return check_result(GROUP, "job memory", found, warn=todo if site.min_job_age_seconds < SHORT_MEMORY else "")


def check_submit_limit(limit: int | None) -> CheckResult:
    """Judge how many jobs the user may have at a time."""
    found = "no limit on your jobs" if limit is None else f"{limit} jobs of yours at a time (MaxSubmitJobs)"
    todo = f"a chain needs {CHAIN_JOBS}: submit with --requeue self"
    return check_result(GROUP, "submit limit", found, warn=todo if limit is not None and limit < CHAIN_JOBS else "")


def duration(seconds: int) -> str:
    """Return a time limit in words: ``2 days 12 h``."""
    days, rest = divmod(seconds, 86400)
    hours, rest = divmod(rest, 3600)
    parts = [(days, "days" if days != 1 else "day"), (hours, "h"), (rest // 60, "min")]
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or f"{seconds} s"


def _submit_limit(site: SlurmSite, env: Mapping[str, str] | None) -> CheckResult:
    todo = f"a chain needs {CHAIN_JOBS} jobs at a time; the job of `hsadml doctor --nodes` asks sbatch itself"
    if not site.has_accounting:
        return unknown_result(GROUP, "submit limit", "this site has no accounting database to ask", todo)
    try:
        return check_submit_limit(submit_limit(getpass.getuser(), env))
    except (ClusterError, KeyError, OSError) as fault:
        return unknown_result(GROUP, "submit limit", str(fault), todo)
