"""``hsadml submit``."""

from __future__ import annotations

import sys
from pathlib import Path

from hsadml_dist.errors import ExitCode
from hsadml_dist.slurm.job_records import Backend, RequeueMode


def submit(
    recipe: str,
    /,
    *overrides: str,
    nodes: int,
    tasks_per_node: int,
    profile: str | None = None,
    cpus_per_task: int | None = None,
    partition: str | None = None,
    account: str | None = None,
    qos: str | None = None,
    constraint: str | None = None,
    gres: str | None = None,
    mem: str | None = None,
    time: str | None = None,
    requeue: RequeueMode | None = None,
    signal_lead: int | None = None,
    backend: Backend = "sbatch",
    folds: str = "",
    seeds: str = "",
    dry_run: bool = False,
    test_only: bool = False,
    smoke: bool = False,
    run: Path | None = None,
) -> int:
    """Train as a Slurm job; prints the job's id once it is queued.

    A job that is preempted or reaches its time limit saves, comes back and goes on. Submitting again into the same run
    folder goes on as well.

    Args:
        recipe: A YAML file, or the name of one that comes along (see hsadml recipes list).
        overrides: Settings that replace the recipe's, such as train.steps=100.
        nodes: Number of nodes.
        tasks_per_node: Ranks on each node; nodes times this divides train.global_batch.
        profile: What your cluster needs of every job (see hsadml profile list); the options below count before it.
        cpus_per_task: CPUs of each rank: one, and one for each of data.workers. Default 1.
        partition: Slurm's partition; the site's default if left out. So with the next six.
        account: The account that pays.
        qos: The quality of service.
        constraint: Features that the nodes must have.
        gres: Resources of each node, for instance gpu:4.
        mem: Memory of each node, for instance 64G.
        time: Time limit, for instance 30 (minutes), 12:00:00 or 2-00:00:00.
        requeue: self: a job that was stopped puts itself back into the queue. chain: a successor waits from the start
            on and goes on at once; it needs sbatch on the nodes. none: it ends with exit code 85. Default self.
        signal_lead: Seconds before its end at which the job is told: time for one checkpoint. Default 30.
        backend: Who writes the batch script: sbatch (a script of ours) or submitit.
        folds: Folds to hold out, such as 0-4: an array of jobs, each with a run folder of its own, RUN/fold-0.
        seeds: Seeds, such as 0,1,2; with folds, every pair: RUN/fold-0-seed-1.
        dry_run: Print the batch script; write nothing and queue nothing.
        test_only: Ask Slurm whether and when the job could start; write nothing and queue nothing.
        smoke: Two steps and a verdict, in a folder of its own, RUN-smoke.
        run: The run folder, new or existing; by default runs/RECIPE-FINGERPRINT. All nodes must see it.
    """
    from hsadml_dist.jobs.submission import JobOptions, Submission, numbers, plan_job, submit_training
    from hsadml_dist.slurm.sbatch import render
    from hsadml_dist.slurm.submit import check_request

    asked = Submission(
        recipe=recipe,
        overrides=overrides,
        nodes=nodes,
        tasks_per_node=tasks_per_node,
        run=run,
        smoke=smoke,
        folds=numbers("--folds", folds) if folds else (),
        seeds=numbers("--seeds", seeds) if seeds else (),
        profile=profile,
        backend=backend,
        options=JobOptions(
            partition=partition,
            account=account,
            qos=qos,
            constraint=constraint,
            gres=gres,
            mem=mem,
            time=time,
            cpus_per_task=cpus_per_task,
            requeue=requeue,
            signal_lead=signal_lead,
        ),
    )
    if dry_run:
        print(render(plan_job(asked)), end="")
    elif test_only:
        print(check_request(plan_job(asked)))
    else:
        job = submit_training(asked)
        print(f"run folder: {plan_job(asked).run_dir}", file=sys.stderr)
        print(job)
    return ExitCode.SUCCESS
