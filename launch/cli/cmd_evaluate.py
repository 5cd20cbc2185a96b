"""``hsadml evaluate``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from hsadml_dist.errors import UsageError
from hsadml_dist.jobs.prepare import require_run_folder
from hsadml_dist.run.folder import RunFolder

FIGURES = (
    ("nearest neighbour", "knn_accuracy"),
    ("balanced accuracy", "balanced_accuracy"),
    ("class centres", "head_accuracy"),
    ("raw pixels (control)", "raw_pixel_knn"),
)

COMBINED = Path("combined")
"""Where a comparison goes by default."""


def evaluate(
    *runs: Path,
    shards: str | None = None,
    fold: int | None = None,
    combine: Annotated[list[Path] | None, Parameter(consume_multiple=True)] = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Judge runs by nearest neighbours on the fold that training never read; writes result.json and report.html.

    Args:
        runs: Run folders.
        shards: The shards, where they are not where they were in training.
        fold: Another fold to judge on; by default the run's own. Training has read the others.
        combine: Compare the runs too: folds and seeds pooled by person, losses and splits side by side. Writes
            combined.json and combined.html into this folder (by default "combined"); runs that have a verdict on
            their newest checkpoint are not judged again.
        as_json: Print result.json, for several runs a list of them; with --combine combined.json.
    """
    if combine is not None:
        # One parameter takes all paths that follow it: the first is the folder, the rest are runs.
        return _compare([*runs, *combine[1:]], combine[0] if combine else COMBINED, as_json, (shards, fold))
    if not runs:
        raise UsageError("evaluate: name at least one run folder")
    folders = [require_run_folder(run) for run in runs]
    from hsadml_dist.report.evaluation_report import evaluate_and_report

    results = []
    for run in folders:
        results.append(evaluate_and_report(run, shards, fold))
        if not as_json:
            print(as_text(run, results[-1]))
    if as_json:
        print(json.dumps(results[0] if len(results) == 1 else results, indent=2))
    return None


def _compare(runs: Sequence[Path], folder: Path, as_json: bool, unfit: tuple[str | None, int | None]) -> None:
    """Judge what is not judged, then compare; everything that can be wrong with the words is found before."""
    if any(value is not None for value in unfit):
        raise UsageError(
            "evaluate --combine: each run is judged on its own fold and shards; leave out --fold, --shards"
        )
    if RunFolder(folder).config.exists() or folder.is_file():
        what = "a file" if folder.is_file() else "a run folder"
        raise UsageError(f"evaluate --combine {folder}: is {what}; name the folder to write to, then the runs")
    if not runs:
        raise UsageError("evaluate --combine: name at least one run folder")
    folders = [require_run_folder(run) for run in runs]
    twice = [run for place, run in enumerate(folders) if run.resolve() in [one.resolve() for one in folders[:place]]]
    if twice:
        raise UsageError(f"evaluate --combine: {twice[0]} is named twice")
    from hsadml_dist.launch.compare_runs import combined, load_or_evaluate, short_names

    verdicts = []
    for run, name in zip(folders, short_names(folders), strict=True):
        verdicts.append(load_or_evaluate(run, name))
        if not as_json:
            print(as_line(verdicts[-1].name, verdicts[-1].result), flush=True)
    found = combined(verdicts, folders, folder)
    print(json.dumps(found, indent=2) if as_json else as_table(found, folder))


def as_line(name: str, result: Mapping[str, Any]) -> str:
    """Return a verdict as one line of many."""
    setting = f"{result['loss']}, seed {result['seed']}, split by {result['split_unit']}, fold {result['fold']}"
    return f"{name}: {setting}: {result['knn_accuracy']:.2%} of {result['slices']} slices"


def as_table(combined: Mapping[str, Any], folder: Path) -> str:
    """Return a comparison as a short table, the same sentences as its page begins with, and where the rest is."""
    from hsadml_dist.report.comparison_facts import headline, loss_title, remarks, shards_title

    lines = [f"{'split by':<20}{'loss':<12}{'nearest neighbour':<28}{'raw pixels':>10}{'folds':>8}{'persons':>9}"]
    for pool in combined["pools"]:
        knn, raw = pool["methods"]["knn"], pool["methods"].get("raw_pixels")
        folds = f"{len(pool['folds'])} of {len(pool['expected_folds'])}"
        lines.append(
            f"{shards_title(combined, pool):<20}{loss_title(pool['loss']):<12}"
            f"{knn['accuracy']:7.2%}{_interval(knn['interval']):<21}"
            f"{'-' if raw is None else format(raw['accuracy'], '.2%'):>10}"
            f"{folds:>8}{'-' if pool['persons'] is None else pool['persons']:>9}"
        )
    lines += [sentence.replace("\N{NO-BREAK SPACE}", " ") for sentence in headline(combined)]
    lines += [f"  note: {remark}" for remark in remarks(combined)]
    return "\n".join([*lines, f"report: {folder / 'combined.html'}"])


def as_text(run: Path, result: Mapping[str, Any]) -> str:
    """Return a verdict as a few lines."""
    from hsadml_dist.report.formatting import classes_are_patients

    spans = result["intervals"]
    persons = "unknown persons" if result["persons"] is None else f"{result['persons']} persons"
    lines = [
        f"{run}: fold {result['fold']} of shards split by {result['split_unit']}: "
        f"{result['slices']} slices, {persons}, {result['reference_slices']} references; "
        f"weights of step {result['checkpoint']['step']} ({result['chosen_by']})"
    ]
    if classes_are_patients(result):
        lines.append(f"  each of {len(result['classes'])} persons is a class; training knows them, not these slices")
    elif result["shared_persons"]:
        lines.append(f"  warning: {result['shared_persons']} persons are on both sides; the figures are flattered")
    lines += [f"  {title:<22}{result[key]:7.2%}{_interval(spans[key])}" for title, key in FIGURES]
    lines.append(f"  brackets: {spans['level']:.0%} intervals, resampled by {spans['interval_unit']}")
    report = RunFolder(run).report
    return "\n".join([*lines, f"  report: {report}"] if report.exists() else lines)


def _interval(span: list[float] | None) -> str:
    return "" if span is None else f"  [{span[0]:.2%}, {span[1]:.2%}]"
