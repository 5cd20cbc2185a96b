"""Pictures of cases."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from hsadml_dist.report.neighbour_examples import (
    ExampleImage,
    NeighbourExample,
    cases_table,
    shown_cases,
    thumbnail_uri,
)


def pixels(uri: str) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.uint8])
def test_grey_values_are_stretched_whatever_their_type(dtype: type) -> None:
    ramp = np.tile(np.arange(100, 200), (100, 1)).astype(dtype)
    shown = pixels(thumbnail_uri(ramp))
    assert shown.shape == (100, 100) and shown.dtype == np.uint8
    assert (shown.min(), shown.max()) == (0, 255)
    assert (np.diff(shown.astype(int), axis=1) >= 0).all()


def test_one_bright_pixel_does_not_blacken_the_rest() -> None:
    image = np.tile(np.arange(100.0), (100, 1))
    image[0, 0] = 1e6
    assert pixels(thumbnail_uri(image)).std() > 50


@pytest.mark.parametrize(("shape", "shown"), [((256, 256), (128, 128)), ((300, 150), (128, 64)), ((40, 30), (40, 30))])
def test_the_longer_side_is_bounded_and_the_form_kept(shape: tuple[int, int], shown: tuple[int, int]) -> None:
    assert pixels(thumbnail_uri(np.random.default_rng(0).random(shape))).shape == shown


@pytest.mark.parametrize("image", [np.zeros((8, 8)), np.full((8, 8), np.nan), np.zeros((0, 0)), np.full((8, 8), 7)])
def test_an_image_without_contrast_is_black(image: np.ndarray) -> None:
    assert pixels(thumbnail_uri(image)).max() == 0


def test_a_case_is_told_in_words_too() -> None:
    shot = ExampleImage(image_HW=np.eye(8), caption="glioma")
    near = ExampleImage(image_HW=np.eye(8), caption="meningioma, cosine 0.91", same_class=False)
    alone = NeighbourExample(title="nobody near", query=shot, neighbours=[], is_correct=False)
    (first, second) = shown_cases(
        [NeighbourExample(title="t", query=shot, neighbours=[near] * 5, is_correct=True), alone]
    )
    assert [shown.mark for shown in first.shots] == ["", "other", "other", "other"]
    assert first.shots[1].picture.alt == "Case 1, training slice 1 by nearness: meningioma, cosine 0.91; other class"
    table = cases_table([first, second])
    assert table.rows[0][:4] == ["1", "right", "glioma", "meningioma, cosine 0.91"]
    assert table.rows[1] == ["2", "wrong", "glioma", "-", "-", "-"]
    assert {len(row) for row in table.rows} == {len(table.head)}
