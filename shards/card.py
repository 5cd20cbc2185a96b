"""The dataset card: what is in a folder of shards, how it was split, and what to beware of; as JSON and as a page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsadml_dist.data.index import ShardIndex
from hsadml_dist.errors import DataError
from hsadml_dist.report.page import Table, render_page
from hsadml_dist.shards.summary import AuthorFolds, DatasetSummary, GroupCount, summarise

if TYPE_CHECKING:  # numpy is not for a login node, which asks here for the card's figures alone
    from hsadml_dist.shards.contact_sheet import Strip
    from hsadml_dist.shards.leakage import LeakageReport

CARD_JSON = "card.json"
CARD_PAGE = "card.html"
MOST_SKIPS = 50
"""Skipped rows that the page names; the JSON has all."""

UNKNOWN = "unknown"
RAW_PIXEL_KNN_KEY = "raw_pixel_knn"


def write_card(folder: Path, index: ShardIndex, threads: int) -> LeakageReport:
    """Write ``card.json`` and ``card.html`` for the tars of ``index``, which lie in ``folder``; returns the control."""
    from hsadml_dist.shards.contact_sheet import strips, thumbnails
    from hsadml_dist.shards.leakage import measure_leakage, select_slices

    summary = summarise(index)
    rows = [index.samples[place] for place in select_slices(index)]
    leak = measure_leakage(rows, thumbnails(folder, index, rows, threads), index)
    (folder / CARD_JSON).write_text(card_text(summary, leak), encoding="utf-8")
    (folder / CARD_PAGE).write_text(card_page(summary, leak, tuple(strips(folder, index))), encoding="utf-8")
    return leak


def card_text(summary: DatasetSummary, leak: LeakageReport) -> str:
    """Return the text of ``card.json``: the summary, and the raw-pixel control by split unit."""
    return json.dumps({**asdict(summary), RAW_PIXEL_KNN_KEY: asdict(leak)}, indent=2) + "\n"


def load_raw_pixel_knn(folder: Path) -> dict[str, Any]:
    """Return what ``card.json`` says of raw pixels: ``accuracy`` by split unit, ``slices``, ``side``.

    Raises:
        DataError: The card is missing or damaged.
    """
    try:
        return json.loads((folder / CARD_JSON).read_bytes())[RAW_PIXEL_KNN_KEY]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}: {CARD_JSON} is missing or damaged: run hsadml shards verify") from error


def card_page(summary: DatasetSummary, leak: LeakageReport, pictures: Sequence[Strip]) -> str:
    """Return the text of ``card.html``."""
    values = {
        "headline": _headline(summary),
        "remarks": list(remarks(summary)),
        "facts": list(_facts(summary)),
        "strips": pictures,
        "has_masks": summary.masks > 0,
        "folds": _folds_table(summary),
        "classes": _classes_table(summary),
        "author_folds": None if summary.author_folds is None else _author_table(summary.author_folds),
        "leak": _leak_table(summary, leak),
        "skips": _skips_table(summary) if summary.skipped else None,
        "unit": summary.unit,
        "provenance": _provenance(summary),
    }
    return render_page("hsadml_dist.shards", "card.html", values)


def remarks(summary: DatasetSummary) -> Iterator[str]:
    """Yield what to know before the shards are used."""
    if summary.unit != "person":
        known = "are not known" if summary.total.persons is None else "were not kept apart"
        yield (
            f"unit: {summary.unit}. Persons {known}: slices of one person may lie on both sides of a split, "
            "and every accuracy on these folds is flattered."
        )
    if summary.persons_in_two_classes:
        yield f"{counted(summary.persons_in_two_classes, 'person')} with slices of more than one class."
    if summary.repeated_images:
        yield (
            f"{counted(summary.repeated_images, 'image')} with the very bytes of another, "
            f"{summary.repeats_across_folds} of them across folds."
        )
    if summary.skipped:
        yield f"Left out, since it cannot be used: {counted(len(summary.skipped), 'sample')} of the source."
    if summary.author_folds is not None:
        yield author_remark(summary.author_folds)
    if summary.source == "phantom":
        yield "Generated patients: nothing measured here says anything about real ones."
    else:
        yield "Pixels are as they came: look for names burned into images before you pass the shards on."


def author_remark(folds: AuthorFolds) -> str:
    """Say what the publisher's folds keep apart."""
    torn = {"exam": folds.torn_exams, "person": folds.torn_persons}
    kept = [unit for unit, number in torn.items() if number == 0]
    faults = [f"{counted(number, unit)} on both sides" for unit, number in torn.items() if number]
    faults += [f"{unit}s are not known" for unit, number in torn.items() if number is None]
    what = f"are disjoint by {' and '.join(kept)}{' only' * bool(faults)}" if kept else "keep nothing apart"
    return f"The publisher's folds {what}{': ' * bool(faults)}{', '.join(faults)}."


def counted(number: int, word: str) -> str:
    """Return number and word, for instance ``1 person`` or ``2 persons``."""
    return f"{number} {word}{'s' * (number != 1)}"


def _headline(summary: DatasetSummary) -> str:
    persons = (
        "of persons unknown" if summary.total.persons is None else f"of {counted(summary.total.persons, 'person')}"
    )
    return (
        f"{counted(summary.total.samples, 'slice')} {persons} in {len(summary.classes)} classes, "
        f"in {len(summary.folds)} folds split by {summary.unit}."
    )


def _facts(summary: DatasetSummary) -> Iterator[tuple[str, str]]:
    yield "slices", str(summary.total.samples)
    yield "persons", _known(summary.total.persons)
    yield "exams", _known(summary.total.exams)
    yield "unit", summary.unit
    yield "pixels", f"{summary.size} x {summary.size}, 16 bits"
    yield "planes", ", ".join(f"{plane} {count}" for plane, count in summary.planes.items())
    yield "masks", str(summary.masks)
    yield "left out", str(len(summary.skipped))


def _known(count: int | None) -> str:
    return UNKNOWN if count is None else str(count)


def _classes_table(summary: DatasetSummary) -> Table:
    rows = [
        (
            name,
            str(count.samples),
            _known(count.persons),
            _known(count.exams),
            f"{count.samples / summary.total.samples:.1%}",
        )
        for name, count in summary.classes.items()
    ]
    return Table(
        caption="Slices, persons and exams by class", head=("class", "slices", "persons", "exams", "share"), rows=rows
    )


def _folds_table(summary: DatasetSummary) -> Table:
    def row(name: str, count: GroupCount) -> tuple[str, ...]:
        classes = (str(count.by_class[one]) for one in summary.classes)
        return (name, str(count.samples), _known(count.persons), _known(count.exams), *classes)

    rows = [*(row(str(fold), count) for fold, count in summary.folds.items()), row("all", summary.total)]
    head = ("fold", "slices", "persons", "exams", *summary.classes)
    return Table(caption=f"Slices by fold (no {summary.unit} is in two) and class", head=head, rows=rows)


def _author_table(folds: AuthorFolds) -> Table:
    rows = [(str(fold), str(count)) for fold, count in folds.samples.items()]
    return Table(caption=author_remark(folds), head=("publisher's fold", "slices"), rows=rows)


def _leak_table(summary: DatasetSummary, leak: LeakageReport) -> Table:
    names = {unit: f"{unit} (these folds)" if unit == summary.unit else unit for unit in leak.accuracy}
    rows = [(names[unit], f"{accuracy:.3f}") for unit, accuracy in leak.accuracy.items()]
    caption = (
        f"Nearest other slice in {leak.side} x {leak.side} raw pixels, nothing learnt; {leak.slices} slices, all folds"
    )
    return Table(caption=caption, head=("folds split by", "accuracy"), rows=rows)


def _skips_table(summary: DatasetSummary) -> Table:
    rows = [(skip.where, skip.reason) for skip in summary.skipped[:MOST_SKIPS]]
    caption = f"{len(rows)} of {counted(len(summary.skipped), 'sample')} left out; all are in {CARD_JSON}"
    return Table(caption=caption, head=("where", "why"), rows=rows)


def _provenance(summary: DatasetSummary) -> Table:
    rows = [
        ("source", summary.source),
        ("seed", str(summary.seed)),
        ("tars", f"{summary.shards}, {summary.megabytes:.1f} MB"),
        ("schema", str(summary.schema)),
        ("digest (SHA-256)", summary.digest),
    ]
    return Table(caption="Equal digests mean equal images, labels, folds and order", head=("what", "value"), rows=rows)
