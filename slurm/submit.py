"""Submit a run: check the request, write its batch script, queue it, and explain a refusal."""

from __future__ import annotations

from collections.abc import Iterator

from hsadml_dist.errors import ClusterError, RunLockedError, did_you_mean
from hsadml_dist.run.folder import RunFolder, replace_text
from hsadml_dist.slurm import client
from hsadml_dist.slurm.job_records import Backend, read_job_records, record_job
from hsadml_dist.slurm.sbatch import JobRequest, render
from hsadml_dist.slurm.site import SlurmSite, requeue_problem, try_query_site


def explain_refusal(request: JobRequest, site: SlurmSite | None, refusal: ClusterError) -> ClusterError:
    """Return Slurm's refusal as one line that begins with what of the request cannot be, where that shows.

    Args:
        request: What was asked for.
        site: The controller's settings; None: it told none.
        refusal: What sbatch said.
    """
    reason = None if site is None else next(_reasons(request, site, str(refusal)), None)
    return refusal if reason is None else ClusterError(f"{reason} ({refusal})")


def _reasons(request: JobRequest, site: SlurmSite, said: str) -> Iterator[str]:
    name, names = request.partition, list(site.partitions)
    if name is not None and names and name not in names:
        known = ", ".join(names)
        yield f"--partition {name}: this cluster has no such partition{did_you_mean(name, names)}; its partitions: {known}"
    place = site.partition(name)
    if place is not None and request.nodes > place.nodes:
        yield f"--nodes {request.nodes}: partition {place.name} has {place.nodes}"
    if "account" in said.lower():
        given = f"--account {request.account}: may" if request.account else "no --account is given; without one you may"
        where = place.name if place else name
        yield f"{given} not submit to partition {where}; `sacctmgr show user $USER -s` lists yours"


def check_request(request: JobRequest) -> str:
    """Ask Slurm whether it would take a job; nothing is written or queued.

    Returns:
        Slurm's estimate of when and where it would start, as one line.

    Raises:
        ConfigError: The request is wrong.
        ClusterError: Slurm is absent, does not answer, or would refuse the job.
        RunLockedError: A job of the run is queued or running.
    """
    text = render(request)
    client.require_slurm()
    site = try_query_site()
    problem = None if site is None else requeue_problem(site, request.requeue, request.partition)
    if problem is not None:
        raise ClusterError(problem)
    for run in run_folders_of(request):
        _refuse_second(run)
    try:
        return client.sbatch_test(text)
    except ClusterError as refusal:
        raise explain_refusal(request, site, refusal) from refusal


def submit(request: JobRequest) -> str:
    """Queue a run, or an array of runs, and return the job's id.

    The script stays in the run folder as ``job.sbatch``: `sbatch` of that file goes on with the run.

    Raises:
        ConfigError: The request is wrong; nothing was queued.
        ClusterError: The run folder is missing, or Slurm is absent, does not answer, or refused the job.
    """
    text = render(request)
    if not request.run_dir.is_dir():
        raise ClusterError(
            f"run_dir is {request.run_dir}: there is no such folder; Slurm could not write the job's output"
        )
    replace_text(request.script, text)
    job = client.sbatch(request.script)
    record_submission(request, job)
    return job


def record_submission(request: JobRequest, job: str, backend: Backend = "sbatch") -> None:
    """Write down, in each run's folder, by which name Slurm knows its job."""
    for index, run in enumerate(run_folders_of(request)):
        record_job(run, f"{job}_{index}" if request.elements else job, request.requeue, backend)


def run_folders_of(request: JobRequest) -> Iterator[RunFolder]:
    """Yield the run folders that a request trains."""
    yield from map(RunFolder, request.elements or (request.run_dir,))


def _refuse_second(run: RunFolder) -> None:
    for row in reversed(read_job_records(run)):
        if client.job_is_known(row.job):
            raise RunLockedError(
                f"{run.path}: job {row.job} of this run is queued or running; hsadml cancel {run.path}, or let it end"
            )
