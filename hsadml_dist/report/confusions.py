"""What is taken for what, where classes are too many for a table of each by each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hsadml_dist.report.outcomes import outcome_bar
from hsadml_dist.report.page import Table
from hsadml_dist.report.section import ReportSection
from hsadml_dist.report.wording import counted


def confusions_section(result: Mapping[str, Any]) -> ReportSection:
    """Return the section on ``result["confusions"]``."""
    found, number = result["confusions"], len(result["classes"])
    unseen = number - found["classes"]
    text = (
        f"{number:,} classes are too many for a table of each by each. The bar counts classes by how many of their test"
        " slices have a nearest reference of their class."
    )
    if unseen:
        text += f" {unseen:,} of the classes have no test slice."
    return ReportSection(
        title="What is taken for what",
        text=text,
        picture=outcome_bar(_outcomes(found), "classes", "how many of their slices are right"),
        tables=[_summary(found), *([_pairs(result)] if found["worst"] else [])],
    )


def _outcomes(found: Mapping[str, Any]) -> dict[str, int]:
    some = found["classes"] - found["all_right"] - found["none_right"]
    return {"every slice right": found["all_right"], "some right": some, "none right": found["none_right"]}


def _summary(found: Mapping[str, Any]) -> Table:
    rows = [[name, f"{count:,}", f"{count / max(found['classes'], 1):.1%}"] for name, count in _outcomes(found).items()]
    return Table(caption="Classes by their test slices", head=("slices of the class", "classes", "share"), rows=rows)


def _pairs(result: Mapping[str, Any]) -> Table:
    found, names = result["confusions"], result["classes"]
    rows = [[names[one["label"]], names[one["said"]], f"{one['slices']:,}"] for one in found["worst"]]
    every = f"{counted(found['pairs'], 'pair')} of classes"
    is_whole = found["pairs"] == len(rows)
    caption = f"All that is mixed up: {every}" if is_whole else f"Mixed up most: {len(rows)} of {every}"
    return Table(caption=caption, head=("true class", "taken for", "slices"), rows=rows)
