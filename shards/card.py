"""The dataset card: content, split and caveats of a folder of shards, as JSON and as an HTML page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsadml_dist import atomic
from hsadml_dist.data.index import ShardIndex
from hsadml_dist.errors import DataError
from hsadml_dist.json_parsing import INVALID, parse_json
from hsadml_dist.report.page import Table, render_page
from hsadml_dist.shards.class_gaps import class_remarks
from hsadml_dist.shards.identical_images import identical_remarks
from hsadml_dist.shards.similar_names import class_name_hints
from hsadml_dist.shards.split import unit_name
from hsadml_dist.shards.summary import AuthorFolds, DatasetSummary, GroupCount, summarise

if TYPE_CHECKING:  # these modules need numpy, and a login node reads the card's figures without it
    from hsadml_dist.shards.contact_sheet import ContactStrip
    from hsadml_dist.shards.leakage import LeakageReport

CARD_JSON = "card.json"
CARD_PAGE = "card.html"
MAX_SKIPPED_ROWS = 50
"""Skipped samples that the page lists; the JSON lists all."""

RAW_PIXEL_KNN_KEY = "raw_pixel_knn"


def write_card(folder: Path, index: ShardIndex, threads: int) -> LeakageReport:
    """Write ``card.json`` and ``card.html`` for the tars of ``index`` in ``folder``; return the raw-pixel baseline."""
    from hsadml_dist.shards.contact_sheet import contact_strips, read_thumbnails
    from hsadml_dist.shards.leakage import measure_leakage, select_slices

    summary = summarise(index)
    rows = [index.samples[position] for position in select_slices(index)]
    leakage = measure_leakage(rows, read_thumbnails(folder, index, rows, threads), index)
    atomic.write_text(folder / CARD_JSON, card_text(summary, leakage))
    atomic.write_text(folder / CARD_PAGE, card_page(summary, leakage, tuple(contact_strips(folder, index))))
    return leakage


def card_text(summary: DatasetSummary, leakage: LeakageReport) -> str:
    """Return the text of ``card.json``: the summary, and the raw-pixel baseline by split unit."""
    return json.dumps({**asdict(summary), RAW_PIXEL_KNN_KEY: asdict(leakage)}, indent=2) + "\n"


def load_raw_pixel_knn(folder: Path) -> dict[str, Any]:
    """Return the raw-pixel baseline in ``card.json``: ``accuracy`` by split unit, ``slices``, ``side``.

    Raises:
        DataError: The card is missing or damaged.
    """
    try:
        return parse_json((folder / CARD_JSON).read_bytes())[RAW_PIXEL_KNN_KEY]
    except (OSError, *INVALID) as error:
        raise DataError(f"{folder}: {CARD_JSON} is missing or damaged; run hsadml shards verify {folder}") from error


def card_page(summary: DatasetSummary, leakage: LeakageReport, strips: Sequence[ContactStrip]) -> str:
    """Return the text of ``card.html``."""
    values = {
        "headline": _headline(summary),
        "remarks": list(remarks(summary)),
        "facts": list(_facts(summary)),
        "strips": strips,
        "has_masks": summary.masks > 0,
        "folds": _folds_table(summary),
        "classes": _classes_table(summary),
        "author_folds": None if summary.author_folds is None else _author_folds_table(summary.author_folds),
        "leakage": _leakage_table(summary, leakage),
        "identical": _identical_table(summary) if summary.identical.groups else None,
        "conflicts": _conflicts_table(summary) if summary.identical.label_conflicts else None,
        "skipped": _skipped_table(summary) if summary.skipped else None,
        "provenance": _provenance_table(summary),
    }
    return render_page("hsadml_dist.shards", "card.html", values)


def remarks(summary: DatasetSummary) -> Iterator[str]:
    """Yield what a user should know before training on the shards."""
    if summary.unit != "person":
        known = "are not known" if summary.total.persons is None else "were not kept apart"
        yield (
            f"Split by {unit_name(summary.unit)}. Patients {known}: slices of one patient may be in both training and "
            "test folds, which inflates every accuracy measured on these folds."
        )
    if summary.persons_in_two_classes:
        yield f"{plural(summary.persons_in_two_classes, 'patient')} with slices of more than one class."
    if summary.repeated_images:
        yield (
            f"{plural(summary.repeated_images, 'image')} identical to another one, "
            f"{summary.repeats_across_folds} of them across folds."
        )
    yield from identical_remarks(summary.identical)
    yield from class_remarks(summary)
    yield from class_name_hints(summary.classes)
    if summary.skipped:
        yield f"{plural(len(summary.skipped), 'item')} of the source skipped, because nothing in it can be used."
    if summary.author_folds is not None:
        yield author_folds_remark(summary.author_folds)
    if summary.source == "phantom":
        yield "Generated patients: results on them say nothing about real patients."
    else:
        yield "Images are not de-identified: check them for burned-in names before you share the shards."


def author_folds_remark(folds: AuthorFolds) -> str:
    """Return a sentence on which units the publisher's folds keep apart."""
    split_units = {"exam": folds.torn_exams, "patient": folds.torn_persons}
    disjoint = [unit for unit, count in split_units.items() if count == 0]
    problems = [f"{plural(count, unit)} in more than one fold" for unit, count in split_units.items() if count]
    problems += [f"{unit}s are not known" for unit, count in split_units.items() if count is None]
    if disjoint:
        text = f"are disjoint by {' and '.join(disjoint)}{' only' if problems else ''}"
    else:
        text = "keep neither exams nor patients apart"
    return f"The publisher's folds {text}{': ' if problems else ''}{', '.join(problems)}."


def plural(count: int, noun: str) -> str:
    """Return count and noun, for instance ``1 patient`` or ``2 patients``."""
    return f"{count} {noun}{'s' * (count != 1)}"


def _headline(summary: DatasetSummary) -> str:
    persons = summary.total.persons
    patients = "of an unknown number of patients" if persons is None else f"of {plural(persons, 'patient')}"
    return (
        f"{plural(summary.total.samples, 'slice')} {patients} in {len(summary.classes)} classes, "
        f"in {len(summary.folds)} folds split by {unit_name(summary.unit)}."
    )


def _facts(summary: DatasetSummary) -> Iterator[tuple[str, str]]:
    yield "slices", str(summary.total.samples)
    yield "patients", _count_text(summary.total.persons)
    yield "exams", _count_text(summary.total.exams)
    yield "split by", unit_name(summary.unit)
    yield "pixels", f"{summary.size} x {summary.size}, 16 bits"
    yield "planes", ", ".join(f"{plane} {count}" for plane, count in summary.planes.items())
    yield "masks", str(summary.masks)
    yield "skipped", str(len(summary.skipped))


def _count_text(count: int | None) -> str:
    return "unknown" if count is None else str(count)


def _count_cells(count: GroupCount) -> tuple[str, str, str]:
    return str(count.samples), _count_text(count.persons), _count_text(count.exams)


def _classes_table(summary: DatasetSummary) -> Table:
    rows = [
        (name, *_count_cells(count), f"{count.samples / summary.total.samples:.1%}")
        for name, count in summary.classes.items()
    ]
    head = ("class", "slices", "patients", "exams", "share")
    return Table(caption="Slices, patients and exams by class", head=head, rows=rows)


def _folds_table(summary: DatasetSummary) -> Table:
    groups = [*((str(fold), count) for fold, count in summary.folds.items()), ("all", summary.total)]
    rows = [
        (name, *_count_cells(count), *(str(count.by_class[class_name]) for class_name in summary.classes))
        for name, count in groups
    ]
    head = ("fold", "slices", "patients", "exams", *summary.classes)
    caption = f"Slices by fold and class; no {unit_name(summary.unit)} is in two folds"
    return Table(caption=caption, head=head, rows=rows)


def _author_folds_table(folds: AuthorFolds) -> Table:
    rows = [(str(fold), str(count)) for fold, count in folds.samples.items()]
    return Table(caption=author_folds_remark(folds), head=("publisher's fold", "slices"), rows=rows)


def _leakage_table(summary: DatasetSummary, leakage: LeakageReport) -> Table:
    rows = [
        (f"{unit_name(unit)}{' (these folds)' * (unit == summary.unit)}", f"{accuracy:.3f}")
        for unit, accuracy in leakage.accuracy.items()
    ]
    caption = (
        f"Nearest neighbour in other folds, in {leakage.side} x {leakage.side} raw pixels, without learning; "
        f"{leakage.slices} slices"
    )
    return Table(caption=caption, head=("folds split by", "accuracy"), rows=rows)


def _identical_table(summary: DatasetSummary) -> Table:
    found = summary.identical
    rows = [
        ("all", str(found.groups)),
        ("in more than one fold", str(found.across_folds)),
        ("in more than one of the publisher's folds", _count_text(found.across_author_folds)),
        ("in more than one class", str(found.label_conflicts)),
    ]
    return Table(
        caption="Groups of two or more images with equal pixels", head=("identical images", "groups"), rows=rows
    )


def _conflicts_table(summary: DatasetSummary) -> Table:
    examples = summary.identical.conflict_examples
    rows = [(one.first_key, one.first_class, one.second_key, one.second_class) for one in examples]
    caption = (
        f"{len(rows)} of {plural(summary.identical.label_conflicts, 'image')} in more than one class, by sample key"
    )
    return Table(caption=caption, head=("sample", "class", "identical sample", "class"), rows=rows)


def _skipped_table(summary: DatasetSummary) -> Table:
    rows = [(skip.where, skip.reason) for skip in summary.skipped[:MAX_SKIPPED_ROWS]]
    caption = f"{len(rows)} of {plural(len(summary.skipped), 'skipped item')}; {CARD_JSON} lists all"
    return Table(caption=caption, head=("sample", "reason"), rows=rows)


def _provenance_table(summary: DatasetSummary) -> Table:
    rows = [
        ("source", summary.source),
        ("seed", str(summary.seed)),
        ("tars", f"{summary.shards}, {summary.megabytes:.1f} MB"),
        ("schema", str(summary.schema)),
        ("digest (SHA-256)", summary.digest),
    ]
    caption = "Equal digests mean equal images, labels, folds and order"
    return Table(caption=caption, head=("property", "value"), rows=rows)
