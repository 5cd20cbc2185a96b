from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest

from hsadml_dist.errors import UsageError
from hsadml_dist.shards.pixels import to_uint16
from hsadml_dist.shards.sources.phantom import PhantomSource
from hsadml_dist.shards.split import assign_folds

SIDE = 64


@pytest.fixture(scope="module")
def cohort():
    source = PhantomSource(patients=60, seed=0, size=SIDE)
    records = source.records()
    return records, [source.read(record) for record in records]


def test_one_to_twelve_slices_a_person_and_classes_in_turn(cohort):
    records, _ = cohort
    counts = Counter(record.person for record in records)
    assert len(counts) == 60
    assert 1 <= min(counts.values()) < max(counts.values()) <= 12
    persons = {record.person: record.class_name for record in records}
    assert set(Counter(persons.values()).values()) == {20}
    assert {record.plane for record in records} == {"axial", "coronal", "sagittal"}
    assert len({record.identity for record in records}) == len(records)


def test_drawings_follow_seed_patient_and_slice_alone():
    record = PhantomSource(patients=3, seed=5, size=SIDE).records()[2]
    few, many = (PhantomSource(patients=count, seed=5, size=SIDE) for count in (3, 9))
    np.testing.assert_array_equal(few.read(record).image, many.read(record).image)
    other = PhantomSource(patients=3, seed=6, size=SIDE)
    assert not np.array_equal(few.read(record).image, other.read(other.records()[0]).image)


def test_images_are_finite_and_masks_lie_on_the_lesion(cohort):
    records, pixels = cohort
    for record, one in zip(records, pixels, strict=True):
        assert one.image.shape == one.mask.shape == (SIDE, SIDE)
        assert one.image.dtype == np.float32
        assert np.isfinite(one.image).all() and one.image.std() > 0.05
        inside = one.mask.astype(bool)
        assert 0.0005 < inside.mean() < 0.12
        if record.class_name != "glioma":
            assert one.image[inside].mean() > 1.3 * np.median(one.image[one.image > 0.15])


def test_a_glioma_has_a_dark_core(cohort):
    records, pixels = cohort
    for record, one in zip(records, pixels, strict=True):
        if record.class_name == "glioma" and one.mask.sum() > 60:
            inside = one.image[one.mask.astype(bool)]
            assert np.quantile(inside, 0.05) < 0.55 * np.quantile(inside, 0.95)


def nearest_accuracy(images: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> float:
    squares = (images**2).sum(1)
    distance = squares[:, None] + squares - 2 * images @ images.T
    distance[folds[:, None] == folds] = np.inf
    return float((labels[distance.argmin(1)] == labels).mean())


def test_a_split_by_slice_flatters_raw_pixels_and_a_split_by_person_does_not(cohort):
    records, pixels = cohort
    images = np.array([to_uint16(one.image, SIDE).ravel() / 65535 for one in pixels], np.float32)
    labels = np.array([record.class_name for record in records])
    by = {
        unit: nearest_accuracy(images, labels, np.array(assign_folds(records, unit, 5, 0)))
        for unit in ("person", "slice")
    }
    assert by["slice"] > 0.8
    assert 0.38 < by["person"] < 0.65


def test_slices_of_a_person_in_one_plane_are_alike(cohort):
    records, pixels = cohort
    groups = defaultdict(list)
    for record, one in zip(records, pixels, strict=True):
        groups[record.plane, record.person].append(one.image.ravel())
    within = [np.abs(group[0] - group[1]).mean() for group in groups.values() if len(group) > 1]
    firsts = [group[0] for (plane, _), group in groups.items() if plane == "axial"]
    across = [np.abs(one - two).mean() for one, two in pairwise(firsts)]
    assert np.median(within) < 0.8 * np.median(across)


@pytest.mark.parametrize("patients", [0, -1, 10**7])
def test_a_wrong_number_of_patients(patients):
    with pytest.raises(UsageError, match=f"INPUT {patients}"):
        PhantomSource(patients=patients, seed=0, size=SIDE)
