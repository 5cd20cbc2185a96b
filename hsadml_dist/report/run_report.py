"""Write the report of a run: ``report.html``, one self-contained page of at most 2 MB, and ``MODEL_CARD.md``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hsadml_dist.atomic import write_text
from hsadml_dist.data.reader import ShardReader
from hsadml_dist.evaluation.class_names import ClassMap
from hsadml_dist.evaluation.evaluate import Evaluation, evaluate_run
from hsadml_dist.report import run_figures, sphere
from hsadml_dist.report.figure_text import can_draw
from hsadml_dist.report.neighbour_examples import MAX_EXAMPLES, NeighbourExample, build_examples, render_example
from hsadml_dist.report.page import EmbeddedImage, render_markdown, render_page
from hsadml_dist.report.run_facts import installed_versions, run_facts
from hsadml_dist.report.sphere import SphereProjection
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.history import merged_metrics

MAX_CLASSES = 12
"""Classes that tables and figures show by name; of more, those with most test slices."""
_MAX_NAMED_COLUMNS = 5
_CURVE_ROWS = 10
_MAX_CARD_CLASSES = 24


@dataclass(frozen=True, kw_only=True)
class ReportedEvaluation:
    """An evaluation: ``result.json`` as a dictionary, and the page if one was written."""

    result: dict[str, Any]
    report: Path | None


def evaluate_and_report(
    run: Path,
    shards: str | Path | None = None,
    fold: int | None = None,
    *,
    allow_trained: bool = False,
    class_map: ClassMap | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ReportedEvaluation:
    """Evaluate a run and, if the result is stored in its folder, write the report there.

    See :func:`~hsadml_dist.evaluation.evaluate.evaluate_run` for the arguments and exceptions.
    """
    evaluation = evaluate_run(run, shards, fold, allow_trained=allow_trained, class_map=class_map, progress=progress)
    if evaluation.stored:
        write_evaluation_report(run, evaluation)
    report = RunFolder(run).report if evaluation.stored else None
    return ReportedEvaluation(result=evaluation.result.to_dict(), report=report)


def write_evaluation_report(run: Path, evaluation: Evaluation) -> None:
    """Write ``report.html`` and ``MODEL_CARD.md`` of an evaluation into the run folder."""
    projection = sphere.project_on_sphere(evaluation.emb_ND, evaluation.predictions.label_N, evaluation.centre_CD)
    reader = ShardReader(evaluation.split.shards, evaluation.split.index)
    examples = build_examples(evaluation.predictions, evaluation.split.index, reader.image)
    write_run_report(run, evaluation.result.to_dict(), merged_metrics(run), projection, examples)


def write_run_report(
    run: Path,
    result: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    projection: SphereProjection | None,
    examples: Sequence[NeighbourExample] = (),
) -> Path:
    """Write ``report.html`` and ``MODEL_CARD.md`` into the run folder; return the path of the page.

    Args:
        run: The run folder; only its name appears on the page.
        result: ``result.json`` as a dictionary.
        metrics: The merged metrics rows; without any the page has no learning curves.
        projection: The test slices on the sphere; None leaves the map out.
        examples: Test slices with their nearest training slices.
    """
    folder, name, versions = RunFolder(run), run.resolve().name, installed_versions()
    write_text(folder.model_card, render_model_card(name, result, versions))
    write_text(folder.report, render_run_report(name, result, metrics, projection, examples, versions))
    return folder.report


def render_model_card(name: str, result: Mapping[str, Any], versions: Mapping[str, str]) -> str:
    """Render the model card of a run as Markdown.

    Source of its sections: Mitchell and others, Model Cards for Model Reporting, FAT* 2019.
    """
    values = {**run_facts(result, versions), "name": name, "max_classes": _MAX_CARD_CLASSES}
    return render_markdown("MODEL_CARD.md.j2", values)


def render_run_report(
    name: str,
    result: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    projection: SphereProjection | None,
    examples: Sequence[NeighbourExample] = (),
    versions: Mapping[str, str] | None = None,
) -> str:
    """Render the page; see :func:`write_run_report` for the arguments."""
    pictured = examples[:MAX_EXAMPLES]
    facts = run_facts(result, versions or {}, pictured)
    names = result["classes"]
    row_names, column_names = class_headings(names)
    geometry = facts["result"]["geometry"]
    values = {
        "name": name,
        "images": _images(facts, projection),
        "max_classes": MAX_CLASSES,
        "numbered": list(_numbered_classes(names, projection)),
        "row_names": row_names,
        "column_names": column_names,
        "projection": projection,
        "projected_classes": [] if projection is None else largest_classes(projection.count_C.tolist()),
        "measured_classes": geometry and largest_classes([one["slices"] for one in geometry["per_class"]]),
        "even_spread": sphere.even_spread(len(names), None if projection is None else projection.dim),
        "examples": [render_example(number, one) for number, one in enumerate(pictured, start=1)],
        "all_examples": len(examples),
        "training": _training(metrics) if metrics else None,
    }
    return render_page("hsadml_dist.report", "run_report.html", {**facts, **values})


def largest_classes(counts: Sequence[int]) -> list[int]:
    """Return the labels of the :data:`MAX_CLASSES` classes with most slices, ascending."""
    return sorted(sorted(range(len(counts)), key=lambda label: (-counts[label], label))[:MAX_CLASSES])


def class_headings(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the row and column headings of a table of classes by classes.

    Columns have names if these fit on a page, otherwise numbers, which the rows repeat before the names.
    """
    if len(names) <= _MAX_NAMED_COLUMNS:
        return list(names), list(names)
    numbers = [str(number) for number in range(1, len(names) + 1)]
    return [f"{number}: {name}" for number, name in zip(numbers, names, strict=True)], numbers


def _numbered_classes(names: Sequence[str], projection: SphereProjection | None) -> Iterator[str]:
    """Yield number and name of each class that figures number because their font lacks its characters."""
    few = len(names) <= MAX_CLASSES
    shown = range(len(names)) if few or projection is None else largest_classes(projection.count_C.tolist())
    for label in shown[:MAX_CLASSES]:
        if not can_draw(names[label]):
            yield f"class {label + 1}: {names[label]}"


def _images(facts: Mapping[str, Any], projection: SphereProjection | None) -> dict[str, EmbeddedImage | None]:
    """Return the figures of the page; None if the result lacks the numbers."""
    result, methods, votes = facts["result"], facts["methods"], facts["votes"]
    names, many = result["classes"], len(result["classes"]) > MAX_CLASSES
    matrix = None if many else result["confusion"]
    outcomes = facts["class_outcomes"] if many else None
    shown = largest_classes(projection.count_C.tolist()) if projection else []
    return {
        "metrics": run_figures.draw_metrics(facts["metrics"], facts["level"]),
        "classifiers": run_figures.draw_classifiers(methods, facts["level"]) if methods else None,
        "confusion": matrix and run_figures.draw_confusion_matrix(matrix, names),
        "outcomes": outcomes and run_figures.draw_outcomes(outcomes, "classes", "their correct slices"),
        "votes": run_figures.draw_outcomes(asdict(votes), "patients", "the majority of their slices")
        if votes
        else None,
        "calibration": result["calibration"] and run_figures.draw_reliability(result["calibration"]),
        "sphere": sphere.draw_map(projection, names, shown) if projection else None,
        "angles": result["geometry"] and sphere.draw_angle_histogram(result["geometry"]),
    }


def _training(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the facts of the section on training; steps that were skipped for a NaN or Inf loss are left out."""
    finite = [row for row in metrics if math.isfinite(row["loss"])] or metrics
    sampled = sorted({round(i * (len(finite) - 1) / (_CURVE_ROWS - 1)) for i in range(_CURVE_ROWS)})
    return {
        "steps": len(metrics),
        "skipped": len(metrics) - len(finite),
        "attempts": max(1, len({row["attempt"] for row in metrics if "attempt" in row})),
        "rows": [finite[place] for place in sampled],
        "image": run_figures.draw_learning_curves(finite),
    }
