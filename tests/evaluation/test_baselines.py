"""The raw-pixel control against slow loops."""

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


def test_thumbnails_average_whole_blocks() -> None:
    image = torch.rand(3, 1, 128, 192, generator=torch.Generator().manual_seed(0))
    small = image[:, 0].reshape(3, THUMBNAIL_SIDE, 2, THUMBNAIL_SIDE, 3).mean(dim=(2, 4)).flatten(1)
    low, high = small.amin(1, keepdim=True), small.amax(1, keepdim=True)
    expected = (small - low) / (high - low) * 255
    assert thumbnails(image).shape == (3, THUMBNAIL_SIDE * THUMBNAIL_SIDE)
    assert (thumbnails(image).float() - expected).abs().max() <= 0.501


def test_thumbnails_do_not_depend_on_the_loaders_scaling_and_survive_a_flat_image() -> None:
    image = torch.randint(0, 4096, (2, 1, 80, 80), generator=torch.Generator().manual_seed(1)).float()
    assert torch.equal(thumbnails(image), thumbnails(image / 4096 * 8 - 4))
    assert thumbnails(torch.full((1, 1, 80, 80), 7.0)).unique().tolist() == [0]


def test_the_nearest_is_that_of_whole_number_distances_and_ties_go_to_the_lowest() -> None:
    generator = np.random.default_rng(2)
    references = generator.integers(0, 3, (60, 4)) * 100
    queries = generator.integers(0, 3, (40, 4)) * 100
    distances = ((queries[:, None] - references[None]) ** 2).sum(axis=2)
    assert ((distances == distances.min(axis=1, keepdims=True)).sum(axis=1) > 1).sum() > 5
    rows = [torch.from_numpy(rows).to(torch.uint8) for rows in (queries, references)]
    for block in (1, 7, 1000):
        assert nearest_pixels(*rows, block=block).tolist() == distances.argmin(axis=1).tolist()


def blob(generator: np.random.Generator, side: int) -> np.ndarray:
    """A bright disc somewhere on a dark, noisy ground."""
    row, column = np.mgrid[:side, :side]
    centre, radius = generator.uniform(side / 4, 3 * side / 4, 2), generator.uniform(2, side / 3)
    inside = (row - centre[0]) ** 2 + (column - centre[1]) ** 2 < radius**2
    return np.clip(30 + 150 * inside + 20 * generator.normal(size=(side, side)), 0, 255).astype(np.uint8)


def between_classes(level: list[int], threshold: int) -> float:
    """Otsu's criterion, from its definition."""
    low, high = [v for v in level if v <= threshold], [v for v in level if v > threshold]
    if not low or not high:
        return -1.0
    gap = sum(low) / len(low) - sum(high) / len(high)
    return len(low) * len(high) / len(level) ** 2 * gap * gap


def slow(picture: np.ndarray) -> list[float]:
    side = len(picture)
    level = [int(value) for value in picture.ravel()]
    pixels = len(level)
    histogram = [sum(value // 16 == bin_ for value in level) / pixels for bin_ in range(BINS)]
    ranks = [float(sorted(level)[math.ceil(percent * pixels / 100) - 1]) for percent in (5, 25, 50, 75, 95)]
    threshold = max(range(256), key=lambda value: (round(between_classes(level, value), 6), -value))
    inside = [(r, c) for r in range(side) for c in range(side) if picture[r, c] > threshold]
    row, column = (np.mean([place[axis] for place in inside]) / (side - 1) for axis in (0, 1))
    grey = picture.astype(float)
    gradient = [
        math.hypot(grey[r + 1, c] - grey[r, c], grey[r, c + 1] - grey[r, c])
        for r in range(side - 1)
        for c in range(side - 1)
    ]
    bins = (picture // 16).astype(int)
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
def test_features_are_those_of_slow_loops(side: int) -> None:
    generator = np.random.default_rng(side)
    pictures = np.stack([blob(generator, side) for _ in range(6)])
    found = features(pictures.reshape(6, -1))
    assert found.shape == (6, len(FEATURE_NAMES)) and found.dtype == np.float64
    for row, picture in zip(found, pictures, strict=True):
        # A gradient is rounded to 1/256 of a level, all else to fp64.
        assert row.tolist() == pytest.approx(slow(picture), abs=3e-3, rel=1e-9)


def named(picture: np.ndarray) -> dict[str, float]:
    return dict(zip(FEATURE_NAMES, features(picture.reshape(1, -1))[0].tolist(), strict=True))


def test_a_bright_square_is_found_where_it_lies() -> None:
    picture = np.zeros((64, 64), dtype=np.uint8)
    picture[8:16, 40:56] = 200
    found = named(picture)
    assert found["foreground"] == 8 * 16 / 64**2
    assert found["centroid_row"] == 11.5 / 63 and found["centroid_column"] == 47.5 / 63
    assert found["histogram_12"] == 8 * 16 / 64**2 == 1 - found["histogram_0"]


def test_a_flat_picture_has_no_foreground_and_lies_in_the_middle() -> None:
    found = named(np.full((8, 8), 7, dtype=np.uint8))
    assert (found["foreground"], found["centroid_row"], found["centroid_column"]) == (0, 0.5, 0.5)
    assert (found["deviation"], found["gradient_mean"], found["contrast"], found["homogeneity"]) == (0, 0, 0, 1)


@pytest.mark.parametrize(("step", "rough"), [(32, 0), (33, 7 / 49)])
def test_a_pixel_is_rough_above_32_levels_a_pixel(step: int, rough: float) -> None:
    picture = np.zeros((8, 8), dtype=np.uint8)
    picture[:, 5:] = step
    assert named(picture)["gradient_rough"] == rough


def test_features_do_not_depend_on_the_company() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (300, 64)).astype(np.uint8)
    together = features(pictures)
    assert (together[255:258] == np.concatenate([features(pictures[at : at + 1]) for at in (255, 256, 257)])).all()
    assert features(pictures[:0]).shape == (0, len(FEATURE_NAMES))


def test_pictures_that_are_not_square_are_refused() -> None:
    with pytest.raises(DataError, match="thumbnails of 63 pixels"):
        features(np.zeros((2, 63), dtype=np.uint8))


def test_the_nearest_is_that_of_a_slow_loop() -> None:
    generator = np.random.default_rng(1)
    references, tests = generator.normal(size=(90, 5)) * [1, 1e3, 1e-3, 1, 0], generator.normal(size=(50, 5))
    tests *= [1, 1e3, 1e-3, 1, 1e9]
    # The last column is the same in all references: left out.
    deviation = references.std(axis=0)[:4]
    expected = [int(np.argmin([sum(((row - other)[:4] / deviation) ** 2) for other in references])) for row in tests]
    found = nearest_low_level(tests, references)
    assert found.dtype == np.int64 and found.tolist() == expected


def test_ties_go_to_the_lowest_position_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(2)
    references = np.tile(generator.integers(0, 2, (10, 3)), (3, 1)).astype(np.float64)
    tests = generator.integers(0, 2, (20, 3)).astype(np.float64)
    gaps = (((tests[:, None] - references) / references.std(axis=0)) ** 2).sum(axis=2).round(9)
    assert ((gaps == gaps.min(axis=1, keepdims=True)).sum(axis=1) >= 3).all()
    assert nearest_low_level(tests, references).tolist() == gaps.argmin(axis=1).tolist()
    monkeypatch.setattr("hsadml_dist.evaluation.baselines._REFERENCES_AT_A_TIME", 4)
    assert nearest_low_level(tests, references).tolist() == gaps.argmin(axis=1).tolist()


def test_each_feature_counts_alike_whatever_its_unit() -> None:
    generator = np.random.default_rng(3)
    references, tests = generator.normal(size=(60, 6)), generator.normal(size=(40, 6))
    scale = np.array([1, 2.0**10, 2.0**-10, 1, 2.0**20, 1])
    assert (nearest_low_level(tests, references) == nearest_low_level(tests * scale, references * scale)).all()


def test_whole_numbers_stay_exact_at_the_worst() -> None:
    most = int(MAX_DEVIATIONS * STEPS)
    assert len(FEATURE_NAMES) * most**2 * 3 / 2 < 2**53


def test_no_reference_is_refused_and_nothing_to_judge_is_not() -> None:
    row = np.ones((3, 2))
    with pytest.raises(DataError, match="no reference slices"):
        nearest_low_level(row, row[:0])
    assert nearest_low_level(row[:0], row).tolist() == []
