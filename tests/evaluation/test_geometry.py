"""Exact angles, centre spread and class geometry against their definitions in slow loops."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch

from hsadml_dist.errors import DataError
from hsadml_dist.evaluation import geometry as module
from hsadml_dist.evaluation.geometry import (
    BLOCK_ELEMENTS,
    DEGREE,
    MAX_NEAREST_PAIRS,
    CentrePair,
    MeanAngles,
    blocks,
    centre_spread,
    exact_angles,
    geometry,
    unit_on_grid,
)
from hsadml_dist.evaluation.metrics import stratified


def test_exact_angles_equal_the_arc_cosine() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.normal(size=(7, 5)), generator.normal(size=(4, 5))
    found = exact_angles(unit_on_grid(one), unit_on_grid(other))
    assert found.dtype == np.int64
    for row in range(7):
        for column in range(4):
            cosine = one[row] @ other[column] / np.linalg.norm(one[row]) / np.linalg.norm(other[column])
            assert found[row, column] / DEGREE == pytest.approx(np.degrees(np.arccos(cosine)), abs=1e-4)


def test_blocks_cover_all_rows_once_and_are_never_empty() -> None:
    assert blocks(5, 10 * BLOCK_ELEMENTS) == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
    assert blocks(5, BLOCK_ELEMENTS // 2) == [(0, 2), (2, 4), (4, 5)]
    assert blocks(0, 0) == []


def test_unit_on_grid_refuses_non_finite_rows() -> None:
    with pytest.raises(DataError, match="1 of 1 embeddings"):
        unit_on_grid(np.array([[np.nan, 1.0]]))


@pytest.fixture
def centres() -> np.ndarray:
    return unit_on_grid(np.random.default_rng(3).normal(size=(23, 6)))


def slow_pairs(unit_CD: np.ndarray) -> dict[tuple[int, int], float]:
    angles = exact_angles(unit_CD, unit_CD) / DEGREE
    return {pair: float(angles[pair]) for pair in itertools.combinations(range(len(unit_CD)), 2)}


def test_centre_spread_equals_loop_over_pairs(centres: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", 100)
    found, energy = centre_spread(centres)
    assert found is not None and energy is not None
    pairs = slow_pairs(centres)
    assert found.mean == pytest.approx(np.mean(list(pairs.values())), rel=1e-12)
    assert found.most == max(pairs.values())
    least = [min(angle for pair, angle in pairs.items() if centre in pair) for centre in range(len(centres))]
    assert found.neighbour == pytest.approx(np.mean(least), rel=1e-12)
    closest = sorted(pairs.items(), key=lambda item: (item[1], item[0]))[:MAX_NEAREST_PAIRS]
    assert [((one.first, one.second), one.angle) for one in found.nearest] == closest
    assert energy.s1 == pytest.approx(np.mean([1 / np.radians(angle) for angle in pairs.values()]), rel=1e-12)


def test_centre_spread_sorts_equal_pairs_by_label() -> None:
    found, _ = centre_spread(unit_on_grid(np.eye(9)))
    assert found is not None
    assert [(one.first, one.second) for one in found.nearest] == [
        *((0, label) for label in range(1, 9)),
        (1, 2),
        (1, 3),
    ]
    assert {one.angle for one in found.nearest} == {90.0} == {found.mean, found.most, found.neighbour}


def test_centre_spread_of_equal_centres_has_no_energy() -> None:
    found, energy = centre_spread(unit_on_grid(np.array([[1.0, 0], [1, 0]])))
    assert found is not None and found.nearest == (CentrePair(first=0, second=1, angle=0.0),)
    assert energy is None


@pytest.mark.parametrize("classes", [0, 1, 5])
def test_centre_spread_is_none_for_too_few_and_too_many_centres(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CENTRES", 4)
    assert centre_spread(unit_on_grid(np.eye(5)[:classes])) == (None, None)


Sample = tuple[np.ndarray, np.ndarray, np.ndarray]

TOLERANCE = 2e-6
"""Degrees: rows are rounded to 1.5e-8 and angles to 1e-6 degrees."""


@pytest.fixture
def sample() -> Sample:
    """Return 80 slices of 3 of 4 classes, and 4 centres."""
    generator = np.random.default_rng(0)
    centre, label = generator.normal(size=(4, 6)), generator.integers(0, 3, 80)
    return centre[label] + 0.7 * generator.normal(size=(80, 6)), label, centre


def angle(one: np.ndarray, other: np.ndarray) -> float:
    cosine = one @ other / math.sqrt((one @ one) * (other @ other))
    return math.degrees(math.acos(max(-1.0, min(1.0, cosine))))


def mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def slow_angles(emb: np.ndarray, label: np.ndarray, centre: np.ndarray, classes: list[int]) -> MeanAngles:
    """Compute the mean angles of slices of ``classes``."""
    rows = [row for row in range(len(label)) if label[row] in classes]
    pairs = [(one, other) for one in rows for other in range(len(label)) if one != other]
    others = [[c for c in range(len(centre)) if c != label[row]] for row in rows]
    return MeanAngles(
        slices=len(rows),
        own_centre=mean([angle(emb[row], centre[label[row]]) for row in rows]),
        other_centre=mean(
            [min(angle(emb[row], centre[c]) for c in rest) for row, rest in zip(rows, others, strict=True)]
        ),
        within=mean([angle(emb[one], emb[other]) for one, other in pairs if label[one] == label[other]]),
        between=mean([angle(emb[one], emb[other]) for one, other in pairs if label[one] != label[other]]),
    )


def assert_close(found: MeanAngles, expected: MeanAngles) -> None:
    for name, value in dataclasses.asdict(expected).items():
        assert getattr(found, name) == (None if value is None else pytest.approx(value, abs=TOLERANCE)), name


def test_mean_angles_equal_slow_loops(sample: Sample) -> None:
    found = geometry(*sample)
    assert_close(found.overall, slow_angles(*sample, [0, 1, 2]))
    assert len(found.per_class) == 4 and found.paired == 80
    for label in range(4):
        assert_close(found.per_class[label], slow_angles(*sample, [label]))
    assert found.per_class[3] == MeanAngles(slices=0, own_centre=None, other_centre=None, within=None, between=None)


def test_centre_angles_and_histograms_equal_slow_loops(sample: Sample) -> None:
    emb, label, centre = sample
    found = geometry(*sample)
    expected = [[angle(one, other) if one is not other else 0 for other in centre] for one in centre]
    assert np.array(found.centre_angles) == pytest.approx(np.array(expected), abs=TOLERANCE)
    own, other = [0] * 90, [0] * 90
    for row, true in zip(emb, label, strict=True):
        own[int(angle(row, centre[true]) // 2)] += 1
        other[int(min(angle(row, centre[c]) for c in range(4) if c != true) // 2)] += 1
    assert found.histogram.bin_degrees == 2
    assert list(found.histogram.own_centre) == own and list(found.histogram.other_centre) == other


def test_energy_equals_slow_loop(sample: Sample) -> None:
    pairs = [math.radians(angle(*two)) for two in itertools.combinations(sample[2], 2)]
    found = geometry(*sample).energy
    assert found is not None
    assert found.s2 == pytest.approx(np.mean([value**-2 for value in pairs]), rel=1e-6)
    assert found.s1 == pytest.approx(np.mean([1 / value for value in pairs]), rel=1e-6)
    assert found.s0 == pytest.approx(np.mean([-math.log(value) for value in pairs]), rel=1e-6)


def test_energy_is_lowest_for_three_centres_at_120_degrees() -> None:
    angles = np.radians([[0, 120, 240], [0, 137, 240]])
    even, uneven = (np.stack([np.cos(angle), np.sin(angle)], axis=1) for angle in angles)
    energies = [geometry(centre, np.arange(3), centre).energy for centre in (even, uneven)]
    assert energies[0] is not None and energies[1] is not None
    assert energies[0].s2 == pytest.approx((2 * math.pi / 3) ** -2, rel=1e-7)
    assert energies[0].s2 < energies[1].s2 and energies[0].s1 < energies[1].s1 and energies[0].s0 < energies[1].s0


def test_small_angles_keep_their_precision() -> None:
    tiny = 1e-5
    centre = np.array([[1.0, 0], [-1.0, 0]])
    found = geometry(np.array([[math.cos(tiny), math.sin(tiny)]]), np.array([0]), centre)
    # The arc cosine in fp64 of such a product on this grid would be off by a thousandth.
    assert found.overall.own_centre == pytest.approx(math.degrees(tiny), abs=TOLERANCE)
    assert found.overall.other_centre == pytest.approx(180 - math.degrees(tiny), abs=TOLERANCE)


def test_equal_and_opposite_rows_are_exactly_0_and_180_degrees_apart() -> None:
    row = np.random.default_rng(0).normal(size=(1, 50))
    found = geometry(np.concatenate([row, -3 * row]), np.array([0, 0]), np.concatenate([row, -row]))
    assert found.centre_angles == ((0.0, 180.0), (180.0, 0.0))
    assert found.overall.within == 180 and found.overall.own_centre == 90
    assert found.histogram.own_centre[0] == 1 == found.histogram.own_centre[89]


def test_rows_of_zeros_are_at_right_angles_to_everything() -> None:
    found = geometry(np.zeros((3, 3)), np.array([0, 1, 1]), np.eye(3)[:2])
    assert found.overall == MeanAngles(slices=3, own_centre=90, other_centre=90, within=90, between=90)


def test_geometry_ignores_row_lengths_and_accepts_fp32(sample: Sample) -> None:
    emb, label, centre = sample
    length = np.exp2(np.arange(80) % 7 - 3)[:, None]
    assert geometry(emb, label, centre) == geometry(emb * length, label, centre * 4)
    single = geometry(emb.astype(np.float32), label, centre.astype(np.float32))
    assert single.overall.within == pytest.approx(geometry(*sample).overall.within, abs=1e-5)


def test_geometry_is_independent_of_order_blocks_and_threads(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    emb, label, centre = sample
    order = np.random.default_rng(1).permutation(80)
    expected = geometry(*sample)
    assert geometry(emb[order], label[order], centre) == expected
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", 9)
    assert geometry(*sample) == expected
    torch.set_num_threads(threads)


def test_geometry_samples_pairs_above_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(2)
    centre, label = generator.normal(size=(3, 6)), np.repeat([0, 1, 2], [300, 199, 1])
    whole = centre[label] + generator.normal(size=(500, 6)), label, centre
    everything = geometry(*whole)
    monkeypatch.setattr(module, "MAX_PAIRED_SLICES", 100)
    sampled, again, other = (geometry(*whole, seed=seed) for seed in (0, 0, 1))
    assert (everything.paired, sampled.paired) == (500, 100)
    assert sampled == again != other
    kept = stratified(label, limit=100, seed=0)
    part = geometry(whole[0][kept], label[kept], centre)
    for found, expected in zip((sampled.overall, *sampled.per_class), (part.overall, *part.per_class), strict=True):
        assert (found.within, found.between) == (expected.within, expected.between)
    assert sampled.per_class[2].between is not None and sampled.per_class[2].within is None
    # Only pairs are sampled.
    assert sampled.overall.own_centre == everything.overall.own_centre and sampled.histogram == everything.histogram


def test_geometry_is_none_where_nothing_can_be_measured() -> None:
    single = geometry(np.eye(2), np.array([0, 0]), np.eye(2)[:1])
    assert single.energy is None and sum(single.histogram.other_centre) == 0
    assert single.overall == MeanAngles(slices=2, own_centre=45, other_centre=None, within=90, between=None)
    empty = geometry(np.empty((0, 2)), np.empty(0, dtype=np.int64), np.eye(2))
    assert empty.overall == MeanAngles(slices=0, own_centre=None, other_centre=None, within=None, between=None)
    assert geometry(np.eye(2), np.array([0, 1]), np.ones((2, 2))).energy is None
    for found in (single, empty):
        json.dumps(dataclasses.asdict(found), allow_nan=False)


def test_geometry_omits_centre_angles_above_the_class_limit(monkeypatch: pytest.MonkeyPatch, sample: Sample) -> None:
    monkeypatch.setattr(module, "MAX_LISTED_CENTRES", 3)
    assert geometry(*sample).centre_angles is None and geometry(*sample).energy is not None
    monkeypatch.setattr(module, "MAX_CENTRES", 3)
    assert geometry(*sample).energy is None and geometry(*sample).spread is None


def test_geometry_refuses_labels_without_centre_and_non_finite_rows() -> None:
    with pytest.raises(DataError, match="labels: found 0 to 2; allowed: 0 to 1"):
        geometry(np.eye(3), np.arange(3), np.eye(3)[:2])
    with pytest.raises(DataError, match="1 of 1 embeddings"):
        geometry(np.full((1, 2), np.inf), np.array([0]), np.eye(2))
