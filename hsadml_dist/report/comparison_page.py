"""Write ``combined.html``: the comparison of several runs as one self-contained page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hsadml_dist.report.accuracy_sections import METHODS, ordered_methods
from hsadml_dist.report.accuracy_sections import method_title as method_title
from hsadml_dist.report.comparison_facts import (
    facts,
    headline,
    loss_title,
    p_number,
    points,
    points_span,
    remarks,
    shards_title,
    side_title,
    strictest_pools,
)
from hsadml_dist.report.forest_plot import ForestPoint, ForestRow, differences, forest
from hsadml_dist.report.formatting import CONTROLS, NONE, share_text
from hsadml_dist.report.neighbour_examples import ReportSection
from hsadml_dist.report.page import Table, render_page
from hsadml_dist.run.folder import replace_text


def differences_section(combined: Mapping[str, Any]) -> ReportSection:
    """Return the section on losses against each other and against the control."""
    ones = [one for one in combined["comparisons"] if one["kind"] in ("losses", "control")]
    titled = [(_comparison_title(one), shards_title(combined, one["first"]), one) for one in ones]
    order = list(dict.fromkeys(group for _, group, _ in titled))
    titled.sort(key=lambda row: order.index(row[1]))
    unit = ones[0]["test"]["unit"]
    text = (
        f"Both sides on the same slices. p: how often swapping the two sides on whole {unit}s at random gives a"
        f" difference at least as large. McNemar's test is by slice, with the variance between {unit}s (Obuchowski"
        " 1998). An interval that holds 0 shows no difference; it does not show that there is none."
    )
    if any(one["adjusted_p"] not in (None, one["test"]["permutation"]["p"]) for one in ones):
        text += " Holm's p is corrected for the number of pairs of losses under one split and method."
    drawn = [(name, group, one) for name, group, one in titled if one["first"]["method"] == "knn"]
    picture = differences(_rows(drawn), what="Differences of accuracy with intervals; right of 0 the first is ahead")
    return ReportSection(
        title="Differences", text=text, picture=picture, tables=[_tests_table(titled), _reference_table(drawn)]
    )


def splits_section(combined: Mapping[str, Any]) -> ReportSection:
    """Return the section on one loss under two splits."""
    seen: set[tuple[str, ...]] = set()
    titled = []
    for one in sorted(combined["comparisons"], key=lambda one: _is_control(one["first"])):
        first, second = one["first"], one["second"]
        control = _is_control(first)
        # The control is the same whatever the loss: one row says it.
        which = (first["data_digest"], second["data_digest"], first["method"], "" if control else first["loss"])
        if one["kind"] == "splits" and which not in seen:
            seen.add(which)
            titled.append((side_title(first), f"{first['split_unit']} against {second['split_unit']}", one))
    rows = [
        (
            group,
            name,
            share_text(one["test"]["accuracy_second"]),
            share_text(one["test"]["accuracy_first"]),
            points(one["test"]["difference"]),
            points_span(one["test"]["interval"]),
            p_number(one["test"]["permutation"]["p"]),
            f"{one['test']['slices']:,}",
        )
        for name, group, one in titled
    ]
    head = (
        "split by",
        "what",
        "strict split",
        "leaky split",
        "points",
        f"{combined['level']:.0%} interval",
        "p",
        "slices",
    )
    text = (
        "The same data with folds drawn in two ways, on the same test slices: under the leaky split other slices of the"
        " same person or exam stand among the training slices, under the strict one none does. What the leaky split"
        " adds is what recognising a person gives away; the raw pixels learn nothing, and what they gain was there to"
        " be had without any learning."
    )
    picture = differences(_rows(titled), what="What the leaky split adds to the accuracy, with intervals")
    caption = "Accuracy on the same slices under both splits"
    table = Table(caption=caption, head=head, rows=rows)
    return ReportSection(title="The same slices, split in two ways", text=text, picture=picture, tables=[table])


def _tests_table(titled: Sequence[tuple[str, str, Mapping[str, Any]]]) -> Table:
    adjusted = any(one["adjusted_p"] not in (None, one["test"]["permutation"]["p"]) for _, _, one in titled)
    rows = []
    for name, group, one in titled:
        test = one["test"]
        holm = [NONE if one["adjusted_p"] is None else p_number(one["adjusted_p"])] if adjusted else []
        even = test["units"] - test["units_for"] - test["units_against"]
        rows.append(
            [
                name,
                group,
                points(test["difference"]),
                points_span(test["interval"]),
                p_number(test["permutation"]["p"]),
                *holm,
                p_number(test["clustered"]["p"]),
                f"{test['units_for']} / {even} / {test['units_against']}",
            ]
        )
    test = titled[0][2]["test"]
    head = ["first \N{MINUS SIGN} second", "split by", "points", f"{test['level']:.0%} interval", "p"]
    head += (["Holm's p"] if adjusted else []) + ["McNemar's p", f"better / even / worse {test['unit']}s"]
    return Table(caption="First less second, on the slices that both have judged", head=head, rows=rows)


def _reference_table(titled: Sequence[tuple[str, str, Mapping[str, Any]]]) -> Table:
    rows = [
        [
            name,
            group,
            f"{one['test']['slices']:,}",
            f"{one['test']['slices_for']:,} / {one['test']['slices_against']:,}",
            f"{one['test']['unclustered_misleading']['statistic']:.2f}",
            p_number(one["test"]["unclustered_misleading"]["p"]),
        ]
        for name, group, one in titled
    ]
    head = ("first \N{MINUS SIGN} second", "split by", "slices", "better / worse slices", "chi-square", "misleading p")
    caption = "For reference only: McNemar's test as if slices of one person were independent; its p is too small"
    return Table(caption=caption, head=head, rows=rows)


def _rows(titled: Sequence[tuple[str, str, Mapping[str, Any]]]) -> list[ForestRow]:
    order = dict.fromkeys(group for _, group, _ in titled)
    return [
        ForestRow(
            name=name,
            group=group if " against " in group else f"split by {group}",
            marks=[
                ForestPoint(
                    series="control" if _is_control(one["first"]) else "learnt",
                    value=one["test"]["difference"],
                    interval=one["test"]["interval"],
                    is_control=_is_control(one["first"]),
                )
            ],
        )
        for wanted in order
        for name, group, one in titled
        if group == wanted
    ]


def _is_control(side: Mapping[str, Any]) -> bool:
    return side["method"] in CONTROLS


def _comparison_title(one: Mapping[str, Any]) -> str:
    method = ", by centres" if one["first"]["method"] == "head" else ""
    second = "raw pixels" if one["kind"] == "control" else loss_title(one["second"]["loss"])
    return f"{loss_title(one['first']['loss'])} \N{MINUS SIGN} {second}{method}"


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


PAGE_NAME = "combined.html"


def write_comparison_page(folder: Path, combined: Mapping[str, Any]) -> Path:
    """Write ``combined.html`` into a folder that exists; returns its path.

    Args:
        folder: Where to.
        combined: ``combined.json`` as a dictionary.
    """
    path = folder / PAGE_NAME
    replace_text(path, render_comparison(combined))
    return path


def render_comparison(combined: Mapping[str, Any]) -> str:
    """Return the page's text; see :func:`write_comparison_page`."""
    values = {
        "title": "Losses and splits compared",
        "headline": headline(combined),
        "remarks": list(remarks(combined)),
        "facts": facts(combined),
        "sections": list(sections(combined)),
        "provenance": provenance(combined),
    }
    return render_page("hsadml_dist.report", "combined.html", values)
