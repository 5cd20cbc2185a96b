"""``hsadml evaluate``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from hsadml_dist.errors import UsageError
from hsadml_dist.launch.prepare import existing_run
from hsadml_dist.run.folder import RunFolder

FIGURES = (
    ("nearest neighbour", "knn_accuracy"),
    ("balanced accuracy", "balanced_accuracy"),
    ("class centres", "head_accuracy"),
    ("raw pixels (control)", "raw_pixel_knn"),
)


def evaluate(
    *runs: Path,
    shards: Path | None = None,
    fold: int | None = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Judge runs by nearest neighbours on the fold that training never read; writes result.json and report.html.

    Args:
        runs: Run folders.
        shards: The shards, where they are not where they were in training.
        fold: Another fold to judge on; by default the run's own. Training has read the others.
        as_json: Print result.json; for several runs a list of them.
    """
    if not runs:
        raise UsageError("evaluate: name at least one run folder")
    folders = [existing_run(run) for run in runs]
    from hsadml_dist.evaluation.verdict import evaluate_run

    results = []
    for run in folders:
        results.append(evaluate_run(run, shards, fold))
        if not as_json:
            print(as_text(run, results[-1]))
    if as_json:
        print(json.dumps(results[0] if len(results) == 1 else results, indent=2))


def as_text(run: Path, result: Mapping[str, Any]) -> str:
    """Return a verdict as a few lines."""
    spans = result["intervals"]
    persons = "unknown persons" if result["persons"] is None else f"{result['persons']} persons"
    lines = [
        f"{run}: fold {result['fold']} of shards split by {result['split_unit']}: "
        f"{result['slices']} slices, {persons}, {result['reference_slices']} references; "
        f"weights of step {result['checkpoint']['step']} ({result['chosen_by']})"
    ]
    if result["shared_persons"]:
        lines.append(f"  warning: {result['shared_persons']} persons are on both sides; the figures are flattered")
    lines += [f"  {title:<22}{result[key]:7.2%}{_interval(spans[key])}" for title, key in FIGURES]
    lines.append(f"  brackets: {spans['level']:.0%} intervals, resampled by {spans['interval_unit']}")
    report = RunFolder(run).report
    return "\n".join([*lines, f"  report: {report}"] if report.exists() else lines)


def _interval(span: list[float] | None) -> str:
    return "" if span is None else f"  [{span[0]:.2%}, {span[1]:.2%}]"
