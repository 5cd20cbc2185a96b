"""The sections on differences: between losses, against the control, and between splits of the same data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hsadml_dist.report.combined_figures import ForestPoint, ForestRow, differences
from hsadml_dist.report.combined_wording import loss_title, p_number, points, points_span, shards_title, side_title
from hsadml_dist.report.page import Table
from hsadml_dist.report.section import ReportSection
from hsadml_dist.report.wording import CONTROLS, NONE, share_text


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
