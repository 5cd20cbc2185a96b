"""Example test slices with their nearest training slices, as embedded pictures."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from hsadml_dist.report.formatting import NONE
from hsadml_dist.report.page import Table
from hsadml_dist.report.plot_style import EmbeddedImage

SIDE = 128
"""Pixels of a picture's longer side."""
MAX_EXAMPLES = 10
MAX_NEIGHBOURS = 3
"""Together they keep a page under 2 MB even where no picture can be compressed."""


@dataclass(frozen=True, kw_only=True)
class ExampleImage:
    """One slice and what is said of it.

    Attributes:
        image_HW: Grey values of any number type; they are stretched between their 0.5th and 99.5th percentile.
        caption: For instance class and cosine.
        same_class: Whether it is of the query's class; None: not marked (the query itself).
    """

    image_HW: np.ndarray
    caption: str
    same_class: bool | None = None


@dataclass(frozen=True, kw_only=True)
class NeighbourExample:
    """A test slice and its nearest training slices.

    Attributes:
        title: What it is an example of.
        query: The test slice.
        neighbours: The nearest training slices, nearest first; those beyond the third are not shown.
        is_correct: Whether the nearest one is of the query's class.
    """

    title: str
    query: ExampleImage
    neighbours: Sequence[ExampleImage]
    is_correct: bool


@dataclass(frozen=True, kw_only=True)
class RenderedImage:
    """A shot as the page holds it; ``mark`` is ``same``, ``other`` or nothing."""

    picture: EmbeddedImage
    caption: str
    mark: str


@dataclass(frozen=True, kw_only=True)
class RenderedExample:
    """A case as the page holds it: its verdict in a word, the query first among its shots."""

    number: int
    title: str
    verdict: str
    shots: Sequence[RenderedImage]


def shown_cases(cases: Sequence[NeighbourExample]) -> list[RenderedExample]:
    """Return the first :data:`MAX_EXAMPLES` cases with their pictures."""
    return [_shown_case(number, case) for number, case in enumerate(cases[:MAX_EXAMPLES], start=1)]


def cases_table(cases: Sequence[RenderedExample]) -> Table:
    """Return what is written under the pictures, a row a case."""
    columns = max((len(case.shots) for case in cases), default=1)
    rows = []
    for case in cases:
        captions = [shot.caption for shot in case.shots] + [NONE] * (columns - len(case.shots))
        rows.append([str(case.number), case.verdict, *captions])
    neighbours = [f"neighbour {place}" for place in range(1, columns)]
    head = ("case", "nearest class is", "query", *neighbours)
    return Table(caption="The cases above in words", head=head, rows=rows)


def thumbnail_uri(image_HW: np.ndarray) -> str:
    """Return a grey picture of at most :data:`SIDE` pixels a side as a PNG data URI; an empty one is black."""
    grey = np.nan_to_num(np.asarray(image_HW, dtype=np.float64))
    low, high = np.percentile(grey, [0.5, 99.5]) if grey.size else (0.0, 0.0)
    stretched = np.clip((grey - low) * (255 / (high - low) if high > low else 0), 0, 255).astype(np.uint8)
    image = Image.fromarray(stretched if grey.size else np.zeros((1, 1), np.uint8))
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _shown_case(number: int, case: NeighbourExample) -> RenderedExample:
    query = _shown_shot(case.query, f"Case {number}, query: {case.query.caption}")
    others = [
        _shown_shot(shot, f"Case {number}, training slice {place} by nearness: {shot.caption}")
        for place, shot in enumerate(case.neighbours[:MAX_NEIGHBOURS], start=1)
    ]
    verdict = "right" if case.is_correct else "wrong"
    return RenderedExample(number=number, title=case.title, verdict=verdict, shots=[query, *others])


def _shown_shot(shot: ExampleImage, alt: str) -> RenderedImage:
    mark = {True: "same", False: "other", None: ""}[shot.same_class]
    words = f"{alt}; {mark} class" if mark else alt
    return RenderedImage(
        picture=EmbeddedImage(uri=thumbnail_uri(shot.image_HW), alt=words), caption=shot.caption, mark=mark
    )


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
