"""Checks of Slurm's settings: how a run is preempted, how long it has to save, and how it is requeued."""

from __future__ import annotations

import getpass
import os
import shutil
from collections.abc import Iterator, Mapping

from hsadml_dist.errors import ClusterError, UsageError, did_you_mean
from hsadml_dist.launch.doctor import CheckResult, check_result, unknown_result
from hsadml_dist.slurm.job_records import REQUEUE_MODES
from hsadml_dist.slurm.site import Partition, SlurmSite, query_site, submit_limit
from hsadml_dist.slurm.submit import requeue_problem, requeue_warning

GROUP = "slurm"
PROGRAMS = ("sbatch", "srun", "scontrol", "squeue", "scancel")
NO_CONF_ERROR = "configuration source"
"""Part of the message of Slurm's own programs where there is no slurm.conf."""
LONG_WAIT_SECONDS = 15
MIN_JOB_AGE_SECONDS = 30
CHAIN_JOBS = 2
"""Jobs that a chain has in the queue: the running one and its successor."""


def find_site(env: Mapping[str, str] | None = None) -> tuple[SlurmSite | None, list[CheckResult]]:
    """Query the settings of the site.

    Args:
        env: Whole environment for Slurm's commands; None means this process's own.

    Returns:
        The site, None if Slurm is missing or does not answer, and the results of these two checks.
    """
    environ = os.environ if env is None else env
    missing = [name for name in PROGRAMS if shutil.which(name, path=environ.get("PATH")) is None]
    if len(missing) == len(PROGRAMS):
        found = "none on this machine; `hsadml train` runs without Slurm"
        return None, [check_result(GROUP, "programs", found)]
    todo = f"put {', '.join(missing)} on PATH (module load slurm?): submit, cancel and status need them"
    present = ", ".join(name for name in PROGRAMS if name not in missing)
    programs = check_result(GROUP, "programs", present, fail=todo if missing else "")
    try:
        site = query_site(env)
    except ClusterError as fault:
        return None, [programs, check_controller_error(str(fault), conf_is_set=bool(environ.get("SLURM_CONF")))]
    return site, [programs, check_result(GROUP, "controller", f"{site.cluster} answers, Slurm {site.version}")]


def check_controller_error(fault: str, *, conf_is_set: bool) -> CheckResult:
    """Return a failure, or a warning on a machine with Slurm's programs that belongs to no cluster."""
    if NO_CONF_ERROR in fault and not conf_is_set:
        found = "Slurm's programs find no cluster (no slurm.conf); `hsadml train` runs without one"
        todo = "to use Slurm, log in to a login node, or run `hsadml cluster up` and export the SLURM_CONF it prints"
        return check_result(GROUP, "controller", found, warn=todo)
    todo = "try again when it is up; for a private cluster export the SLURM_CONF that `hsadml cluster up` prints"
    return check_result(GROUP, "controller", fault, fail=todo)


def select_partition(site: SlurmSite, name: str | None) -> Partition | None:
    """Return the named partition, or the default one without a name; None if there is no default.

    Raises:
        UsageError: There is no partition of that name.
    """
    if name is not None and name not in site.partitions:
        known = ", ".join(site.partitions)
        raise UsageError(
            f"--partition {name}: no such partition; allowed: {known}{did_you_mean(name, site.partitions)}"
        )
    return site.partition(name)


def check_slurm(
    site: SlurmSite, partition: Partition | None, stop_seconds: float | None, env: Mapping[str, str] | None = None
) -> Iterator[CheckResult]:
    """Yield the results for the site's settings.

    Args:
        partition: Partition that the run would use.
        stop_seconds: Time that the run needs to stop and save; None if unknown.
        env: Whole environment for Slurm's commands; None means this process's own.
    """
    if partition is None:
        todo = "name one: hsadml doctor --partition NAME"
        names = ", ".join(site.partitions) or "none"
        yield unknown_result(GROUP, "partition", f"no default partition; there are: {names}", todo)
    else:
        yield check_partition(partition, len(site.partitions))
        yield check_preemption(site, partition, stop_seconds)
    yield from check_requeue_modes(site, partition)
    yield check_requeue_wait(site)
    yield check_min_job_age(site)
    yield _query_submit_limit(site, env)


def check_partition(partition: Partition, count: int) -> CheckResult:
    """Check whether jobs start in a partition of ``count``, and report its time limit."""
    limit = "no time limit" if partition.max_seconds is None else f"at most {format_duration(partition.max_seconds)}"
    others = f" (of {count}; another: --partition NAME)" if count > 1 else ""
    found = f"{partition.name}{others}: {partition.nodes} nodes, {partition.cpus} CPUs, {limit}"
    todo = "" if partition.is_up else "it is not up, so no job starts there; choose another partition"
    return check_result(GROUP, "partition", found, fail=todo)


def check_preemption(site: SlurmSite, partition: Partition, stop_seconds: float | None) -> CheckResult:
    """Check whether a preempted run has enough time to save.

    Slurm signals a preempted job at once, ends it after GraceTime and kills it KillWait later.
    """
    name, mode = "preemption", partition.preempt_mode
    if mode == "OFF":
        return check_result(GROUP, name, f"jobs in {partition.name} are not preempted")
    if mode in ("SUSPEND", "GANG"):
        return check_result(GROUP, name, f"jobs in {partition.name} are suspended, not ended")
    signal = "USR2 (preempt_send_user_signal)" if site.user_signal and partition.grace_seconds else "TERM"
    available = partition.grace_seconds + site.kill_wait_seconds
    found = (
        f"{mode}: {signal}, then {available} s to save "
        f"(GraceTime {partition.grace_seconds} s, KillWait {site.kill_wait_seconds} s)"
    )
    if stop_seconds is None:
        todo = "name a run with a checkpoint by --run to compare with its save time"
        return unknown_result(GROUP, name, found, todo)
    found += f"; the run needs about {stop_seconds:.1f} s (two steps, two saves)"
    todo = (
        "the last save may not finish: lower checkpoint.every, since a preemption then loses the steps after the "
        "newest checkpoint, or use a faster file system"
    )
    return check_result(GROUP, name, found, warn=todo if stop_seconds > available / 2 else "")


def check_requeue_modes(site: SlurmSite, partition: Partition | None) -> Iterator[CheckResult]:
    """Yield whether a run resumes by each requeue mode. It is a failure only if no mode works."""
    partition_name = None if partition is None else partition.name
    problems = {mode: requeue_problem(site, mode, partition_name) for mode in REQUEUE_MODES}
    none_works = all(problems[mode] is not None for mode in ("chain", "self"))
    warning = requeue_warning(site)
    for mode, problem in problems.items():
        name = f"--requeue {mode}"
        if problem is not None:
            remedy = problem.remedy
            yield check_result(GROUP, name, problem.reason, fail=remedy if none_works else "", warn=remedy)
        elif warning is not None:
            todo = "see `hsadml status`, not sacct, for how a run ended"
            yield check_result(GROUP, name, warning, warn=todo)
        else:
            yield check_result(GROUP, name, "works with the site's settings")


def check_requeue_wait(site: SlurmSite) -> CheckResult:
    """Check how long a requeued job waits before it may start."""
    wait = site.credential_seconds + 1
    found = f"{wait} s before a requeued job may start (cred_expire {site.credential_seconds} s, plus 1 s)"
    todo = "submit with --requeue chain: a successor that is queued already starts within seconds"
    return check_result(GROUP, "requeue wait", found, warn=todo if wait > LONG_WAIT_SECONDS else "")


def check_min_job_age(site: SlurmSite) -> CheckResult:
    """Check how long the controller remembers how a job ended."""
    age = site.min_job_age_seconds
    found = f"{age} s for which the controller remembers an ended job (MinJobAge)"
    todo = "a chain may not learn how its predecessor ended, and then relies on the run's own records"
    return check_result(GROUP, "job memory", found, warn=todo if age < MIN_JOB_AGE_SECONDS else "")


def check_submit_limit(limit: int | None) -> CheckResult:
    """Check how many jobs the user may have at a time."""
    found = "no limit on your jobs" if limit is None else f"at most {limit} of your jobs at a time (MaxSubmitJobs)"
    todo = f"a chain needs {CHAIN_JOBS}: submit with --requeue self"
    return check_result(GROUP, "submit limit", found, warn=todo if limit is not None and limit < CHAIN_JOBS else "")


def format_duration(seconds: int) -> str:
    """Return a duration such as ``2 days 12 h``."""
    days, rest = divmod(seconds, 86400)
    hours, rest = divmod(rest, 3600)
    parts = [(days, "days" if days != 1 else "day"), (hours, "h"), (rest // 60, "min")]
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or f"{seconds} s"


def _query_submit_limit(site: SlurmSite, env: Mapping[str, str] | None) -> CheckResult:
    todo = f"a chain needs {CHAIN_JOBS} jobs at a time; `hsadml doctor --nodes N` tests this with sbatch"
    if not site.has_accounting:
        return unknown_result(GROUP, "submit limit", "this site has no accounting database", todo)
    try:
        return check_submit_limit(submit_limit(getpass.getuser(), env))
    except (ClusterError, KeyError, OSError) as fault:
        return unknown_result(GROUP, "submit limit", str(fault), todo)
