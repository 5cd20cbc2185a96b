"""Prepare example test slices with their nearest training slices as embedded pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from hsadml_dist.report.page import EmbeddedImage

SIDE = 128
"""Pixels of a picture's longer side."""
MAX_EXAMPLES = 10
MAX_NEIGHBOURS = 3
"""Both limits keep a page under 2 MB even if no picture can be compressed."""


@dataclass(frozen=True, kw_only=True)
class ExampleImage:
    """One slice with a caption.

    Attributes:
        image_HW: Grey values of any number type, stretched between their 0.5th and 99.5th percentile.
        caption: For instance class and cosine.
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
        query: The test slice.
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
