"""The sections of a report: a figure each, what it shows, and its numbers in a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hsadml_dist.report import figures
from hsadml_dist.report.angles import angles_section
from hsadml_dist.report.calibration import calibration_section
from hsadml_dist.report.cases import MAX_EXAMPLES, NeighbourExample, cases_table, shown_cases
from hsadml_dist.report.classifiers import classifiers_section
from hsadml_dist.report.confusions import confusions_section
from hsadml_dist.report.figures import MeritPoint
from hsadml_dist.report.page import Table
from hsadml_dist.report.section import MOST_CLASSES, ReportSection, degrees, left_out, shown, square_heads
from hsadml_dist.report.sphere import SphereProjection
from hsadml_dist.report.votes import votes_section
from hsadml_dist.report.wording import CONTROL_KEYS, NONE, controls, counted, level_text, span_text

FIGURES = {
    "knn_accuracy": "k-NN accuracy (k = 1)",
    "balanced_accuracy": "balanced accuracy (k-NN)",
    "head_accuracy": "nearest class centre",
    "raw_pixel_knn": "raw pixels (control)",
    "low_level_knn": "low-level features (control)",
}
_MEANING = {
    "knn_accuracy": "share of test slices whose nearest training slice, by cosine, is of their class",
    "balanced_accuracy": "the same, averaged over classes in place of slices",
    "head_accuracy": "share of test slices that lie nearest to their own class's centre",
    "raw_pixel_knn": "the nearest training slice by 64 x 64 pixels, nothing learnt",
    "low_level_knn": "the nearest training slice by brightness, extent and texture as a whole, nothing learnt",
}


def sections(
    result: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    sphere: SphereProjection | None,
    cases: Sequence[NeighbourExample] = (),
) -> Iterator[ReportSection]:
    """Yield the sections of a verdict's page, the figures of merit first; see ``write_report``."""
    yield _figures_section(result)
    if result.get("methods"):
        yield classifiers_section(result)
    if len(result["classes"]) > MOST_CLASSES:
        if result.get("confusions"):
            yield confusions_section(result)
    elif result["confusion"] is not None:
        yield _confusion_section(result)
    if result.get("person_vote"):
        yield votes_section(result)
    if result.get("calibration"):
        yield calibration_section(result)
    if sphere is not None:
        yield _sphere_section(result, sphere)
    if result.get("geometry"):
        yield angles_section(result, None if sphere is None else sphere.dim)
    if cases:
        yield _cases_section(cases)
    if metrics:
        yield _curves_section(metrics)


def _figures_section(result: Mapping[str, Any]) -> ReportSection:
    spans = result["intervals"]
    bars = [
        MeritPoint(name=title, value=result[key], interval=spans.get(key), is_control=key in CONTROL_KEYS.values())
        for key, title in FIGURES.items()
        if result.get(key) is not None
    ]
    rows = [
        [title, f"{result[key]:.1%}", span_text(spans.get(key)), _MEANING[key]]
        for key, title in FIGURES.items()
        if result.get(key) is not None
    ]
    unit = spans["interval_unit"]
    lines = "Broken lines are the controls" if len(controls(result)) > 1 else "The broken line is the control"
    text = (
        f"{level_text(spans)} intervals: percentile bootstrap of {spans['resamples']:,} samples over"
        f" {counted(spans['units'], unit)}{', each drawn with all its slices' * (unit != 'slice')}. They cover the"
        f" choice of {unit}s, not another seed or another split. {lines}: what can be had without learning."
    )
    head = ("figure", "value", f"{level_text(spans)} interval", "what it is")
    table = Table(caption="Figures of merit, the controls last", head=head, rows=rows)
    picture = figures.figures_of_merit(bars, level_text(spans))
    return ReportSection(title="Figures", text=text, picture=picture, tables=[table])


def _confusion_section(result: Mapping[str, Any]) -> ReportSection:
    counts, names = result["confusion"], result["classes"]
    row_names, columns = square_heads(names)
    rows = [
        [name, *map(str, counts[row]), str(sum(counts[row])), _recall(counts, row)]
        for row, name in enumerate(row_names)
    ]
    head = ("true class", *columns, "all slices", "right")
    table = Table(caption="Slices by true class (rows) and class of the nearest reference", head=head, rows=rows)
    text = "Each row holds the slices of one true class: their share and number by the class of the nearest reference."
    picture = figures.confusion_matrix(counts, names)
    return ReportSection(title="What is taken for what", text=text, picture=picture, tables=[table])


def _sphere_section(result: Mapping[str, Any], sphere: SphereProjection) -> ReportSection:
    labels, names = shown(sphere.count_C.tolist()), result["classes"]
    rows = [
        [
            names[label],
            str(sphere.count_C[label]),
            degrees(float(sphere.own_angle_C[label])),
            degrees(float(sphere.other_angle_C[label])),
        ]
        for label in labels
    ]
    head = ("class", "test slices", "mean angle to own centre", "mean angle to nearest other centre")
    table = Table(caption="Angles between slices and class centres", head=head, rows=rows)
    text = _projection(sphere) + left_out(len(names), len(labels))
    if len(labels) < len(names):
        text += " Slices of all others are grey dots."
    picture = figures.sphere_map(sphere, names, labels)
    return ReportSection(title="On the sphere", text=text, picture=picture, tables=[table])


def _projection(sphere: SphereProjection) -> str:
    marks = "Large outlined marks: class centres. The angles in the table are those of the full space."
    if sphere.dim <= 3:
        return (
            f"Embeddings have {counted(sphere.dim, 'component')}: the test slices on their own sphere, turned along its"
            f" principal axes, Mollweide projection (equal areas). Nothing is left out. {marks}"
        )
    first, second, third = sphere.explained
    return (
        f"Unit embeddings of {sphere.dim} components along their first three principal axes (uncentred), scaled back to"
        f" unit length, Mollweide projection (equal areas). The axes hold {first:.1%}, {second:.1%} and {third:.1%} of"
        f" the squared length, {sum(sphere.explained):.1%} together; what lies outside them is not seen. {marks}"
    )


def _cases_section(cases: Sequence[NeighbourExample]) -> ReportSection:
    pictured = shown_cases(cases)
    wrong = sum(case.verdict == "wrong" for case in pictured)
    text = (
        f"{counted(len(pictured), 'test slice')}, {wrong} of them wrong, each with the training slices that lie nearest"
        " by cosine, nearest first. They are examples and no fair sample: errors are shown out of proportion. Grey"
        " values are stretched picture by picture. These are pictures of persons: hand the page on as you would the"
        " data."
    )
    if len(cases) > len(pictured):
        text += f" Shown are the first {MAX_EXAMPLES} of {len(cases)}."
    return ReportSection(title="Nearest cases", text=text, tables=[cases_table(pictured)], cases=pictured)


def _curves_section(metrics: Sequence[Mapping[str, Any]]) -> ReportSection:
    every, metrics = metrics, [row for row in metrics if math.isfinite(row["loss"])] or metrics
    some = sorted({round(i * (len(metrics) - 1) / 9) for i in range(10)})
    rows = [[f"{metrics[i]['step']:,}", f"{metrics[i]['loss']:.4f}", f"{metrics[i]['lr']:.3g}"] for i in some]
    attempts = len({row["attempt"] for row in metrics if "attempt" in row})
    steps, tries = counted(len(every), "step"), counted(max(attempts, 1), "attempt")
    text = f"{steps} in {tries}; a step that was redone counts once. The loss is that of the training folds."
    if len(metrics) < len(every):
        skipped = counted(len(every) - len(metrics), "step")
        text += f" Left out: {skipped} that changed nothing, since the loss was not finite."
    table = Table(caption="Loss and learning rate at some steps", head=("step", "loss", "learning rate"), rows=rows)
    return ReportSection(title="Training", text=text, picture=figures.learning_curves(metrics), tables=[table])


def _recall(counts: Sequence[Sequence[int]], row: int) -> str:
    total = sum(counts[row])
    return f"{counts[row][row] / total:.1%}" if total else NONE
