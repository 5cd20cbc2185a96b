"""Submission through submitit, for tools that expect its jobs. The only file that imports submitit.

submitit writes the batch script and starts the ranks; the parts that decide whether a job may train and whether it is
requeued are those of :mod:`hsadml_dist.slurm.sbatch`, before and after srun. submitit 1.5.4 bypasses SIGTERM, so plain
preemption never calls its ``checkpoint()``, and it takes the last fifth of a time limit for a time-out. The ranks
therefore install their own handlers after submitit's, and submitit's requeueing is not used.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from hsadml_dist.errors import ClusterError, ConfigError, Fault
from hsadml_dist.slurm.job_records import SUBMITIT_FOLDER
from hsadml_dist.slurm.sbatch import TEXT_OPTIONS, JobRequest, render_setup_and_teardown
from hsadml_dist.slurm.submit import record_submission, run_folders_of

Work = Callable[[str], None]
"""Function that a rank runs with the path of its run folder; at the top of a module, as submitit pickles it by name."""


def submit_by_submitit(request: JobRequest, work: Work) -> str:
    """Queue a run, or an array of runs, through submitit and return the job's id.

    Raises:
        ConfigError: The request is invalid, or submitit cannot do it; nothing was queued.
        ClusterError: Slurm or submitit refused the job.
    """
    _refuse_unsupported(request)
    executor = _executor(request)
    runs = [str(run.path) for run in run_folders_of(request)]
    try:
        jobs = executor.map_array(work, runs) if request.elements else [executor.submit(work, runs[0])]
    except (RuntimeError, OSError) as fault:
        raise ClusterError(f"submitit failed: {' '.join(str(fault).split())}") from fault
    job = str(jobs[0].job_id).partition("_")[0]
    record_submission(request, job, "submitit")
    return job


def _refuse_unsupported(request: JobRequest) -> None:
    faults = []
    if request.requeue == "chain":
        faults.append(("requeue", "is 'chain'; allowed with --backend submitit: self, none"))
    if request.launcher or request.srun_options:
        faults.append(("container", "is not supported with --backend submitit; allowed: none"))
    if faults:
        raise ConfigError(Fault(where="job", key=key, problem=problem) for key, problem in faults)


def _executor(request: JobRequest) -> Any:
    import submitit

    before, after = render_setup_and_teardown(request)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        executor = submitit.SlurmExecutor(folder=str(request.run_dir / SUBMITIT_FOLDER), python=request.python)
        executor.update_parameters(
            job_name=request.job_name,
            nodes=request.nodes,
            ntasks_per_node=request.tasks_per_node,
            cpus_per_task=request.cpus_per_task,
            **{name: getattr(request, name) for name in TEXT_OPTIONS if name != "mem"},
            time=None,
            wckey=None,
            signal_delay_s=request.signal_lead_seconds,
            stderr_to_stdout=True,
            # bash survives a trapped signal and continues after srun; an ignored one would be ignored by srun as well.
            setup=[before, "trap : TERM USR2"],
            teardown=["code=$?", after],
            srun_args=[f"--cpus-per-task={request.cpus_per_task}", "--kill-on-bad-exit=1", "--wait=300"],
            additional_parameters=_additional_options(request),
        )
    return executor


def _additional_options(request: JobRequest) -> dict[str, Any]:
    """Return options of sbatch that submitit has no parameter for."""
    requeue = "requeue" if request.requeue == "self" else "no-requeue"
    options = {"chdir": str(request.working_dir), requeue: True, "mem": request.mem, "time": request.time_limit}
    for option in request.options:
        name, _, value = option.removeprefix("--").partition("=")
        options[name] = value or True
    return {name: value for name, value in options.items() if value is not None}
