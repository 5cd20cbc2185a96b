"""Submission: write a run's batch script and hand it to Slurm."""

from __future__ import annotations

from pathlib import Path

from hsadml_dist.errors import ClusterError
from hsadml_dist.run.folder import replace_text
from hsadml_dist.slurm import client
from hsadml_dist.slurm.sbatch import JobRequest, render

SCRIPT_NAME = "job.sbatch"


def submit(request: JobRequest, dry_run: bool = False) -> str:
    """Queue a run and return the job's id; a dry run returns the script and touches nothing.

    The script stays in the run folder as ``job.sbatch``: `sbatch` of that file goes on with the run.

    Raises:
        ConfigError: The request is wrong; nothing was queued.
        ClusterError: The run folder is missing, or Slurm is absent, does not answer, or refused the job.
    """
    text = render(request)
    if dry_run:
        return text
    return client.sbatch(_write(request.run_dir, text))


def _write(run_dir: Path, text: str) -> Path:
    if not run_dir.is_dir():
        raise ClusterError(f"run_dir is {run_dir}: there is no such folder; Slurm could not write the job's output")
    script = run_dir / SCRIPT_NAME
    replace_text(script, text)
    return script
