"""A part of a report's page, and what its parts share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hsadml_dist.report.cases import RenderedExample
from hsadml_dist.report.drawing import EmbeddedImage
from hsadml_dist.report.page import Table
from hsadml_dist.report.wording import NONE

MOST_CLASSES = 12
"""Classes that a figure shows by name; of more, those with most test slices."""

_MOST_NAMED_COLUMNS = 5


@dataclass(frozen=True, kw_only=True)
class ReportSection:
    """A figure, what it shows, and its numbers.

    Attributes:
        title: Its heading.
        text: What the figure shows and what it does not.
        picture: The figure; None where a table or pictures of cases stand for it.
        tables: The numbers.
        cases: Cases with pictures.
    """

    title: str
    text: str
    tables: Sequence[Table]
    picture: EmbeddedImage | None = None
    cases: Sequence[RenderedExample] = ()


def shown(counts: Sequence[int]) -> list[int]:
    """Return the labels to show, ascending: all, or those with most slices."""
    return sorted(sorted(range(len(counts)), key=lambda label: (-counts[label], label))[:MOST_CLASSES])


def left_out(classes: int, shown_classes: int) -> str:
    """Say how many classes are shown of how many; nothing where all are."""
    if classes == shown_classes:
        return ""
    return f" Shown are the {shown_classes} classes with most test slices of {classes:,}."


def square_heads(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the headings of the rows and of the columns of a table of classes by classes.

    Names are headings of columns while they fit on a page; then numbers are, which the rows repeat before the names.
    """
    if len(names) <= _MOST_NAMED_COLUMNS:
        return list(names), list(names)
    numbers = [str(place) for place in range(1, len(names) + 1)]
    return [f"{number}: {name}" for number, name in zip(numbers, names, strict=True)], numbers


def degrees(angle: float | None) -> str:
    """Return an angle as text; a dash where there is none."""
    return NONE if angle is None or math.isnan(angle) else f"{angle:.1f}°"
