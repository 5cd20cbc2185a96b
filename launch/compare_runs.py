"""Runs with their verdicts, judged anew where theirs is missing or old; several of them as one comparison."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hsadml_dist.checkpoint.layout import lineage, list_checkpoints, read_parents
from hsadml_dist.config.yaml_loader import load_recipe
from hsadml_dist.data.remote import open_shard_index
from hsadml_dist.errors import DataError
from hsadml_dist.evaluation.combine import COMBINED_NAME, belong_together, combine
from hsadml_dist.evaluation.pooling import EvaluatedRun
from hsadml_dist.evaluation.result import SCHEMA_VERSION, Predictions, read_predictions
from hsadml_dist.report.comparison_page import write_comparison_page
from hsadml_dist.report.evaluation_report import evaluate_and_report
from hsadml_dist.run.folder import RunFolder, replace_text

StoredResult = tuple[Mapping[str, Any], Predictions]


def combined(runs: Sequence[EvaluatedRun], paths: Sequence[Path], folder: Path) -> dict[str, Any]:
    """Compare runs, write ``combined.json`` and ``combined.html`` into a folder; returns the first as a dictionary.

    Args:
        runs: At least one.
        paths: Their run folders; the most resamples that any of them asks for are drawn.
        folder: Where to; made where it is missing.

    Raises:
        DataError: Runs that do not fit together.
    """
    resamples = max(load_recipe(RunFolder(path).config).recipe.evaluation.resamples for path in paths)
    found = combine(runs, resamples=resamples)
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / COMBINED_NAME, found.to_json())
    write_comparison_page(folder, found.to_dict())
    return found.to_dict()


def load_or_evaluate(run: Path, name: str) -> EvaluatedRun:
    """Return a run with its verdict.

    The verdict in the run folder serves if it is whole and names the newest checkpoint; otherwise the run is judged.

    Args:
        run: The run folder.
        name: What messages and the page call it.

    Raises:
        CheckpointError: No checkpoint verifies.
        DataError: Shards that cannot be read, or that are not those it was trained on.
    """
    recipe = load_recipe(RunFolder(run).config).recipe
    verdict = load_stored_result(run)
    if verdict is None or not _is_of_newest(run, verdict):
        result = evaluate_and_report(run)
        verdict = load_stored_result(run)
        if verdict is None or verdict[0] != result:
            where = f"{run}: {recipe.data.shards} no longer holds the samples that it was trained on"
            raise DataError(f"{where}: its verdict would be on other data than its own")
    folds = _folds(recipe.data.shards, verdict[0]["data_digest"])
    return EvaluatedRun(name=name, result=verdict[0], predictions=verdict[1], folds=folds, settings=recipe.identity())


def load_stored_result(run: Path) -> StoredResult | None:
    """Return the verdict that lies in a run folder; None where it is missing, damaged or of another version."""
    folder = RunFolder(run)
    try:
        result = json.loads(folder.result.read_bytes())
        said = read_predictions(folder.predictions)
        known = result["schema_version"] == SCHEMA_VERSION
    except (OSError, ValueError, LookupError, TypeError, DataError):
        return None
    return (result, said) if known and belong_together(result, said) else None


def short_names(runs: Sequence[Path]) -> list[str]:
    """Return the runs' paths below the folder that they share: what a page may show of them."""
    whole = [os.path.abspath(run) for run in runs]
    top = os.path.commonpath([os.path.dirname(path) for path in whole])
    return [os.path.relpath(path, top) for path in whole]


def _is_of_newest(run: Path, verdict: StoredResult) -> bool:
    line = lineage(list_checkpoints(RunFolder(run)), read_parents(RunFolder(run)))
    return bool(line) and verdict[0]["checkpoint"]["name"] == str(line[0])


def _folds(shards: str, digest: str) -> tuple[int, ...]:
    """Return all folds of a run's shards; none where they were moved or built anew: its verdict stands without them."""
    try:
        index = open_shard_index(shards, fresh=False)
    except DataError:
        return ()
    return index.fold_numbers if index.digest == digest else ()
