"""The sections of a report: a figure each, what it shows, and its numbers in a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hsadml_dist.report import figures
from hsadml_dist.report.figures import Bar, Picture
from hsadml_dist.report.page import Table
from hsadml_dist.report.sphere import SphereView
from hsadml_dist.report.wording import NONE, counted, level_text, span_text

MOST_CLASSES = 12
"""Classes that a figure shows by name; of more, those with most test slices."""

FIGURES = {
    "knn_accuracy": "k-NN accuracy (k=1)",
    "balanced_accuracy": "balanced accuracy (k-NN)",
    "head_accuracy": "nearest class centre",
    "raw_pixel_knn": "raw pixels, 1-NN (control)",
}
_MEANING = {
    "knn_accuracy": "share of test slices whose nearest training slice, by cosine, is of their class",
    "balanced_accuracy": "the same, averaged over classes in place of slices",
    "head_accuracy": "share of test slices that lie nearest to their own class's centre",
    "raw_pixel_knn": "the nearest training slice by 64 x 64 pixels, nothing learnt",
}


@dataclass(frozen=True, kw_only=True)
class Section:
    """A figure, what it shows, and its numbers."""

    title: str
    text: str
    picture: Picture
    table: Table


def sections(
    result: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], sphere: SphereView | None
) -> Iterator[Section]:
    """Yield the sections of a verdict's page, the figures of merit first; see ``write_report``."""
    yield _figures_section(result)
    if result["confusion"] is not None:
        yield _confusion_section(result)
    if sphere is not None:
        yield _sphere_section(result, sphere)
    if metrics:
        yield _curves_section(metrics)


def _figures_section(result: Mapping[str, Any]) -> Section:
    spans = result["intervals"]
    bars = [
        Bar(name=title, value=result[key], interval=spans[key], is_control=key == "raw_pixel_knn")
        for key, title in FIGURES.items()
    ]
    rows = [[title, f"{result[key]:.1%}", span_text(spans[key]), _MEANING[key]] for key, title in FIGURES.items()]
    text = (
        f"{level_text(spans)} intervals: percentile bootstrap of {spans['resamples']:,} samples over"
        f" {counted(spans['units'], spans['interval_unit'])}, each drawn with all its slices. They cover the choice of"
        f" {spans['interval_unit']}s, not another seed or another split. The dashed line is the control."
    )
    head = ("figure", "value", f"{level_text(spans)} interval", "what it is")
    table = Table(caption="Figures beside the raw-pixel control", head=head, rows=rows)
    return Section(title="Figures", text=text, picture=figures.figures_of_merit(bars), table=table)


def _confusion_section(result: Mapping[str, Any]) -> Section:
    counts, names = result["confusion"], result["classes"]
    shown = _shown([sum(row) for row in counts])
    part = [[counts[row][column] for column in shown] for row in shown]
    labels = [names[label] for label in shown]
    rows = [
        [names[row], *(str(counts[row][column]) for column in shown), str(sum(counts[row])), _recall(counts, row)]
        for row in shown
    ]
    head = ("true class", *labels, "all slices", "right")
    table = Table(caption="Slices by true class (rows) and class of the nearest reference", head=head, rows=rows)
    text = "Each row holds the slices of one true class: their share and number by the class of the nearest reference."
    text += _left_out(len(names), len(shown))
    picture = figures.confusion_matrix(part, labels)
    return Section(title="What is taken for what", text=text, picture=picture, table=table)


def _sphere_section(result: Mapping[str, Any], sphere: SphereView) -> Section:
    shown = _shown(sphere.count_C.tolist())
    names = result["classes"]
    rows = [
        [
            names[label],
            str(sphere.count_C[label]),
            _degrees(sphere.own_angle_C[label]),
            _degrees(sphere.other_angle_C[label]),
        ]
        for label in shown
    ]
    first, second, third = sphere.explained
    text = (
        "Unit embeddings of the test slices along their first three principal axes (uncentred), scaled back to unit"
        f" length, Mollweide projection. The axes hold {first:.1%}, {second:.1%} and {third:.1%} of the squared length,"
        f" {sum(sphere.explained):.1%} together; what lies outside them is not seen. Large outlined marks: class"
        " centres. The angles in the table are those of the full space."
    )
    head = ("class", "test slices", "mean angle to own centre", "mean angle to nearest other centre")
    table = Table(caption="Angles between slices and class centres", head=head, rows=rows)
    picture = figures.sphere_map(sphere, names, shown)
    text += _left_out(len(names), len(shown))
    return Section(title="On the sphere", text=text, picture=picture, table=table)


def _curves_section(metrics: Sequence[Mapping[str, Any]]) -> Section:
    some = sorted({round(i * (len(metrics) - 1) / 9) for i in range(10)})
    rows = [[f"{metrics[i]['step']:,}", f"{metrics[i]['loss']:.4f}", f"{metrics[i]['lr']:.3g}"] for i in some]
    attempts = len({row["attempt"] for row in metrics if "attempt" in row})
    steps, tries = counted(len(metrics), "step"), counted(max(attempts, 1), "attempt")
    text = f"{steps} in {tries}; a step that was redone counts once."
    table = Table(caption="Loss and learning rate at some steps", head=("step", "loss", "learning rate"), rows=rows)
    return Section(title="Training", text=text, picture=figures.learning_curves(metrics), table=table)


def provenance(result: Mapping[str, Any]) -> Table:
    """Return the table that says where the figures come from."""
    checkpoint = result["checkpoint"]
    rows = (
        ("weights", f"{checkpoint['name']}: step {checkpoint['step']}, attempt {checkpoint['attempt']}"),
        ("chosen by", result["chosen_by"]),
        ("network", result["model"]),
        ("loss", result["loss"]),
        ("training seed", str(result["seed"])),
        ("ranks that judged", str(result["world_size"])),
        ("data (SHA-256 of the table of samples)", result["data_digest"]),
        ("result.json, version", str(result["schema_version"])),
    )
    return Table(caption="Where the figures come from", head=("what", "value"), rows=rows)


def _shown(counts: Sequence[int]) -> list[int]:
    """Return the labels to show, ascending: all, or those with most slices."""
    return sorted(sorted(range(len(counts)), key=lambda label: (-counts[label], label))[:MOST_CLASSES])


def _left_out(classes: int, shown: int) -> str:
    return "" if classes == shown else f" Shown are the {shown} classes with most test slices of {classes:,}."


def _recall(counts: Sequence[Sequence[int]], row: int) -> str:
    total = sum(counts[row])
    return f"{counts[row][row] / total:.1%}" if total else NONE


def _degrees(angle: float) -> str:
    return NONE if math.isnan(angle) else f"{angle:.1f}°"
