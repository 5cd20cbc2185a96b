from dataclasses import replace

import numpy as np
import pytest

from hsadml_dist.data.index import SampleRow, ShardIndex
from hsadml_dist.shards import leakage
from hsadml_dist.shards.leakage import SIDE, make_thumbnail, measure_leakage, select_slices


def make_index(persons: int, slices: int, unit: str = "person") -> ShardIndex:
    rows = tuple(
        SampleRow(
            key=f"{person:08x}{slice_:08x}",
            shard=0,
            members={"png": (0, 1), "json": (1, 1)},
            sha256="00",
            label=person % 2,
            person=f"p{person}",
            exam=None,
            fold=person % 3,
        )
        for person in range(persons)
        for slice_ in range(slices)
    )
    return ShardIndex(
        source="table", classes=("a", "b"), split_unit=unit, folds=3, seed=0, size=8, digest="", shards=(), samples=rows
    )


def slow_accuracy(pixels_NP, labels, folds) -> float:
    correct = 0
    for query, pixels in enumerate(pixels_NP.astype(int)):
        others = [place for place in range(len(labels)) if folds[place] != folds[query]]
        nearest = min(others, key=lambda place: (((pixels_NP[place] - pixels) ** 2).sum(), place))
        correct += labels[nearest] == labels[query]
    return correct / len(labels)


@pytest.mark.parametrize("block", [1, 7, 512])
def test_measure_leakage_matches_slow_search(monkeypatch, block):
    monkeypatch.setattr(leakage, "BLOCK", block)
    index = make_index(9, 4)
    pixels = np.random.default_rng(0).integers(0, 4, (36, 20)).astype(np.uint8)
    labels, folds = [row.label for row in index.samples], [row.fold for row in index.samples]
    found = measure_leakage(index.samples, pixels, index)
    assert found.accuracy["person"] == slow_accuracy(pixels, labels, folds)
    assert (list(found.accuracy), found.slices) == (["person", "slice"], 36)


def test_measure_leakage_shows_gap_between_slice_and_patient_folds():
    index = make_index(12, 5)
    rng = np.random.default_rng(1)
    persons = rng.integers(0, 200, (12, SIDE * SIDE))
    pixels = (np.repeat(persons, 5, axis=0) + rng.integers(0, 50, (60, SIDE * SIDE))).astype(np.uint8)
    accuracy = measure_leakage(index.samples, pixels, index).accuracy
    assert accuracy["slice"] == 1.0
    assert accuracy["person"] < 0.8


def test_measure_leakage_uses_only_units_that_all_slices_name():
    index = make_index(6, 2, "slice")
    rows = tuple(replace(row, person=None) if place == 0 else row for place, row in enumerate(index.samples))
    pixels = np.zeros((12, 4), np.uint8)
    assert list(measure_leakage(rows, pixels, index).accuracy) == ["slice"]


def test_select_slices_subsamples_whole_patients(monkeypatch):
    index = make_index(20, 7)
    assert select_slices(index) == list(range(140))
    monkeypatch.setattr(leakage, "MAX_SLICES", 30)
    places = select_slices(index)
    assert places == sorted(set(places)) and len(places) == 35
    assert len({index.samples[place].person for place in places}) == 5
    assert places != list(range(35))


def test_make_thumbnail_spans_all_grey_levels_at_any_scale():
    image = np.random.default_rng(2).integers(0, 60000, (128, 128)).astype(np.uint16)
    small = make_thumbnail(image)
    assert (small.dtype, small.shape, small.min(), small.max()) == (np.uint8, (SIDE * SIDE,), 0, 255)
    mean = image.reshape(SIDE, 2, SIDE, 2).mean(axis=(1, 3)).ravel()
    expected = (mean - mean.min()) / (mean.max() - mean.min()) * 255
    assert np.abs(small - expected).max() < 0.51
    np.testing.assert_array_equal(small, make_thumbnail(image.astype(np.float32) * 2 + 5))
    assert not make_thumbnail(np.full((64, 64), 7, np.uint16)).any()
