import hashlib
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest

from hsadml_dist.errors import UsageError
from hsadml_dist.shards.image_codec import to_uint16
from hsadml_dist.shards.source import SourceListing
from hsadml_dist.shards.sources.phantom.head_anatomy import load_anatomy
from hsadml_dist.shards.sources.phantom.phantom_source import PhantomSource
from hsadml_dist.shards.split import assign_folds

SIDE = 64
STATISTICS = (1, 5, 10, 25, 50, 75, 90, 95, 99)


def draw_all(seed):
    source = PhantomSource(patients=60, seed=seed, size=SIDE)
    records = source.list_records().records
    return records, [source.read(record) for record in records]


@pytest.fixture(scope="module")
def cohorts():
    return {seed: draw_all(seed) for seed in (0, 1)}


@pytest.fixture(scope="module")
def cohort(cohorts):
    return cohorts[0]


def test_phantom_listing_alternates_classes(cohort):
    source = PhantomSource(patients=60, seed=0, size=SIDE)
    assert isinstance(source.list_records(), SourceListing) and source.list_records().skipped == ()
    assert source.name == "phantom"
    records, _ = cohort
    persons = {record.person: record.class_name for record in records}
    assert list(persons.values()) == ["meningioma", "glioma", "pituitary"] * 20
    assert {record.plane for record in records} == {"axial", "coronal", "sagittal"}
    assert len({record.record_id for record in records}) == len({record.handle for record in records}) == len(records)
    first = records[0]
    assert (first.record_id, first.where) == ("patient 0 slice 0", "patient 0, slice 0")
    assert (first.person, first.exam, first.handle) == ("patient 0", "exam 0", ("0", "0"))


def test_phantom_spacing_is_field_of_view_over_size():
    steps = {
        side: [record.spacing_mm for record in PhantomSource(patients=30, seed=0, size=side).list_records().records]
        for side in (64, 256)
    }
    assert all(coarse == (4 * fine[0], 4 * fine[0]) for coarse, fine in zip(steps[64], steps[256], strict=True))
    assert {step[0] * 256 for step in steps[256]} == {230.0, 240.0, 250.0, 256.0}


def test_phantom_fingerprint_changes_with_each_argument():
    base = {"patients": 3, "seed": 5, "size": 64}
    texts = {
        PhantomSource(**{**base, **change}).fingerprint() for change in ({}, {"patients": 4}, {"seed": 6}, {"size": 32})
    }
    assert len(texts) == 4
    assert all(text.startswith("phantom 2 ") for text in texts)


def test_phantom_image_depends_only_on_seed_patient_and_slice():
    record = PhantomSource(patients=3, seed=5, size=SIDE).list_records().records[2]
    few, many = (PhantomSource(patients=count, seed=5, size=SIDE) for count in (3, 9))
    np.testing.assert_array_equal(few.read(record).image, many.read(record).image)
    other = PhantomSource(patients=3, seed=6, size=SIDE)
    assert not np.array_equal(few.read(record).image, other.read(other.list_records().records[0]).image)


def test_phantom_image_is_identical_in_another_process(cohort):
    """The process draws few slices and the last one first, so that state left by earlier slices would show."""
    records, pixels = cohort
    chosen = [len(records) - 1, 40, 0]
    program = (
        "import hashlib\nfrom hsadml_dist.shards.sources.phantom.phantom_source import PhantomSource\n"
        f"source = PhantomSource(patients=60, seed=0, size={SIDE})\nrecords = source.list_records().records\n"
        f"for index in {chosen}:\n    one = source.read(records[index])\n"
        "    print(hashlib.sha256(one.image.tobytes() + one.mask.tobytes()).hexdigest())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    here = [hashlib.sha256(pixels[i].image.tobytes() + pixels[i].mask.tobytes()).hexdigest() for i in chosen]
    assert done.stdout.split() == here


def test_phantom_listing_imports_neither_nilearn_nor_scipy():
    program = (
        "import sys\nfrom hsadml_dist.shards.sources.phantom.phantom_source import PhantomSource\n"
        "assert len(PhantomSource(patients=30, seed=0, size=64).list_records().records) > 30\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'nilearn', 'nibabel', 'scipy', 'sklearn'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_phantom_read_without_nilearn_names_the_package_to_install(monkeypatch):
    source = PhantomSource(patients=3, seed=0, size=SIDE)
    record = source.list_records().records[0]
    load_anatomy.cache_clear()
    for module in ("nilearn", "nilearn.datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=r'phantom.*nilearn.*pip install "hsadml-dist\[demo\]"') as caught:
        source.read(record)
    assert "\n" not in str(caught.value)


def test_phantom_images_and_masks_have_documented_ranges(cohort):
    for one in cohort[1]:
        assert one.image.shape == one.mask.shape == (SIDE, SIDE)
        assert (one.image.dtype, one.mask.dtype) == (np.float32, np.uint8)
        assert np.isfinite(one.image).all() and one.image.min() >= 0
        assert 0.5 < one.image.max() <= 1.2 and one.image.std() > 0.05
        assert set(np.unique(one.mask)) == {0, 1}
        assert one.mask.mean() < 0.12


def brain_brightness(one):
    """Return the median brightness without air, bone and fat."""
    return np.median(one.image[(one.image > 0.15) & (one.image < 0.6)])


def test_phantom_tumours_have_class_specific_brightness(cohort):
    ratios = defaultdict(list)
    for record, one in zip(*cohort, strict=True):
        if one.mask.sum() > 25:
            inside = one.image[one.mask.astype(bool)]
            ratios[record.class_name].append(np.quantile(inside, [0.1, 0.95]) / brain_brightness(one))
    low, high = ({name: np.median([r[end] for r in rows]) for name, rows in ratios.items()} for end in (0, 1))
    assert min(high.values()) > 1.5
    assert min(low["meningioma"], low["pituitary"]) > 1.2
    assert low["glioma"] < 0.8


@pytest.mark.parametrize("size", [8, 32])
def test_phantom_mask_is_never_empty_at_small_sizes(size):
    source = PhantomSource(patients=12, seed=2, size=size)
    for record in source.list_records().records:
        one = source.read(record)
        assert one.image.shape == (size, size)
        assert one.mask.any()


def nearest_accuracy(images: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> float:
    squares = (images**2).sum(1)
    distance = squares[:, None] + squares - 2 * images @ images.T
    distance[folds[:, None] == folds] = np.inf
    return float((labels[distance.argmin(1)] == labels).mean())


def stored(pixels):
    return np.array([to_uint16(one.image, SIDE).ravel() / 65535 for one in pixels], np.float32)


@pytest.mark.parametrize("seed", [0, 1])
def test_phantom_raw_pixel_knn_is_inflated_by_slice_split_only(cohorts, seed):
    records, pixels = cohorts[seed]
    images, labels = stored(pixels), np.array([record.class_name for record in records])
    by = {
        unit: nearest_accuracy(images, labels, np.array(assign_folds(records, unit, 5, 0)))
        for unit in ("person", "slice")
    }
    assert by["slice"] - by["person"] >= 0.15
    assert 0.85 < by["slice"] < 0.99
    assert 0.36 < by["person"] < 0.68


def linear_accuracy(values, labels, folds):
    """Classify each fold by least squares on the others."""
    names = np.unique(labels)
    right = 0
    for fold in np.unique(folds):
        train, test = folds != fold, folds == fold
        weights, *_ = np.linalg.lstsq(values[train], labels[train, None] == names, rcond=None)
        right += (names[(values[test] @ weights).argmax(1)] == labels[test]).sum()
    return right / len(labels)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("stretched", [True, False])
def test_phantom_global_brightness_does_not_predict_the_class(cohorts, seed, stretched):
    records, pixels = cohorts[seed]
    images = stored(pixels) if stretched else np.array([one.image.ravel() for one in pixels])
    values = np.column_stack([images.mean(1), images.std(1), *np.percentile(images, STATISTICS, axis=1)])
    values = np.column_stack([(values - values.mean(0)) / values.std(0), np.ones(len(values))]).astype(np.float32)
    labels, folds = np.array([record.class_name for record in records]), np.array(assign_folds(records, "person", 5, 0))
    assert nearest_accuracy(values, labels, folds) < 0.55
    assert linear_accuracy(values, labels, folds) < 0.55


def test_phantom_slices_of_one_patient_and_plane_are_similar(cohort):
    groups = defaultdict(list)
    for record, one in zip(*cohort, strict=True):
        groups[record.plane, record.person, record.exam].append(one.image.ravel())
    within = [np.abs(group[0] - group[1]).mean() for group in groups.values() if len(group) > 1]
    firsts = [group[0] for (plane, *_), group in groups.items() if plane == "axial"]
    across = [np.abs(one - two).mean() for one, two in pairwise(firsts)]
    assert np.median(within) < 0.6 * np.median(across)


def test_phantom_listing_has_one_or_two_exams_per_patient(cohort):
    exams = defaultdict(set)
    for record in cohort[0]:
        exams[record.person].add(record.exam)
    assert Counter(map(frozenset, exams.values())).keys() == {frozenset({"exam 0"}), frozenset({"exam 0", "exam 1"})}


@pytest.mark.parametrize("patients", [0, -1, 10**7])
def test_phantom_rejects_number_of_patients_out_of_range(patients):
    with pytest.raises(UsageError, match=f"INPUT {patients}"):
        PhantomSource(patients=patients, seed=0, size=SIDE)
