"""Submit a run: check the request against the cluster, write the batch script, queue it, and explain a refusal.

How requeueing depends on the site was observed on real clusters (Slurm 22.05):

* ``RequeueExit`` requeues every batch job that ends with one of its codes, also one submitted with ``--no-requeue``.
  The job script detects this and exits with 0.
* ``RequeueExitHold`` leaves such a job in the queue, held, until it is released.
* ``JobRequeue=0`` is only a default: a job submitted with ``--requeue`` may be requeued all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hsadml_dist.atomic import write_text
from hsadml_dist.errors import ClusterError, ExitCode, RunLockedError, did_you_mean
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.slurm import client
from hsadml_dist.slurm.job_records import Backend, read_job_records, record_job
from hsadml_dist.slurm.sbatch import JobRequest, render
from hsadml_dist.slurm.site import SlurmSite, try_query_site


def check_request(request: JobRequest) -> str:
    """Check whether Slurm would accept a job; write and queue nothing.

    Returns:
        Slurm's estimate of when and where the job would start, as one line.

    Raises:
        ConfigError: The request is invalid.
        ClusterError: Slurm is not installed, does not answer, or would refuse the job.
        RunLockedError: A job of the run is queued or running.
    """
    text = render(request)
    client.require_slurm()
    site = try_query_site()
    problem = None if site is None else requeue_problem(site, request.requeue, request.partition)
    if problem is not None:
        raise ClusterError(str(problem))
    _refuse_second_job(request)
    try:
        return client.sbatch_test(text)
    except ClusterError as refusal:
        raise explain_refusal(request, site, refusal) from refusal


def submit(request: JobRequest) -> str:
    """Queue a run, or an array of runs, and return the job id.

    The script stays in the run folder as ``job.sbatch``: `sbatch` of that file resumes the run.

    Raises:
        ConfigError: The request is invalid; nothing was queued.
        ClusterError: The run folder is missing, or Slurm is not installed, does not answer, or refused the job.
    """
    text = render(request)
    if not request.run_dir.is_dir():
        raise ClusterError(f"run_dir is {request.run_dir}: no such folder; Slurm could not write the output of the job")
    write_text(request.script, text)
    job = client.sbatch(request.script)
    record_submission(request, job)
    return job


def record_submission(request: JobRequest, job: str, backend: Backend = "sbatch") -> None:
    """Record the job id in each run folder of a request."""
    for index, run in enumerate(run_folders_of(request)):
        record_job(run, f"{job}_{index}" if request.elements else job, request.requeue, backend)


def run_folders_of(request: JobRequest) -> Iterator[RunFolder]:
    """Yield the run folders that a request trains."""
    yield from map(RunFolder, request.elements or (request.run_dir,))


@dataclass(frozen=True)
class RequeueProblem:
    """The setting of a site that prevents a requeue mode, and what to do."""

    mode: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"--requeue {self.mode}: {self.reason}; {self.remedy}"


def requeue_problem(site: SlurmSite, mode: str, partition: str | None = None) -> RequeueProblem | None:
    """Return why a mode (``chain``, ``self`` or ``none``) cannot work in a partition or the default one, or None."""
    option = _option_with(site, ExitCode.SUCCESS)
    if option is not None:
        reason = f"this site requeues jobs that exit with 0 ({option}), so a finished run would start again and again"
        return RequeueProblem(mode, reason, "ask the site to remove 0")
    option = _option_with(site, ExitCode.STOPPED)
    if mode == "none" and option is not None:
        reason = (
            f"this site requeues jobs that exit with {ExitCode.STOPPED:d}, as a stopped run does ({option}), "
            "so it would not end with that code"
        )
        return RequeueProblem(mode, reason, "use chain or self")
    known = site.partition(partition)
    if mode == "self" and known is not None and known.preempt_mode == "CANCEL" and known.grace_seconds == 0:
        reason = (
            f"jobs that are preempted in partition {known.name} are cancelled at once and not requeued "
            "(PreemptMode=CANCEL, GraceTime=0)"
        )
        return RequeueProblem(mode, reason, "use chain")
    return None


def requeue_warning(site: SlurmSite) -> str | None:
    """Return in one line what is unusual about requeueing at a site, although it works; None if nothing is."""
    failures = {ExitCode.USER_ERROR, ExitCode.USAGE_ERROR, ExitCode.INTERNAL_ERROR, ExitCode.RUN_LOCKED}
    requeued = site.requeue_exit & failures
    if not requeued:
        return None
    return (
        f"this site requeues jobs that exit with {_listed(requeued)} "
        f"(RequeueExit={_listed(site.requeue_exit)}): a failed job starts once more and exits with 0, "
        f"so Slurm reports it as COMPLETED"
    )


def explain_refusal(request: JobRequest, site: SlurmSite | None, refusal: ClusterError) -> ClusterError:
    """Return sbatch's refusal with the option of the request that caused it, where that can be determined."""
    reason = None if site is None else next(_refusal_reasons(request, site, str(refusal)), None)
    return refusal if reason is None else ClusterError(f"{reason} ({refusal})")


def _refuse_second_job(request: JobRequest) -> None:
    for run in run_folders_of(request):
        job = next((one.job for one in reversed(read_job_records(run)) if client.job_is_known(one.job)), None)
        if job is not None:
            remedy = f"hsadml cancel {run.path}, or wait for its end"
            raise RunLockedError(f"{run.path}: job {job} of this run is queued or running; {remedy}")


def _option_with(site: SlurmSite, code: int) -> str | None:
    """Return the option of slurm.conf that requeues jobs that exit with ``code``, or None."""
    for option, codes in (("RequeueExit", site.requeue_exit), ("RequeueExitHold", site.requeue_exit_hold)):
        if code in codes:
            return f"{option}={_listed(codes)}"
    return None


def _listed(codes: Iterable[int]) -> str:
    return ",".join(str(int(code)) for code in sorted(codes))


def _refusal_reasons(request: JobRequest, site: SlurmSite, message: str) -> Iterator[str]:
    name, names = request.partition, list(site.partitions)
    if name is not None and names and name not in names:
        allowed = f"allowed: {', '.join(names)}{did_you_mean(name, names)}"
        yield f"--partition {name}: no such partition on this cluster; {allowed}"
    partition = site.partition(name)
    if partition is not None and request.nodes > partition.nodes:
        yield f"--nodes {request.nodes}: partition {partition.name} has {partition.nodes}"
    if "account" in message.lower():
        given = f"--account {request.account}: may" if request.account else "no --account is given; without one you may"
        where = partition.name if partition else name
        yield f"{given} not submit to partition {where}; `sacctmgr show user $USER -s` lists your accounts"
