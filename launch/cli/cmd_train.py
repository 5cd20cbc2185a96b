"""``hsadml train``."""

from __future__ import annotations

import os
from pathlib import Path

from hsadml_dist.config.yaml_loader import print_config as as_text
from hsadml_dist.errors import ExitCode, UsageError
from hsadml_dist.jobs.prepare import prepare_run, resolve_recipe
from hsadml_dist.launch.local import run_ranks
from hsadml_dist.preemption.signals import STOP_AFTER
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.history import merged_metrics


def train(
    recipe: str,
    /,
    *overrides: str,
    nproc: int = 1,
    run: Path | None = None,
    print_config: bool = False,
    smoke: bool = False,
) -> int:
    """Train on this machine; goes on from the run folder's newest good checkpoint.

    Exit codes: 0 done, 85 stopped and resumable (the same command goes on), 1 an error of yours, 75 the run is being
    trained by another process, 70 a defect.

    Args:
        recipe: A YAML file, or the name of one that comes along (see hsadml recipes list).
        overrides: Settings that replace the recipe's, such as train.steps=100.
        nproc: Number of processes, the ranks; it divides train.global_batch.
        run: The run folder, new or existing; by default runs/RECIPE-FINGERPRINT.
        print_config: Print every setting and where it comes from, and train nothing.
        smoke: Two steps, a stop, a save, a resume and a verdict, in a folder of its own, RUN-smoke.
    """
    if nproc < 1:
        raise UsageError(f"--nproc {nproc}: at least 1")
    if print_config:
        print(as_text(resolve_recipe(recipe, overrides, smoke, nproc)), end="")
        return ExitCode.SUCCESS
    folder = prepare_run(recipe, overrides, run, smoke, nproc)
    print(f"run folder: {folder}", flush=True)
    if smoke:
        return smoke_test(folder, nproc)
    code = run_ranks(folder, nproc)
    if code == ExitCode.SUCCESS and RunFolder(folder).report.exists():
        print(f"report: {RunFolder(folder).report}")
    if code == ExitCode.STOPPED:
        print("stopped; the same command goes on")
    return code


def smoke_test(folder: Path, nproc: int) -> int:
    """Train one step, stop, go on to the end and judge; returns 0 if all of it worked."""
    print("smoke: the first step, then a stop", flush=True)
    code = run_ranks(folder, nproc, environ={**os.environ, STOP_AFTER: "1"})
    if code != ExitCode.STOPPED:
        return _failed(f"the stop ended with exit code {code}", code)
    print("smoke: stopped and saved; going on", flush=True)
    code = run_ranks(folder, nproc)
    if code != ExitCode.SUCCESS:
        return _failed(f"the resume ended with exit code {code}", code)
    done = [(row["step"], row["attempt"]) for row in merged_metrics(folder)]
    if done != [(1, 1), (2, 2)]:
        return _failed(f"the second start did not go on after step 1: (step, attempt) {done}", code)
    if not RunFolder(folder).result.exists():
        return _failed("no verdict", code)
    print("smoke: passed")
    return code


def _failed(what: str, code: int) -> int:
    print(f"smoke: failed: {what}")
    return code or ExitCode.INTERNAL_ERROR
