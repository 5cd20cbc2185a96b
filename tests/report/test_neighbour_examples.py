"""Pictures of examples."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from hsadml_dist.report.neighbour_examples import ExampleImage, NeighbourExample, render_example, thumbnail_uri


def pixels(uri: str) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.uint8])
def test_thumbnail_stretches_grey_values_of_any_type(dtype: type) -> None:
    ramp = np.tile(np.arange(100, 200), (100, 1)).astype(dtype)
    shown = pixels(thumbnail_uri(ramp))
    assert shown.shape == (100, 100) and shown.dtype == np.uint8
    assert (shown.min(), shown.max()) == (0, 255)
    assert (np.diff(shown.astype(int), axis=1) >= 0).all()


def test_thumbnail_ignores_a_single_bright_pixel() -> None:
    image = np.tile(np.arange(100.0), (100, 1))
    image[0, 0] = 1e6
    assert pixels(thumbnail_uri(image)).std() > 50


@pytest.mark.parametrize(("shape", "shown"), [((256, 256), (128, 128)), ((300, 150), (128, 64)), ((40, 30), (40, 30))])
def test_thumbnail_bounds_the_longer_side_and_keeps_the_aspect_ratio(
    shape: tuple[int, int], shown: tuple[int, int]
) -> None:
    assert pixels(thumbnail_uri(np.random.default_rng(0).random(shape))).shape == shown


@pytest.mark.parametrize("image", [np.zeros((8, 8)), np.full((8, 8), np.nan), np.zeros((0, 0)), np.full((8, 8), 7)])
def test_thumbnail_without_contrast_is_black(image: np.ndarray) -> None:
    assert pixels(thumbnail_uri(image)).max() == 0


def test_rendered_example_has_outcome_limited_neighbours_and_text_for_every_image() -> None:
    query = ExampleImage(image_HW=np.eye(8), caption="glioma")
    near = ExampleImage(image_HW=np.eye(8), caption="meningioma, cosine 0.91", same_class=False)
    rendered = render_example(1, NeighbourExample(title="t", query=query, neighbours=[near] * 5, is_correct=True))
    assert (rendered.number, rendered.outcome) == (1, "correct")
    assert [image.match for image in rendered.images] == ["", "other", "other", "other"]
    assert [image.caption for image in rendered.images[:2]] == ["glioma", "meningioma, cosine 0.91"]
    for part in ("Example 1", "neighbour 1", "meningioma, cosine 0.91", "other class"):
        assert part in rendered.images[1].image.alt


def test_rendered_example_without_neighbours_holds_the_query_alone() -> None:
    query = ExampleImage(image_HW=np.eye(8), caption="glioma")
    rendered = render_example(2, NeighbourExample(title="t", query=query, neighbours=[], is_correct=False))
    assert rendered.outcome == "incorrect" and len(rendered.images) == 1
