"""``hsadml train``, ``submit`` and ``recipes``: train a recipe on this machine or as a Slurm job."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from hsadml_dist.config.yaml_loader import print_config as format_config
from hsadml_dist.errors import ExitCode, UsageError
from hsadml_dist.jobs.prepare import check_run, find_recipe, prepare_run, shipped_recipes
from hsadml_dist.jobs.start_check import check_start
from hsadml_dist.jobs.submission import JobOptions
from hsadml_dist.json_parsing import parse_json_object
from hsadml_dist.launch.cli.terminal import display_path, echo, echo_file
from hsadml_dist.launch.local import run_ranks
from hsadml_dist.preemption.signals import STOP_AFTER
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.history import merged_events, merged_metrics
from hsadml_dist.slurm.job_records import Backend

recipes_app = App(name="recipes", help="List, show and copy the shipped recipes.")


def train(
    recipe: str,
    /,
    *overrides: str,
    nproc: int = 1,
    run: Path | None = None,
    print_config: bool = False,
    smoke: bool = False,
) -> int:
    """Train on this machine. If the run folder has a checkpoint, resume from the newest one that verifies.

    Exit codes: 0 finished, 85 stopped and resumable (repeat the command to resume), 1 a user error, 75 another process
    is training this run, 70 an internal error.

    Args:
        recipe: A YAML file, or the name of a shipped recipe (see hsadml recipes list).
        overrides: Settings that override the recipe's, such as train.steps=100.
        nproc: Number of processes (ranks); it must divide train.global_batch.
        run: The run folder, new or existing; by default runs/RECIPE-FINGERPRINT.
        print_config: Print all settings and where they come from, without training.
        smoke: Test the recipe: two steps, with a stop, a checkpoint, a resume and an evaluation, in RUN-smoke.
    """
    if nproc < 1:
        raise UsageError(f"--nproc {nproc}: at least 1")
    if print_config:
        loaded, _ = check_run(recipe, overrides, run, smoke, nproc, need_shards=False)
        check_start(loaded)
        echo_file(format_config(loaded))
        return ExitCode.SUCCESS
    folder = prepare_run(recipe, overrides, run, smoke, nproc)
    echo(f"run folder: {folder}")
    if smoke:
        return smoke_test(folder, nproc)
    result = RunFolder(folder).result
    before = _file_identity(result)
    code = run_ranks(folder, nproc)
    if code == ExitCode.SUCCESS and _file_identity(result) not in (None, before):
        _echo_result(folder)
    if code == ExitCode.STOPPED:
        echo("stopped; repeat the command to resume")
    return code


def submit(
    recipe: str,
    /,
    *overrides: str,
    nodes: int,
    tasks_per_node: int,
    profile: str | None = None,
    options: Annotated[JobOptions | None, Parameter(name="*")] = None,
    backend: Backend = "sbatch",
    folds: str = "",
    seeds: str = "",
    dry_run: bool = False,
    test_only: bool = False,
    parsable: bool = False,
    smoke: bool = False,
    run: Path | None = None,
) -> int:
    """Train as a Slurm job, and print the job id once the job is queued.

    A job that is preempted or reaches its time limit saves a checkpoint, is queued again and resumes. Submitting again
    with the same run folder also resumes.

    Args:
        recipe: A YAML file, or the name of a shipped recipe (see hsadml recipes list).
        overrides: Settings that override the recipe's, such as train.steps=100.
        nodes: Number of nodes.
        tasks_per_node: Ranks on each node; nodes times this number must divide train.global_batch.
        profile: Saved options of your cluster (see hsadml profile list); the options below override them.
        options: Options that override the profile.
        backend: Writer of the batch script: sbatch (this package) or submitit.
        folds: Folds to hold out, such as 0-4: a job array with one run folder for each, RUN/fold-0.
        seeds: Seeds, such as 0,1,2; together with folds every pair: RUN/fold-0-seed-1.
        dry_run: Print the batch script; write and queue nothing.
        test_only: Ask Slurm whether and when the job could start; write and queue nothing.
        parsable: Print nothing but the job id.
        smoke: Test the recipe: two steps and an evaluation, in RUN-smoke.
        run: The run folder, new or existing; by default runs/RECIPE-FINGERPRINT. All nodes must see it.
    """
    from hsadml_dist.jobs.submission import Submission, parse_numbers, plan_job, submit_training
    from hsadml_dist.slurm.sbatch import render
    from hsadml_dist.slurm.submit import check_request

    submission = Submission(
        recipe=recipe,
        overrides=overrides,
        nodes=nodes,
        tasks_per_node=tasks_per_node,
        run=run,
        smoke=smoke,
        folds=parse_numbers("--folds", folds) if folds else (),
        seeds=parse_numbers("--seeds", seeds) if seeds else (),
        profile=profile,
        backend=backend,
        options=options or JobOptions(),
    )
    request = plan_job(submission)
    if dry_run:
        echo_file(render(request))
    elif test_only:
        echo(*check_request(request).split("\n"))
    else:
        job = submit_training(submission, request)
        run_dir = display_path(request.run_dir)
        echo(f"run folder: {run_dir}", error=True)
        echo(job if parsable else f"Submitted job {job}")
        if not parsable:
            echo(f"  hsadml watch {run_dir}", f"  hsadml logs {run_dir} -f", error=True)
    return ExitCode.SUCCESS


@recipes_app.command(name="list")
def list_recipes() -> None:
    """List the shipped recipes, each with its first line."""
    for name, path in shipped_recipes().items():
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        echo(f"{name:<12} {first.removeprefix('#').strip()}")


@recipes_app.command(name="show")
def show_recipe(name: str, /) -> None:
    """Print a recipe.

    Args:
        name: The recipe.
    """
    echo_file(find_recipe(name).read_text(encoding="utf-8"))


@recipes_app.command(name="copy")
def copy_recipe(name: str, /, *, to: Path | None = None) -> None:
    """Copy a recipe to a file that you can edit.

    Args:
        name: The recipe.
        to: The file to write, which must not exist; by default NAME.yaml in the current folder.
    """
    target = to or Path(f"{name}.yaml")
    text = find_recipe(name).read_text(encoding="utf-8")
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as fault:
        raise UsageError(f"--to {target}: exists already; name another file") from fault
    except OSError as fault:
        raise UsageError(f"--to {target}: cannot be written: {fault.strerror}") from fault
    echo(f"wrote {target}")


def smoke_test(folder: Path, nproc: int) -> int:
    """Train one step, stop, resume to the end and evaluate; return 0 if all of it worked."""
    echo("smoke: training one step, then stopping")
    code = run_ranks(folder, nproc, environ={**os.environ, STOP_AFTER: "1"})
    if code != ExitCode.STOPPED:
        return _smoke_failed(f"the stop ended with exit code {code}", code)
    echo("smoke: stopped and saved; resuming")
    code = run_ranks(folder, nproc)
    if code != ExitCode.SUCCESS:
        return _smoke_failed(f"the resume ended with exit code {code}", code)
    steps = [(row["step"], row["attempt"]) for row in merged_metrics(folder)]
    if steps != [(1, 1), (2, 2)]:
        return _smoke_failed(f"the second start did not resume after step 1: (step, attempt) {steps}", code)
    if any(row["event"] == "evaluation_refused" for row in merged_events(folder)):
        return _smoke_failed("the evaluation was refused", ExitCode.USER_ERROR)
    if not RunFolder(folder).result.exists():
        return _smoke_failed("no evaluation result", code)
    echo("smoke: passed")
    return code


def _echo_result(folder: Path) -> None:
    """Print what ``hsadml evaluate`` prints."""
    from hsadml_dist.launch.cli.cmd_evaluate import format_result

    run = RunFolder(folder)
    echo(
        *format_result(folder, parse_json_object(run.result.read_bytes()), run.report if run.report.is_file() else None)
    )


def _file_identity(path: Path) -> tuple[int, int] | None:
    """Return inode and modification time of a file, which change when it is written; None if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _smoke_failed(problem: str, code: int) -> int:
    echo(f"smoke: failed: {problem}")
    return code or ExitCode.INTERNAL_ERROR
