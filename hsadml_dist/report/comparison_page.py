"""Write ``combined.html``: the comparison of several runs as one self-contained page of at most 2 MB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hsadml_dist.atomic import write_text
from hsadml_dist.report.comparison_facts import (
    ComparisonDict,
    PoolDict,
    header,
    headline,
    page_mark,
    pool_mark,
    remarks,
    shards_title,
    strictest_pools,
)
from hsadml_dist.report.forest_plot import ForestPoint, ForestRow, draw_accuracies, draw_differences
from hsadml_dist.report.formatting import (
    CONTROLS,
    MISSING,
    loss_title,
    method_title,
    ordered_methods,
    p_value,
    percent,
    points,
    points_interval,
    thousands,
    unit_title,
)
from hsadml_dist.report.page import render_page
from hsadml_dist.report.trained_facts import trained_counts

PAGE_NAME = "combined.html"
QUOTED_SOURCE = "figshare"
QUOTED_CLASSES = frozenset(("glioma", "meningioma", "pituitary"))
QUOTED = {"sphereface": 0.9869, "softmax": 0.9847}
"""k-NN accuracy (k = 1) by Verma and Singh 2022, arXiv 2201.12269, on the CE-MRI images."""

Cells = Sequence[str]


def write_comparison_page(folder: Path, combined: Mapping[str, Any]) -> Path:
    """Write the page of ``combined.json``, as a dictionary, into an existing folder and return its path."""
    path = folder / PAGE_NAME
    write_text(path, render_comparison(combined))
    return path


def render_comparison(combined: Mapping[str, Any]) -> str:
    """Render the page; see :func:`write_comparison_page`."""
    kinds = {one["kind"] for one in combined["comparisons"]}
    values = {
        "combined": combined,
        "level": percent(combined["level"], 0),
        "headline": headline(combined),
        "remarks": remarks(combined),
        "header": header(combined),
        "mark": page_mark(combined),
        "unit": unit_title(strictest_pools(combined)[0]["split_unit"]),
        "losses": [loss_title(pool["loss"]) for pool in strictest_pools(combined)],
        "accuracy": _accuracy_section(combined),
        "differences": _differences_section(combined) if kinds & {"losses", "control"} else None,
        "splits": _splits_section(combined) if "splits" in kinds else None,
        "methods": _methods_section(combined),
        "folds": _folds_section(combined),
        "trained": {run["name"]: trained_counts({**run, "persons": None}) for run in combined["sources"]},
        "digests": dict.fromkeys((pool["split_unit"], pool["data_digest"]) for pool in combined["pools"]),
    }
    return render_page("hsadml_dist.report", "comparison.html", values)


def _accuracy_section(combined: Mapping[str, Any]) -> dict[str, Any]:
    """Return the accuracies of all pools, with the raw-pixel control."""
    drawn: list[ForestRow] = []
    rows: list[Cells] = []
    for pool in combined["pools"]:
        knn, raw = pool["methods"]["knn"], pool["methods"].get("raw_pixels")
        series = [_point(method_title("knn"), knn)]
        if raw is not None:
            series.append(_point(method_title("raw_pixels"), raw, is_control=True))
        split = shards_title(combined, pool)
        loss = f"{loss_title(pool['loss'])} {pool_mark(combined, pool)}".rstrip()
        drawn.append(ForestRow(name=loss, group=f"split by {split}", points=series))
        rows.append(
            (
                split,
                loss,
                _short(knn),
                f"{100 * knn['balanced_accuracy']:.1f}",
                MISSING if raw is None else _short(raw),
                f"{len(pool['folds'])} of {len(pool['expected_folds'])}",
                thousands(pool["slices"]),
                thousands(pool["persons"]),
            )
        )
    is_of_paper = all(pool["source"] == QUOTED_SOURCE for pool in combined["pools"])
    quoted = QUOTED if is_of_paper and frozenset(combined["classes"]) == QUOTED_CLASSES else {}
    rows += [("quoted", loss_title(loss), f"{100 * value:.2f}", *([MISSING] * 5)) for loss, value in quoted.items()]
    image = draw_accuracies(drawn, title="Accuracy of k-NN (k = 1) with its interval, and of the raw-pixel control")
    return {"image": image, "rows": rows, "is_quoted": bool(quoted)}


def _differences_section(combined: Mapping[str, Any]) -> dict[str, Any]:
    """Return the differences between losses, and between each loss and the control."""
    found = [one for one in combined["comparisons"] if one["kind"] in ("losses", "control")]
    order = list(dict.fromkeys(shards_title(combined, one["first"]) for one in found))
    found.sort(key=lambda one: order.index(shards_title(combined, one["first"])))
    titled = [(_difference_title(one), shards_title(combined, one["first"]), one) for one in found]
    by_knn = [row for row in titled if row[2]["first"]["method"] == "knn"]
    corrected = any(one["adjusted_p"] not in (None, one["test"]["permutation"]["p"]) for one in found)
    drawn = [_difference_row(name, f"split by {split}", one) for name, split, one in by_knn]
    image = draw_differences(drawn, title="Differences of accuracy with intervals; right of 0 the first is better")
    return {
        "image": image,
        "rows": [_test_row(name, split, one, corrected=corrected) for name, split, one in titled],
        "unclustered_rows": [_unclustered_row(name, split, one) for name, split, one in by_knn],
        "is_corrected": corrected,
        "unit": unit_title(found[0]["test"]["unit"]),
    }


def _splits_section(combined: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same slices under a leaky and a strict split; a control once, as it does not depend on the loss."""
    found: dict[tuple[str, ...], ComparisonDict] = {}
    for one in sorted(combined["comparisons"], key=lambda one: _is_control(one["first"])):
        if one["kind"] == "splits":
            first, second = one["first"], one["second"]
            loss = "" if _is_control(first) else first["loss"]
            found.setdefault((first["data_digest"], second["data_digest"], first["method"], loss), one)
    titled = []
    for one in found.values():
        first, second = one["first"], one["second"]
        title = method_title("raw_pixels") if first["method"] == "raw_pixels" else loss_title(first["loss"])
        splits = f"{unit_title(first['split_unit'])} against {unit_title(second['split_unit'])}"
        titled.append((title, splits, one))
    groups = list(dict.fromkeys(group for _, group, _ in titled))
    drawn = [_difference_row(*row) for row in sorted(titled, key=lambda row: groups.index(row[1]))]
    image = draw_differences(drawn, title="Accuracy gained by the leaky split, with intervals")
    return {"image": image, "rows": [_split_row(*row) for row in titled]}


def _methods_section(combined: Mapping[str, Any]) -> dict[str, Any]:
    """Return the accuracy of each method and loss under the strictest split."""
    pools = strictest_pools(combined)
    drawn, rows = [], []
    for method in ordered_methods({method: None for pool in pools for method in pool["methods"]}):
        found = {loss_title(pool["loss"]): pool["methods"][method] for pool in pools if method in pool["methods"]}
        if method in CONTROLS:
            series = [_point("control", next(iter(found.values())), is_control=True)]
        else:
            series = [_point(loss, figures) for loss, figures in found.items()]
        drawn.append(ForestRow(name=method_title(method), points=series))
        cells = (found.get(loss_title(pool["loss"])) for pool in pools)
        rows.append([method_title(method), *(MISSING if one is None else _short(one) for one in cells)])
    image = draw_accuracies(drawn, title=f"Accuracy of each method and loss, split by {_unit(pools)}")
    return {"image": image, "rows": rows}


def _folds_section(combined: Mapping[str, Any]) -> dict[str, Any]:
    """Return the accuracy of each fold, and of each seed if there are several."""
    pools = strictest_pools(combined)
    drawn = [
        ForestRow(
            name=f"fold {fold}",
            points=[
                ForestPoint(series=loss_title(pool["loss"]), value=part["accuracy"], interval=None)
                for pool in pools
                for part in pool["by_fold"]
                if part["number"] == fold
            ],
        )
        for fold in sorted({fold for pool in pools for fold in pool["folds"]})
    ]
    return {
        "image": draw_accuracies(drawn, title=f"Accuracy of k-NN (k = 1) in each fold, split by {_unit(pools)}"),
        "fold_rows": _part_rows(pools, "fold"),
        "seed_rows": _part_rows(pools, "seed") if any(len(pool["seeds"]) > 1 for pool in pools) else [],
    }


def _part_rows(pools: Sequence[PoolDict], part: str) -> list[Cells]:
    """Return a row per fold or seed: the accuracy of each loss, slices and patients."""
    found: dict[int, dict[str, Mapping[str, Any]]] = {}
    for pool in pools:
        for one in pool[f"by_{part}"]:
            found.setdefault(one["number"], {})[pool["loss"]] = one
    rows: list[Cells] = []
    for number, by_loss in sorted(found.items()):
        cells = (percent(by_loss[pool["loss"]]["accuracy"]) if pool["loss"] in by_loss else MISSING for pool in pools)
        largest = max(by_loss.values(), key=lambda one: one["slices"])
        rows.append([f"{part} {number}", *cells, thousands(largest["slices"]), thousands(largest["persons"])])
    return rows


def _test_row(name: str, split: str, comparison: ComparisonDict, *, corrected: bool) -> Cells:
    test, adjusted = comparison["test"], comparison["adjusted_p"]
    ties = test["units"] - test["units_for"] - test["units_against"]
    return [
        name,
        split,
        points(test["difference"]),
        points_interval(test["interval"]),
        p_value(test["permutation"]["p"]),
        *([MISSING if adjusted is None else p_value(adjusted)] if corrected else []),
        p_value(test["clustered"]["p"]),
        f"{test['units_for']} / {ties} / {test['units_against']}",
    ]


def _unclustered_row(name: str, split: str, comparison: ComparisonDict) -> Cells:
    test = comparison["test"]
    unclustered = test["unclustered_misleading"]
    return [
        name,
        split,
        thousands(test["slices"]),
        f"{test['slices_for']:,} / {test['slices_against']:,}",
        f"{unclustered['statistic']:.2f}",
        p_value(unclustered["p"]),
    ]


def _split_row(name: str, splits: str, comparison: ComparisonDict) -> Cells:
    test = comparison["test"]
    return [
        splits,
        name,
        percent(test["accuracy_second"]),
        percent(test["accuracy_first"]),
        points(test["difference"]),
        points_interval(test["interval"]),
        p_value(test["permutation"]["p"]),
        thousands(test["slices"]),
    ]


def _difference_row(name: str, group: str, comparison: ComparisonDict) -> ForestRow:
    is_control, test = _is_control(comparison["first"]), comparison["test"]
    series = "control" if is_control else "learnt"
    point = ForestPoint(series=series, value=test["difference"], interval=test["interval"], is_control=is_control)
    return ForestRow(name=name, group=group, points=[point])


def _point(series: str, figures: Mapping[str, Any], *, is_control: bool = False) -> ForestPoint:
    return ForestPoint(series=series, value=figures["accuracy"], interval=figures["interval"], is_control=is_control)


def _short(figures: Mapping[str, Any]) -> str:
    """Return an accuracy with its interval in percent, short enough for a table cell."""
    interval = figures["interval"]
    bounds = "" if interval is None else f" ({100 * interval[0]:.1f}\N{EN DASH}{100 * interval[1]:.1f})"
    return f"{100 * figures['accuracy']:.1f}{bounds}"


def _difference_title(comparison: ComparisonDict) -> str:
    first, second = comparison["first"], comparison["second"]
    method = ", by centres" if first["method"] == "head" else ""
    subtrahend = "raw pixels" if comparison["kind"] == "control" else loss_title(second["loss"])
    return f"{loss_title(first['loss'])} \N{MINUS SIGN} {subtrahend}{method}"


def _is_control(side: Mapping[str, Any]) -> bool:
    return side["method"] in CONTROLS


def _unit(pools: Sequence[PoolDict]) -> str:
    return unit_title(pools[0]["split_unit"])
