"""The sections of the page on several runs: a figure each, what it shows, and its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hsadml_dist.report.classifiers import METHODS, ordered_methods
from hsadml_dist.report.classifiers import method_title as method_title
from hsadml_dist.report.combined_differences import differences_section, splits_section
from hsadml_dist.report.combined_figures import ForestPoint, ForestRow, forest
from hsadml_dist.report.combined_wording import loss_title, shards_title, strictest_pools
from hsadml_dist.report.page import Table
from hsadml_dist.report.section import ReportSection
from hsadml_dist.report.wording import CONTROLS, NONE

KNN = METHODS["knn"]
QUOTED_CLASSES = frozenset(("glioma", "meningioma", "pituitary"))
QUOTED = (("sphereface", 0.9869), ("softmax", 0.9847))
"""Accuracies by k-NN, k = 1, of Verma and Singh 2022, arXiv 2201.12269, on the CE-MRI images."""


def sections(combined: Mapping[str, Any]) -> Iterator[ReportSection]:
    """Yield the sections, the most asked for first."""
    yield _accuracies(combined)
    if any(one["kind"] in ("losses", "control") for one in combined["comparisons"]):
        yield differences_section(combined)
    if any(one["kind"] == "splits" for one in combined["comparisons"]):
        yield splits_section(combined)
    yield _methods(combined)
    yield _parts(combined)


def provenance(combined: Mapping[str, Any]) -> list[Table]:
    """Return the tables that say where the figures come from."""
    runs = [
        (
            one["name"],
            one["split_unit"],
            loss_title(one["loss"]),
            str(one["fold"]),
            str(one["seed"]),
            f"step {one['step']:,}, {one['chosen_by']}",
            f"{one['slices']:,}",
            f"{one['knn_accuracy']:.1%}",
        )
        for one in combined["sources"]
    ]
    head = ("run", "split by", "loss", "fold", "seed", "weights", "slices", KNN)
    digests = dict.fromkeys((pool["split_unit"], pool["data_digest"]) for pool in combined["pools"])
    return [
        Table(caption="The runs", head=head, rows=runs),
        Table(caption="Shards: SHA-256 of the table of samples", head=("split by", "digest"), rows=list(digests)),
    ]


def _accuracies(combined: Mapping[str, Any]) -> ReportSection:
    rows = [_accuracy_marks(combined, pool) for pool in combined["pools"]]
    table_rows = [_accuracy_row(combined, pool) for pool in combined["pools"]]
    level = f"{combined['level']:.0%}"
    head = (
        "split by",
        "loss",
        f"{KNN}: % ({level} interval)",
        "balanced: %",
        f"raw pixels: % ({level} interval)",
        "folds",
        "slices",
        "persons",
    )
    text = (
        "A slice is judged by the training that held its fold out, by the class of the one nearest training slice; all"
        " folds are pooled, seeds averaged on each slice. Intervals: percentile bootstrap of"
        f" {combined['resamples']:,} samples of whole persons. They take persons as independent, though trainings of"
        " one cross-validation share most of their training slices. Raw pixels, the control: the nearest training"
        " slice by its 64 x 64 pixels, nothing learnt."
    )
    caption = "Accuracy over all folds judged, by split and loss"
    if frozenset(combined["classes"]) == QUOTED_CLASSES:
        table_rows += [("quoted", loss_title(loss), f"{100 * value:.2f}", *([NONE] * 5)) for loss, value in QUOTED]
        text += (
            " Quoted rows: what Verma and Singh (2022, arXiv 2201.12269) report on the real CE-MRI images. How they"
            " split them is not known, and network, preprocessing and slices are others than here: the quotation"
            " stands beside the leaky splits because a high figure alone does not tell which split it is of."
        )
    picture = forest(rows, what="Accuracy of the nearest neighbour with its interval, the raw-pixel control below")
    table = Table(caption=caption, head=head, rows=table_rows)
    return ReportSection(title="Accuracy by loss and split", text=text, picture=picture, tables=[table])


def _accuracy_marks(combined: Mapping[str, Any], pool: Mapping[str, Any]) -> ForestRow:
    methods = pool["methods"]
    marks = [_mark(KNN, methods["knn"])]
    if "raw_pixels" in methods:
        marks.append(_mark(method_title("raw_pixels"), methods["raw_pixels"], is_control=True))
    return ForestRow(name=loss_title(pool["loss"]), group=f"split by {shards_title(combined, pool)}", marks=marks)


def _mark(series: str, merit: Mapping[str, Any], *, is_control: bool = False) -> ForestPoint:
    return ForestPoint(series=series, value=merit["accuracy"], interval=merit["interval"], is_control=is_control)


def _accuracy_row(combined: Mapping[str, Any], pool: Mapping[str, Any]) -> tuple[str, ...]:
    knn, raw = pool["methods"]["knn"], pool["methods"].get("raw_pixels")
    persons = NONE if pool["persons"] is None else f"{pool['persons']:,}"
    return (
        shards_title(combined, pool),
        loss_title(pool["loss"]),
        _short(knn),
        f"{100 * knn['balanced_accuracy']:.1f}",
        NONE if raw is None else _short(raw),
        f"{len(pool['folds'])} of {len(pool['expected_folds'])}",
        f"{pool['slices']:,}",
        persons,
    )


def _short(merit: Mapping[str, Any]) -> str:
    """Return an accuracy with its interval in percent, short enough for a cell."""
    span = merit["interval"]
    bounds = "" if span is None else f" ({100 * span[0]:.1f}\N{EN DASH}{100 * span[1]:.1f})"
    return f"{100 * merit['accuracy']:.1f}{bounds}"


def _methods(combined: Mapping[str, Any]) -> ReportSection:
    pools = strictest_pools(combined)
    methods = ordered_methods({method: one for pool in pools for method, one in pool["methods"].items()})
    rows, table_rows = [], []
    for method in methods:
        having = [(pool, pool["methods"][method]) for pool in pools if method in pool["methods"]]
        marks = [
            ForestPoint(series=loss_title(pool["loss"]), value=m["accuracy"], interval=m["interval"])
            for pool, m in having
        ]
        if method in CONTROLS:
            first = having[0][1]
            marks = [
                ForestPoint(series="control", value=first["accuracy"], interval=first["interval"], is_control=True)
            ]
        rows.append(ForestRow(name=method_title(method), marks=marks))
        cells = {pool["loss"]: _short(merit) for pool, merit in having}
        table_rows.append([method_title(method), *(cells.get(pool["loss"], NONE) for pool in pools)])
    unit = pools[0]["split_unit"]
    text = (
        f"Split by {unit}. All methods but the controls read the same embeddings. The figure of this page is k-NN with"
        " k = 1, fixed beforehand; the best of many, picked afterwards, is flattered by the picking."
    )
    head = ("method", *(loss_title(pool["loss"]) for pool in pools))
    caption = f"Accuracy and {combined['level']:.0%} interval in percent, split by {unit}"
    picture = forest(rows, what=f"Accuracy of each method and loss, split by {unit}")
    return ReportSection(
        title="Other classifiers",
        text=text,
        picture=picture,
        tables=[Table(caption=caption, head=head, rows=table_rows)],
    )


def _parts(combined: Mapping[str, Any]) -> ReportSection:
    """Return the section on folds, with the seeds where there are several."""
    pools = strictest_pools(combined)
    rows = [
        ForestRow(
            name=f"fold {fold}",
            marks=[
                ForestPoint(series=loss_title(pool["loss"]), value=part["accuracy"], interval=None)
                for pool in pools
                for part in pool["by_fold"]
                if part["number"] == fold
            ],
        )
        for fold in sorted({fold for pool in pools for fold in pool["folds"]})
    ]
    tables = [_parts_table(pools, "fold")]
    if any(len(pool["seeds"]) > 1 for pool in pools):
        tables.append(_parts_table(pools, "seed"))
    unit = pools[0]["split_unit"]
    text = (
        f"{KNN}, split by {unit}. Folds differ because persons do; the spread between them is no measure of how sure"
        " the pooled figure is. Seeds, where there are several, show what the luck of a training amounts to."
    )
    picture = forest(rows, what=f"Accuracy of the nearest neighbour in each fold, split by {unit}")
    return ReportSection(title="Fold by fold", text=text, picture=picture, tables=tables)


def _parts_table(pools: Sequence[Mapping[str, Any]], what: str) -> Table:
    found: dict[int, dict[str, Mapping[str, Any]]] = {}
    for pool in pools:
        for part in pool[f"by_{what}"]:
            found.setdefault(part["number"], {})[pool["loss"]] = part
    rows = []
    for number, by_loss in sorted(found.items()):
        cells = [f"{by_loss[p['loss']]['accuracy']:.1%}" if p["loss"] in by_loss else NONE for p in pools]
        most = max(by_loss.values(), key=lambda part: part["slices"])
        persons = NONE if most["persons"] is None else f"{most['persons']:,}"
        rows.append([f"{what} {number}", *cells, f"{most['slices']:,}", persons])
    head = (what, *(loss_title(pool["loss"]) for pool in pools), "slices", "persons")
    caption = {"fold": "Accuracy fold by fold", "seed": "Accuracy seed by seed, folds pooled"}[what]
    return Table(caption=caption, head=head, rows=rows)
