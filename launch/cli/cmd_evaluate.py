"""``hsadml evaluate``: evaluate runs on their held-out folds, and compare runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from hsadml_dist.addresses import display_address
from hsadml_dist.atomic import write_text
from hsadml_dist.config.yaml_loader import load_recipe
from hsadml_dist.errors import DataError, UsageError
from hsadml_dist.jobs.prepare import require_run_folder
from hsadml_dist.json_parsing import INVALID, parse_json
from hsadml_dist.launch.cli.cmd_shards import pairs
from hsadml_dist.launch.cli.terminal import AsJson, echo, echo_json, progress
from hsadml_dist.run.folder import RunFolder

if TYPE_CHECKING:
    from hsadml_dist.evaluation.pooling import EvaluatedRun
    from hsadml_dist.evaluation.result import Predictions

METRICS = (
    ("nearest neighbour", "knn_accuracy"),
    ("balanced accuracy", "balanced_accuracy"),
    ("class centres", "head_accuracy"),
    ("raw pixels (control)", "raw_pixel_knn"),
    ("majority (control)", "majority_accuracy"),
)
CONTROL_METRICS = {"raw_pixels": "raw_pixel_knn", "low_level": "low_level_knn", "majority": "majority_accuracy"}


def evaluate(
    *runs: Path,
    shards: str | None = None,
    fold: int | None = None,
    combine: Annotated[list[Path] | None, Parameter(consume_multiple=True)] = None,
    allow_trained: Annotated[bool, Parameter(negative="")] = False,
    map_class: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    as_json: AsJson = False,
) -> None:
    """Evaluate runs by nearest neighbours on their held-out fold, and write result.json and report.html.

    Slices and patients that a run was trained on are counted, in any build of their images, and refused.

    Args:
        runs: Run folders, at least one.
        shards: The shards, if they were moved after training, or other shards; for those, no file is written.
        fold: Another fold to evaluate, by default the run's own; it must not have been used in training.
        combine: Also compare the runs: folds and seeds are pooled by patient, losses and splits are compared. Writes
            combined.json and combined.html to this folder (by default "combined"). Runs whose newest checkpoint was
            evaluated already are not evaluated again.
        allow_trained: Evaluate even slices and patients that the run was trained on, and mark every figure.
        map_class: NAME=RUN_NAME: class NAME of other shards is the run's class RUN_NAME; repeatable. With it, classes
            are matched by name; without it, the shards must have the run's classes in the same order.
        as_json: Print result.json, for several runs a list of them; with --combine, print combined.json.
    """
    if combine is not None:
        if shards is not None or fold is not None or map_class:
            text = "uses each run's own fold and shards; omit --fold, --shards and --map-class"
            raise UsageError(f"evaluate --combine: {text}")
        # One parameter takes all paths that follow it: the first is the folder, the others are runs.
        folder = combine[0] if combine else Path("combined")
        return _compare([*runs, *combine[1:]], folder, as_json=as_json, allow_trained=allow_trained)
    if not runs:
        raise UsageError("evaluate: name at least one run folder")
    folders, class_map = [require_run_folder(run) for run in runs], pairs(map_class, "--map-class")
    from hsadml_dist.report.run_report import evaluate_and_report

    results = []
    for run in folders:
        with progress("images compared with the training") as show:
            evaluated = evaluate_and_report(
                run, shards, fold, allow_trained=allow_trained, class_map=class_map, progress=show
            )
        results.append(evaluated.result)
        if not as_json:
            echo(*format_result(run, evaluated.result, evaluated.report))
    if as_json:
        echo_json(results[0] if len(results) == 1 else results, indent=2)
    return None


def load_or_evaluate(run: Path, name: str, *, allow_trained: bool = False) -> EvaluatedRun:
    """Return a run with its stored evaluation, or evaluate it if that is missing, damaged or outdated.

    Raises:
        CheckpointError: No checkpoint verifies.
        DataError: The shards cannot be read, or are not those that the run was trained on.
        TrainedDataError: The run was trained on slices of its test fold, which ``allow_trained`` allows.
    """
    from hsadml_dist.evaluation.pooling import EvaluatedRun
    from hsadml_dist.evaluation.trained_overlap import add_overlap
    from hsadml_dist.report.run_report import evaluate_and_report

    recipe = load_recipe(RunFolder(run).config, stored=True).recipe
    stored = load_stored_result(run)
    if stored is None or not _is_of_newest_checkpoint(run, stored[0]):
        evaluated = evaluate_and_report(run, allow_trained=allow_trained).result
        stored = load_stored_result(run)
        if stored is None or stored[0] != evaluated:
            raise DataError(
                f"{run}: {display_address(recipe.data.shards)} does not contain the samples that the run was trained "
                "on; its evaluation would be on other data"
            )
    result, predictions = stored
    if "trained_slices" not in result:
        result = add_overlap(RunFolder(run), recipe, result, predictions.keys)
    folds = _fold_numbers(recipe.data.shards, result["data_digest"])
    return EvaluatedRun(name=name, result=result, predictions=predictions, folds=folds, settings=recipe.identity())


def load_stored_result(run: Path) -> tuple[Mapping[str, Any], Predictions] | None:
    """Return the evaluation in a run folder; None if it is missing, damaged or of another version."""
    from hsadml_dist.evaluation.combine import belong_together
    from hsadml_dist.evaluation.result import SCHEMA_VERSION, read_predictions

    folder = RunFolder(run)
    try:
        result = parse_json(folder.result.read_bytes())
        predictions = read_predictions(folder.predictions)
        known = result["schema_version"] == SCHEMA_VERSION
    except (OSError, *INVALID, DataError):
        return None
    return (result, predictions) if known and belong_together(result, predictions) else None


def short_names(runs: Sequence[Path]) -> list[str]:
    """Return the paths of the runs relative to their common parent, without the user's folders above it."""
    absolute = [os.path.abspath(run) for run in runs]
    top = os.path.commonpath([os.path.dirname(path) for path in absolute])
    return [os.path.relpath(path, top) for path in absolute]


def write_comparison(runs: Sequence[EvaluatedRun], folder: Path, *, allow_trained: bool = False) -> dict[str, Any]:
    """Compare runs, write ``combined.json`` and ``combined.html`` to a folder, and return the comparison.

    Raises:
        DataError: The runs cannot be compared.
        TrainedDataError: A run was trained on slices of its test fold, which ``allow_trained`` allows.
    """
    from hsadml_dist.evaluation.combine import COMBINED_NAME, combine
    from hsadml_dist.report.comparison_page import write_comparison_page

    combined = combine(runs, allow_trained=allow_trained)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / COMBINED_NAME, combined.to_json())
    write_comparison_page(folder, combined.to_dict())
    return combined.to_dict()


def format_comparison(combined: Mapping[str, Any], folder: Path) -> list[str]:
    """Return a comparison as lines: a short table, the first sentences of its page, and the path of the page."""
    from hsadml_dist.report.comparison_facts import headline, loss_title, pool_mark, remarks, shards_title

    lines = [f"{'split by':<20}{'loss':<12}{'nearest neighbour':<28}{'raw pixels':>10}{'folds':>8}{'patients':>10}"]
    for pool in combined["pools"]:
        knn, raw = pool["methods"]["knn"], pool["methods"].get("raw_pixels")
        folds = f"{len(pool['folds'])} of {len(pool['expected_folds'])}"
        lines.append(
            f"{shards_title(combined, pool):<20}{loss_title(pool['loss']):<12}"
            f"{knn['accuracy']:7.2%}{_format_interval(knn['interval']):<21}"
            f"{'-' if raw is None else format(raw['accuracy'], '.2%'):>10}"
            f"{folds:>8}{'-' if pool['persons'] is None else pool['persons']:>10}"
            f"  {pool_mark(combined, pool)}".rstrip()
        )
    lines += [sentence.replace("\N{NO-BREAK SPACE}", " ") for sentence in headline(combined)]
    lines += [f"  note: {remark}" for remark in remarks(combined)]
    return [*lines, f"report: {folder / 'combined.html'}"]


def format_result(run: Path, result: Mapping[str, Any], report: Path | None) -> list[str]:
    """Return a result as a few lines, with the path of its report if that was written."""
    from hsadml_dist.report.formatting import classes_are_patients, counted, interval_caution, unit_title
    from hsadml_dist.report.trained_facts import trained_counts, trained_mark, trained_reasons

    intervals = result["intervals"]
    patients = "unknown patients" if result["persons"] is None else f"{result['persons']} patients"
    lines = [
        f"{run}: fold {result['fold']} of shards split by {unit_title(result['split_unit'])}: "
        f"{result['slices']} slices, {patients}, {result['reference_slices']} gallery slices; "
        f"weights of step {result['checkpoint']['step']} ({result['chosen_by']})"
    ]
    reasons = trained_reasons(result)
    lines.append(f"  read in training: {trained_counts(result)}" + (f" ({reasons})" if reasons else ""))
    if classes_are_patients(result):
        lines.append(f"  each of {len(result['classes'])} patients is a class; training saw other slices of them")
    elif result["shared_persons"]:
        lines.append(f"  warning: {result['shared_persons']} patients are in training and test: results are optimistic")
    mark = trained_mark(result)
    lines += [
        f"  {title:<22}{result[key]:7.2%}{_format_interval(intervals.get(key))}{_over(result, key)}  {mark}".rstrip()
        for title, key in METRICS
        if result.get(key) is not None
    ]
    lines += _result_warnings(result)
    units, unit = intervals["units"], intervals["interval_unit"]
    caution = interval_caution(intervals.get("caution"), units, unit)
    lines += [f"  warning: {caution}"] if caution else []
    if intervals["knn_accuracy"] is not None:
        lines.append(f"  brackets: {intervals['level']:.0%} intervals over {counted(units, unit_title(unit))}")
    return lines if report is None else [*lines, f"  report: {report}"]


def _over(result: Mapping[str, Any], key: str) -> str:
    """Return over how many classes a balanced accuracy is, if not over all."""
    if key != "balanced_accuracy" or not result.get("classes_without_test"):
        return ""
    return f"  over {result['balanced_classes']} of {len(result['classes'])} classes"


def _result_warnings(result: Mapping[str, Any]) -> list[str]:
    """Return a line for each reason why the accuracies of a result mean less than they seem to."""
    from hsadml_dist.report.formatting import CONTROLS, is_generated, listed

    lines = ["generated patients: the figures say nothing about real ones"] if is_generated(result) else []
    lines += ["only one class: every accuracy is 100 %"] if len(result.get("classes", "..")) == 1 else []
    if result.get("classes_without_test"):
        lines.append(f"no test slice of {listed(result['classes_without_test'])}")
    if result.get("classes_without_gallery"):
        lines.append(f"no gallery slice of {listed(result['classes_without_gallery'])}: none of it can be correct")
    lines += [
        f"not above its control: nearest neighbour {result['knn_accuracy']:.2%}, "
        f"{CONTROLS.get(name, 'the majority class')} {result[CONTROL_METRICS[name]]:.2%}"
        for name in result.get("controls_not_exceeded", ())
    ]
    return [f"  warning: {line}" for line in lines]


def _compare(runs: Sequence[Path], folder: Path, *, as_json: bool, allow_trained: bool) -> None:
    """Compare runs, and evaluate those that need it. All arguments are checked before any work."""
    is_other = os.path.lexists(folder) and not folder.is_dir()
    if is_other or RunFolder(folder).config.exists():
        kind = "not a folder" if is_other else "a run folder"
        raise UsageError(f"evaluate --combine {folder}: is {kind}; name the folder to write to, then the runs")
    if not runs:
        raise UsageError("evaluate --combine: name at least one run folder")
    folders = [require_run_folder(run) for run in runs]
    repeated = [run for place, run in enumerate(folders) if run.resolve() in [one.resolve() for one in folders[:place]]]
    if repeated:
        raise UsageError(f"evaluate --combine: {repeated[0]} is named twice")
    evaluated = []
    for run, name in zip(folders, short_names(folders), strict=True):
        evaluated.append(load_or_evaluate(run, name, allow_trained=allow_trained))
        if not as_json:
            echo(_format_progress(name, evaluated[-1].result))
    combined = write_comparison(evaluated, folder, allow_trained=allow_trained)
    if as_json:
        echo_json(combined, indent=2)
    else:
        echo(*format_comparison(combined, folder))


def _format_progress(name: str, result: Mapping[str, Any]) -> str:
    from hsadml_dist.report.formatting import unit_title
    from hsadml_dist.report.trained_facts import trained_counts, trained_mark

    split = f"split by {unit_title(result['split_unit'])}, fold {result['fold']}"
    setting = f"{result['loss']}, seed {result['seed']}, {split}"
    figure = f"{result['knn_accuracy']:.2%} of {result['slices']} slices {trained_mark(result)}".rstrip()
    return f"{name}: {setting}: {figure}; read in training: {trained_counts(result)}"


def _is_of_newest_checkpoint(run: Path, result: Mapping[str, Any]) -> bool:
    from hsadml_dist.checkpoint.layout import lineage, list_checkpoints, read_parents

    folder = RunFolder(run)
    checkpoints = lineage(list_checkpoints(folder), read_parents(folder))
    return bool(checkpoints) and result["checkpoint"]["name"] == str(checkpoints[0])


def _fold_numbers(shards: str, digest: str) -> tuple[int, ...]:
    """Return all folds of a run's shards; empty if they were moved or rebuilt, since a comparison can do without."""
    from hsadml_dist.data.remote import open_shard_index

    try:
        index = open_shard_index(shards, fresh=False)
    except DataError:
        return ()
    return index.fold_numbers if index.digest == digest else ()


def _format_interval(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"  [{interval[0]:.2%}, {interval[1]:.2%}]"
