"""Thresholds and distances of the out-of-distribution check against slow loops."""

import numpy as np
import pytest

from hsadml_dist.evaluation.ood import (
    MIN_STD,
    ThumbnailStats,
    brightness,
    embedding_threshold,
    thumbnail_threshold,
)

PERSONS = {
    "known": ["a", "a", "b", "c", "c", "c", "d"],
    "some unknown": ["a", "", "", "c", "c", "c", "a"],
    "one patient": ["a"] * 7,
    "none known": [""] * 7,
}


def slow_threshold(persons, distance):
    """Compute the threshold from all pairs."""
    alone = len(set(persons)) == 1
    nearest = []
    for i, person in enumerate(persons):
        others = [j for j, other in enumerate(persons) if j != i and (alone or not person or other != person)]
        nearest.append(min(distance(i, j) for j in others))
    return np.quantile(nearest, 0.995)


@pytest.fixture
def thumbnails():
    return np.random.default_rng(0).integers(0, 256, (7, 64 * 64), dtype=np.uint8)


@pytest.mark.parametrize("persons", PERSONS.values(), ids=PERSONS)
@pytest.mark.parametrize("batch", [2, 512])
def test_embedding_threshold_excludes_the_same_patient(persons, batch):
    emb = np.random.default_rng(1).normal(size=(7, 5)).astype(np.float32)

    def distance(i, j):
        return 1 - emb[i] @ emb[j] / (np.linalg.norm(emb[i]) * np.linalg.norm(emb[j]))

    found = embedding_threshold(emb, persons, batch=batch)
    assert found == pytest.approx(slow_threshold(persons, distance), abs=1e-6)


@pytest.mark.parametrize("persons", PERSONS.values(), ids=PERSONS)
def test_thumbnail_threshold_excludes_the_same_patient(persons, thumbnails):
    known = ThumbnailStats.from_thumbnails(thumbnails)

    def distance(i, j):
        return np.sqrt(np.mean((known.cells_NG[i] - known.cells_NG[j]) ** 2))

    assert thumbnail_threshold(known, persons) == pytest.approx(slow_threshold(persons, distance), abs=1e-9)


def test_embedding_threshold_of_many_cases_uses_some_of_them():
    emb = np.random.default_rng(1).normal(size=(60, 3)).astype(np.float32)
    full = embedding_threshold(emb, [""] * 60)
    unit = emb / np.linalg.norm(emb, axis=1, keepdims=True)
    ends = [np.sort(1 - unit @ unit[row])[1] for row in (0, 59)]
    some = embedding_threshold(emb, [""] * 60, max_queries=2)
    assert some == pytest.approx(np.quantile(ends, 0.995), abs=1e-6)
    assert some != full


def test_embedding_threshold_of_a_single_case_is_infinite():
    assert embedding_threshold(np.ones((1, 3), np.float32), ["a"]) == np.inf


def test_brightness_equals_the_mean_of_each_cell(thumbnails):
    found = brightness(thumbnails)
    square = thumbnails[3].reshape(64, 64) / 255
    slow = [
        square[8 * row : 8 * row + 8, 8 * column : 8 * column + 8].mean() for row in range(8) for column in range(8)
    ]
    np.testing.assert_allclose(found[3], slow)
    assert brightness(thumbnails[:0]).shape == (0, 64)


def test_thumbnail_distance_of_a_grey_corner_is_limited_by_min_std():
    images = np.zeros((4, 64, 64), np.uint8)
    images[:, 20:40, 20:40] = np.array([60, 120, 180, 250], np.uint8)[:, None, None]
    known = ThumbnailStats.from_thumbnails(images.reshape(4, -1))
    grey = images[:1].copy()
    grey[:, :8, :8] = 5
    distance = known.distance(np.concatenate([images, grey]).reshape(5, -1))
    np.testing.assert_allclose(distance[:4], 0, atol=1e-7)
    assert distance[4] == pytest.approx((5 / 255 / MIN_STD) / 8)


def test_inverted_image_is_far_and_similar_image_is_not():
    generator = np.random.default_rng(2)
    row, column = np.mgrid[:64, :64]
    radius = np.hypot(row - 32, column - 32)
    images = np.array(
        [np.where(radius < generator.uniform(20, 28), 200, 0) + generator.integers(0, 20, (64, 64)) for _ in range(30)]
    ).astype(np.uint8)
    known = ThumbnailStats.from_thumbnails(images[:25].reshape(25, -1))
    threshold = thumbnail_threshold(known, [""] * 25)
    assert (known.distance(255 - images[25:].reshape(5, -1)) > threshold).all()
    assert (known.distance(images[25:].reshape(5, -1)) <= threshold).sum() >= 4
