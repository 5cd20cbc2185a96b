"""``hsadml submit``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from hsadml_dist.errors import ExitCode, UsageError
from hsadml_dist.slurm import client
from hsadml_dist.slurm.sbatch import JobRequest, validate
from hsadml_dist.slurm.submit import submit as submit_job


def submit(
    recipe: str,
    /,
    *overrides: str,
    nodes: int,
    tasks_per_node: int,
    cpus_per_task: int = 1,
    partition: str | None = None,
    account: str | None = None,
    qos: str | None = None,
    constraint: str | None = None,
    gres: str | None = None,
    time: str | None = None,
    requeue: Literal["self", "none"] = "self",
    signal_lead: int = 30,
    dry_run: bool = False,
    smoke: bool = False,
    run: Path | None = None,
) -> int:
    """Train as a Slurm job; prints the job's id once it is queued.

    A job that is preempted or reaches its time limit saves, puts itself back into the queue and goes on. Submitting
    again into the same run folder goes on as well.

    Args:
        recipe: A YAML file, or the name of one that comes along (see hsadml recipes list).
        overrides: Settings that replace the recipe's, such as train.steps=100.
        nodes: Number of nodes.
        tasks_per_node: Ranks on each node; nodes times this divides train.global_batch.
        cpus_per_task: CPUs of each rank: one, and one for each of data.workers.
        partition: Slurm's partition; the site's default if left out. So with the next five.
        account: The account that pays.
        qos: The quality of service.
        constraint: Features that the nodes must have.
        gres: Resources of each node, for instance gpu:4.
        time: Time limit, for instance 30 (minutes), 12:00:00 or 2-00:00:00.
        requeue: self: a job that was stopped comes back by itself. none: it ends with exit code 85.
        signal_lead: Seconds before its end at which the job is told: time for one checkpoint.
        dry_run: Print the batch script; write nothing and queue nothing.
        smoke: Two steps and a verdict, in a folder of its own, RUN-smoke.
        run: The run folder, new or existing; by default runs/RECIPE-FINGERPRINT. All nodes must see it.
    """
    from hsadml_dist.launch.prepare import planned_run, prepare_run

    for option, value in (("--nodes", nodes), ("--tasks-per-node", tasks_per_node)):
        if value < 1:
            raise UsageError(f"{option} {value}: at least 1")
    run_dir = planned_run(recipe, overrides, run, smoke, nodes * tasks_per_node).resolve()
    asked = JobRequest(
        run_dir=run_dir,
        nodes=nodes,
        tasks_per_node=tasks_per_node,
        cpus_per_task=cpus_per_task,
        python=sys.executable,
        working_dir=Path.cwd(),
        job_name=run_dir.name,
        partition=partition,
        account=account,
        qos=qos,
        constraint=constraint,
        gres=gres,
        time_limit=time,
        requeue=requeue,
        signal_lead_seconds=signal_lead,
    )
    if dry_run:
        print(submit_job(asked, dry_run=True), end="")
        return ExitCode.DONE
    validate(asked)
    client.require()
    prepare_run(recipe, overrides, run, smoke, nodes * tasks_per_node)
    job = submit_job(asked)
    print(f"run folder: {run_dir}", file=sys.stderr)
    print(job)
    return ExitCode.DONE
