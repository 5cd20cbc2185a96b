"""The raw-pixel and low-level baselines against slow loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hsadml_dist.errors import DataError
from hsadml_dist.evaluation.baselines import (
    BINS,
    FEATURE_NAMES,
    MAX_DEVIATIONS,
    STEPS,
    THUMBNAIL_SIDE,
    features,
    nearest_low_level,
    nearest_pixels,
    thumbnails,
)


def test_thumbnails_average_blocks_of_pixels() -> None:
    image = torch.rand(3, 1, 128, 192, generator=torch.Generator().manual_seed(0))
    small = image[:, 0].reshape(3, THUMBNAIL_SIDE, 2, THUMBNAIL_SIDE, 3).mean(dim=(2, 4)).flatten(1)
    low, high = small.amin(1, keepdim=True), small.amax(1, keepdim=True)
    expected = (small - low) / (high - low) * 255
    assert thumbnails(image).shape == (3, THUMBNAIL_SIDE * THUMBNAIL_SIDE)
    assert (thumbnails(image).float() - expected).abs().max() <= 0.501


def test_thumbnails_ignore_intensity_scaling_and_accept_constant_images() -> None:
    image = torch.randint(0, 4096, (2, 1, 80, 80), generator=torch.Generator().manual_seed(1)).float()
    assert torch.equal(thumbnails(image), thumbnails(image / 4096 * 8 - 4))
    assert thumbnails(torch.full((1, 1, 80, 80), 7.0)).unique().tolist() == [0]


def test_nearest_pixels_equals_whole_number_distances_with_ties() -> None:
    generator = np.random.default_rng(2)
    gallery = generator.integers(0, 3, (60, 4)) * 100
    queries = generator.integers(0, 3, (40, 4)) * 100
    distances = ((queries[:, None] - gallery[None]) ** 2).sum(axis=2)
    assert ((distances == distances.min(axis=1, keepdims=True)).sum(axis=1) > 1).sum() > 5
    rows = [torch.from_numpy(rows).to(torch.uint8) for rows in (queries, gallery)]
    for block in (1, 7, 1000):
        assert nearest_pixels(*rows, block=block).tolist() == distances.argmin(axis=1).tolist()


def blob(generator: np.random.Generator, side: int) -> np.ndarray:
    """Return an image of a bright disc on a dark, noisy background."""
    row, column = np.mgrid[:side, :side]
    centre, radius = generator.uniform(side / 4, 3 * side / 4, 2), generator.uniform(2, side / 3)
    inside = (row - centre[0]) ** 2 + (column - centre[1]) ** 2 < radius**2
    return np.clip(30 + 150 * inside + 20 * generator.normal(size=(side, side)), 0, 255).astype(np.uint8)


def between_classes(level: list[int], threshold: int) -> float:
    """Compute Otsu's criterion from its definition."""
    low, high = [v for v in level if v <= threshold], [v for v in level if v > threshold]
    if not low or not high:
        return -1.0
    gap = sum(low) / len(low) - sum(high) / len(high)
    return len(low) * len(high) / len(level) ** 2 * gap * gap


def slow_features(image: np.ndarray) -> list[float]:
    """Compute the features with loops over pixels."""
    side = len(image)
    level = [int(value) for value in image.ravel()]
    pixels = len(level)
    histogram = [sum(value // 16 == bin_ for value in level) / pixels for bin_ in range(BINS)]
    ranks = [float(sorted(level)[math.ceil(percent * pixels / 100) - 1]) for percent in (5, 25, 50, 75, 95)]
    threshold = max(range(256), key=lambda value: (round(between_classes(level, value), 6), -value))
    inside = [(r, c) for r in range(side) for c in range(side) if image[r, c] > threshold]
    row, column = (np.mean([pixel[axis] for pixel in inside]) / (side - 1) for axis in (0, 1))
    grey = image.astype(float)
    gradient = [
        math.hypot(grey[r + 1, c] - grey[r, c], grey[r, c + 1] - grey[r, c])
        for r in range(side - 1)
        for c in range(side - 1)
    ]
    bins = (image // 16).astype(int)
    steps = [bins[r + 1, c] - bins[r, c] for r in range(side - 1) for c in range(side)]
    steps += [bins[r, c + 1] - bins[r, c] for r in range(side) for c in range(side - 1)]
    return [
        *histogram,
        float(np.mean(level)),
        float(np.std(level)),
        *ranks,
        len(inside) / pixels,
        float(row),
        float(column),
        float(np.mean(gradient)),
        float(np.std(gradient)),
        float(np.mean([value > 32 for value in gradient])),
        float(np.mean([step**2 for step in steps])),
        float(np.mean([1 / (1 + step**2) for step in steps])),
    ]


@pytest.mark.parametrize("side", [12, 17])
def test_features_equal_slow_loops(side: int) -> None:
    generator = np.random.default_rng(side)
    images = np.stack([blob(generator, side) for _ in range(6)])
    found = features(images.reshape(6, -1))
    assert found.shape == (6, len(FEATURE_NAMES)) and found.dtype == np.float64
    for row, image in zip(found, images, strict=True):
        # A gradient is rounded to 1/256 of a level, all else to fp64.
        assert row.tolist() == pytest.approx(slow_features(image), abs=3e-3, rel=1e-9)


def named(image: np.ndarray) -> dict[str, float]:
    return dict(zip(FEATURE_NAMES, features(image.reshape(1, -1))[0].tolist(), strict=True))


def test_features_locate_a_bright_square() -> None:
    image = np.zeros((64, 64), dtype=np.uint8)
    image[8:16, 40:56] = 200
    found = named(image)
    assert found["foreground"] == 8 * 16 / 64**2
    assert found["centroid_row"] == 11.5 / 63 and found["centroid_column"] == 47.5 / 63
    assert found["histogram_12"] == 8 * 16 / 64**2 == 1 - found["histogram_0"]


def test_features_of_a_constant_image_have_no_foreground() -> None:
    found = named(np.full((8, 8), 7, dtype=np.uint8))
    assert (found["foreground"], found["centroid_row"], found["centroid_column"]) == (0, 0.5, 0.5)
    assert (found["deviation"], found["gradient_mean"], found["contrast"], found["homogeneity"]) == (0, 0, 0, 1)


@pytest.mark.parametrize(("step", "rough"), [(32, 0), (33, 7 / 49)])
def test_gradient_above_32_levels_counts_as_rough(step: int, rough: float) -> None:
    image = np.zeros((8, 8), dtype=np.uint8)
    image[:, 5:] = step
    assert named(image)["gradient_rough"] == rough


def test_features_are_independent_of_the_batch() -> None:
    images = np.random.default_rng(0).integers(0, 256, (300, 64)).astype(np.uint8)
    together = features(images)
    assert (together[255:258] == np.concatenate([features(images[at : at + 1]) for at in (255, 256, 257)])).all()
    assert features(images[:0]).shape == (0, len(FEATURE_NAMES))


def test_features_refuse_images_that_are_not_square() -> None:
    with pytest.raises(DataError, match="thumbnails: 63 pixels"):
        features(np.zeros((2, 63), dtype=np.uint8))


def test_nearest_low_level_equals_slow_loop() -> None:
    generator = np.random.default_rng(1)
    gallery, queries = generator.normal(size=(90, 5)) * [1, 1e3, 1e-3, 1, 0], generator.normal(size=(50, 5))
    queries *= [1, 1e3, 1e-3, 1, 1e9]
    # The last column is constant in the gallery and therefore left out.
    deviation = gallery.std(axis=0)[:4]
    expected = [int(np.argmin([sum(((row - other)[:4] / deviation) ** 2) for other in gallery])) for row in queries]
    found = nearest_low_level(queries, gallery)
    assert found.dtype == np.int64 and found.tolist() == expected


def test_nearest_low_level_resolves_ties_by_position_for_any_block_size() -> None:
    generator = np.random.default_rng(2)
    gallery = np.tile(generator.integers(0, 2, (10, 3)), (3, 1)).astype(np.float64)
    queries = generator.integers(0, 2, (20, 3)).astype(np.float64)
    gaps = (((queries[:, None] - gallery) / gallery.std(axis=0)) ** 2).sum(axis=2).round(9)
    assert ((gaps == gaps.min(axis=1, keepdims=True)).sum(axis=1) >= 3).all()
    for block in (4, 8192):
        assert nearest_low_level(queries, gallery, block=block).tolist() == gaps.argmin(axis=1).tolist()


def test_nearest_low_level_is_independent_of_feature_units() -> None:
    generator = np.random.default_rng(3)
    gallery, queries = generator.normal(size=(60, 6)), generator.normal(size=(40, 6))
    scale = np.array([1, 2.0**10, 2.0**-10, 1, 2.0**20, 1])
    assert (nearest_low_level(queries, gallery) == nearest_low_level(queries * scale, gallery * scale)).all()


def test_largest_sum_of_products_is_exact_in_fp64() -> None:
    largest = int(MAX_DEVIATIONS * STEPS)
    assert len(FEATURE_NAMES) * largest**2 * 3 / 2 < 2**53


def test_nearest_low_level_refuses_empty_gallery_but_not_empty_queries() -> None:
    row = np.ones((3, 2))
    with pytest.raises(DataError, match="gallery"):
        nearest_low_level(row, row[:0])
    assert nearest_low_level(row[:0], row).tolist() == []
