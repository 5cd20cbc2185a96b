"""Evaluate a run and write its report, with example slices next to their nearest training slices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hsadml_dist.data.index import ShardIndex
from hsadml_dist.data.reader import ShardReader
from hsadml_dist.evaluation.evaluate import Evaluation, evaluate_run
from hsadml_dist.evaluation.result import KNN, Predictions
from hsadml_dist.report.neighbour_examples import ExampleImage, NeighbourExample
from hsadml_dist.report.run_report import write_run_report
from hsadml_dist.report.sphere import project_on_sphere
from hsadml_dist.run.history import merged_metrics

MAX_CORRECT = 3
MAX_INCORRECT = 5


def evaluate_and_report(run: Path, shards: str | Path | None = None, fold: int | None = None) -> dict[str, Any]:
    """Evaluate a run and, if the result is stored in its folder, write the report there; return ``result.json``.

    See :func:`~hsadml_dist.evaluation.evaluate.evaluate_run` for the arguments and exceptions.
    """
    evaluation = evaluate_run(run, shards, fold)
    if evaluation.stored:
        write_evaluation_report(run, evaluation)
    return evaluation.result.to_dict()


def write_evaluation_report(run: Path, evaluation: Evaluation) -> None:
    """Write ``report.html`` and ``MODEL_CARD.md`` of an evaluation into the run folder."""
    projection = project_on_sphere(evaluation.emb_ND, evaluation.predictions.label_N, evaluation.centre_CD)
    reader = ShardReader(evaluation.split.shards, evaluation.split.index)
    examples = build_examples(evaluation.predictions, evaluation.split.index, reader.image)
    write_run_report(run, evaluation.result.to_dict(), merged_metrics(run), projection, examples)


def build_examples(
    predictions: Predictions, index: ShardIndex, image_at: Callable[[int], np.ndarray]
) -> list[NeighbourExample]:
    """Return the chosen test slices and their nearest training slices, with images and captions.

    Args:
        predictions: Predictions for the test slices.
        index: Index of the shards that hold test and training slices.
        image_at: Reads the image (H, W) at a position of the index.
    """
    position_of = {row.key: position for position, row in enumerate(index.samples)}

    def image(key: str, note: str, label: int | None) -> ExampleImage:
        position = position_of[key]
        own = index.samples[position].label
        return ExampleImage(
            image_HW=image_at(position),
            caption=index.classes[own] + note,
            same_class=None if label is None else own == label,
        )

    def example(row: int) -> NeighbourExample:
        label = int(predictions.label_N[row])
        neighbours = zip(predictions.neighbour_keys[row], predictions.cosine_NK[row], strict=True)
        return NeighbourExample(
            title=_title(predictions, index, row),
            query=image(predictions.keys[row], "", None),
            neighbours=[image(key, f", cosine {cosine:.3f}", label) for key, cosine in neighbours],
            is_correct=bool(predictions.correct(KNN)[row]),
        )

    return [example(row) for row in choose_examples(predictions)]


def choose_examples(
    predictions: Predictions, *, max_correct: int = MAX_CORRECT, max_incorrect: int = MAX_INCORRECT
) -> tuple[int, ...]:
    """Return the rows of some slices that the nearest neighbour classifies correctly, then of some incorrect ones.

    Correct ones: of each class the slice with the median cosine to its nearest neighbour, neither the best nor the
    worst. Incorrect ones: those nearest to a slice of another class, the clearest errors first, one per patient.
    """
    correct = predictions.correct(KNN)
    medians = [_median_row(predictions, label, correct) for label in range(len(predictions.classes))]
    shown = [row for row in medians if row is not None][:max_correct]
    nearest_first = sorted(np.flatnonzero(~correct).tolist(), key=lambda row: (-predictions.cosine_NK[row, 0], row))
    seen: set[str | None] = set()
    incorrect: list[int] = []
    for row in nearest_first:
        person = predictions.persons[row]
        if person is None or person not in seen:
            incorrect.append(row)
        seen.add(person)
    return (*shown, *incorrect[:max_incorrect])


def _median_row(predictions: Predictions, label: int, correct: np.ndarray) -> int | None:
    rows = np.flatnonzero(correct & (predictions.label_N == label)).tolist()
    rows.sort(key=lambda row: (predictions.cosine_NK[row, 0], row))
    return rows[len(rows) // 2] if rows else None


def _title(predictions: Predictions, index: ShardIndex, row: int) -> str:
    label, predicted = int(predictions.label_N[row]), int(predictions.predicted[KNN][row])
    name = index.classes[label]
    return f"{name}, correct" if predicted == label else f"{name}, confused with {index.classes[predicted]}"
