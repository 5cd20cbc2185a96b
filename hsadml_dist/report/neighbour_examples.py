"""Choose example test slices, and render them with their nearest training slices as embedded pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from hsadml_dist.data.index import ShardIndex
from hsadml_dist.evaluation.result import KNN, Predictions
from hsadml_dist.report.page import EmbeddedImage

SIDE = 128
"""Pixels of a picture's longer side."""
MAX_CORRECT = 3
MAX_INCORRECT = 5
MAX_EXAMPLES = 10
MAX_NEIGHBOURS = 3
"""Both limits keep a page under 2 MB even if no picture can be compressed."""


@dataclass(frozen=True, kw_only=True)
class ExampleImage:
    """One slice with a caption.

    Attributes:
        image_HW: Grey values of any number type, stretched between their 0.5th and 99.5th percentile.
        same_class: True if it is of the query's class; None for the query itself.
    """

    image_HW: np.ndarray
    caption: str
    same_class: bool | None = None


@dataclass(frozen=True, kw_only=True)
class NeighbourExample:
    """A test slice and its nearest training slices.

    Attributes:
        title: Classes of the query and of its nearest neighbour.
        neighbours: The nearest training slices, nearest first; the page shows :data:`MAX_NEIGHBOURS`.
        is_correct: True if the nearest one is of the query's class.
    """

    title: str
    query: ExampleImage
    neighbours: Sequence[ExampleImage]
    is_correct: bool


@dataclass(frozen=True, kw_only=True)
class RenderedImage:
    """A slice as the page shows it; ``match`` is ``same``, ``other`` or empty."""

    image: EmbeddedImage
    caption: str
    match: str


@dataclass(frozen=True, kw_only=True)
class RenderedExample:
    """An example as the page shows it: ``correct`` or ``incorrect``, with the query first among its images."""

    number: int
    title: str
    outcome: str
    images: Sequence[RenderedImage]


def build_examples(
    predictions: Predictions, index: ShardIndex, image_at: Callable[[int], np.ndarray]
) -> list[NeighbourExample]:
    """Return the chosen test slices and their nearest training slices, with images and captions.

    ``image_at`` reads the image (H, W) at a position of the index.
    """
    position_of = {row.key: position for position, row in enumerate(index.samples)}

    def image(key: str, note: str, label: int | None) -> ExampleImage:
        position = position_of[key]
        own = index.samples[position].label
        return ExampleImage(
            image_HW=image_at(position),
            caption=index.classes[own] + note,
            same_class=None if label is None else own == label,
        )

    def example(row: int) -> NeighbourExample:
        label = int(predictions.label_N[row])
        neighbours = zip(predictions.neighbour_keys[row], predictions.cosine_NK[row], strict=True)
        return NeighbourExample(
            title=_title(predictions, index, row),
            query=image(predictions.keys[row], "", None),
            neighbours=[image(key, f", cosine {cosine:.3f}", label) for key, cosine in neighbours],
            is_correct=bool(predictions.correct(KNN)[row]),
        )

    return [example(row) for row in choose_examples(predictions)]


def choose_examples(
    predictions: Predictions, *, max_correct: int = MAX_CORRECT, max_incorrect: int = MAX_INCORRECT
) -> tuple[int, ...]:
    """Return the rows of some slices that the nearest neighbour classifies correctly, then of some incorrect ones.

    Correct ones: of each class the slice with the median cosine to its nearest neighbour, neither the best nor the
    worst. Incorrect ones: those nearest to a slice of another class, the clearest errors first, one per patient.
    """
    correct = predictions.correct(KNN)
    medians = [_median_row(predictions, label, correct) for label in range(len(predictions.classes))]
    shown = [row for row in medians if row is not None][:max_correct]
    nearest_first = sorted(np.flatnonzero(~correct).tolist(), key=lambda row: (-predictions.cosine_NK[row, 0], row))
    seen: set[str | None] = set()
    incorrect: list[int] = []
    for row in nearest_first:
        person = predictions.persons[row]
        if person is None or person not in seen:
            incorrect.append(row)
        seen.add(person)
    return (*shown, *incorrect[:max_incorrect])


def _median_row(predictions: Predictions, label: int, correct: np.ndarray) -> int | None:
    rows = np.flatnonzero(correct & (predictions.label_N == label)).tolist()
    rows.sort(key=lambda row: (predictions.cosine_NK[row, 0], row))
    return rows[len(rows) // 2] if rows else None


def _title(predictions: Predictions, index: ShardIndex, row: int) -> str:
    label, predicted = int(predictions.label_N[row]), int(predictions.predicted[KNN][row])
    name = index.classes[label]
    return f"{name}, correct" if predicted == label else f"{name}, confused with {index.classes[predicted]}"


def render_example(number: int, example: NeighbourExample) -> RenderedExample:
    """Return an example with its pictures encoded."""
    query = _render_image(example.query, f"Example {number}, query: {example.query.caption}")
    neighbours = [
        _render_image(image, f"Example {number}, neighbour {place}: {image.caption}")
        for place, image in enumerate(example.neighbours[:MAX_NEIGHBOURS], start=1)
    ]
    outcome = "correct" if example.is_correct else "incorrect"
    return RenderedExample(number=number, title=example.title, outcome=outcome, images=[query, *neighbours])


def thumbnail_uri(image_HW: np.ndarray) -> str:
    """Return a grey PNG of at most :data:`SIDE` pixels a side as a data URI; an empty image is black."""
    grey = np.nan_to_num(np.asarray(image_HW, dtype=np.float64))
    low, high = np.percentile(grey, [0.5, 99.5]) if grey.size else (0.0, 0.0)
    stretched = np.clip((grey - low) * (255 / (high - low) if high > low else 0), 0, 255).astype(np.uint8)
    image = Image.fromarray(stretched if grey.size else np.zeros((1, 1), np.uint8))
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _render_image(image: ExampleImage, alt: str) -> RenderedImage:
    match = {True: "same", False: "other", None: ""}[image.same_class]
    picture = EmbeddedImage(uri=thumbnail_uri(image.image_HW), alt=f"{alt}; {match} class" if match else alt)
    return RenderedImage(image=picture, caption=image.caption, match=match)
