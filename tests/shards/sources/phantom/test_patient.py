from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from hsadml_dist.shards.sources.phantom.patient import (
    CLASSES,
    PLANE_COUNT_SHARES,
    VENTRICLES_MM,
    Stream,
    make_patient,
    make_pose,
    random_stream,
    scanner_points,
)
from hsadml_dist.shards.sources.phantom.scanner import SITES


@pytest.fixture(scope="module")
def patients():
    return [make_patient(4, patient) for patient in range(3000)]


def test_site_is_independent_of_the_class(patients):
    pairs = Counter((patient.class_name, patient.site) for patient in patients)
    expected = len(patients) / (len(CLASSES) * len(SITES))
    assert len(pairs) == len(CLASSES) * len(SITES)
    squares = sum((count - expected) ** 2 / expected for count in pairs.values())
    assert squares < 25, "chi-square with 11 degrees of freedom: 99 % of all samples are below"


def test_site_is_not_periodic(patients):
    repeats = np.mean([one.site == two.site for one, two in pairwise(patients)])
    assert 0.2 < repeats < 0.3


def test_slices_per_patient_are_1_to_38_with_median_about_7(patients):
    counts = [len(patient.planes) for patient in patients]
    assert (min(counts), max(counts)) == (1, 38)
    assert 6 <= np.median(counts) <= 8
    assert np.mean(counts) < 9
    assert np.mean(np.array(counts) > 20) < 0.08


def test_number_of_slices_is_independent_of_the_class(patients):
    means = [np.mean([len(p.planes) for p in patients if p.class_name == name]) for name in CLASSES]
    assert max(means) < 1.12 * min(means)


def test_most_patients_are_imaged_in_one_or_two_planes(patients):
    planes = Counter(len(set(patient.planes)) for patient in patients)
    assert planes[1] + planes[2] > 0.8 * len(patients)
    assert planes[3] > 0.5 * PLANE_COUNT_SHARES[2] * len(patients)
    used = Counter(plane for patient in patients for plane in patient.planes)
    assert max(used.values()) < 1.15 * min(used.values())


def test_about_a_fifth_of_patients_have_a_second_exam(patients):
    again = [patient for patient in patients if 1 in patient.exams]
    assert 0.16 < len(again) / len(patients) < 0.23
    assert all(patient.exams[0] == 0 and list(patient.exams) == sorted(patient.exams) for patient in patients)


def test_index_in_series_counts_within_exam_and_plane(patients):
    patient = next(p for p in patients if 1 in p.exams and len(set(p.planes)) > 1 and len(p.planes) > 8)
    seen = Counter()
    for number, kind in enumerate(zip(patient.exams, patient.planes, strict=True)):
        assert patient.index_in_series(number) == seen[kind]
        seen[kind] += 1


def test_random_streams_differ_by_purpose_and_number():
    keys = [(1, 2, purpose, number) for purpose in Stream for number in (0, 1)]
    keys += [(2, 1, Stream.PERSON, 0), (1, 3, Stream.PERSON, 0)]
    firsts = {random_stream(*key).integers(2**60).item() for key in keys}
    assert len(firsts) == len(keys)
    assert random_stream(*keys[0]).integers(2**60) == random_stream(*keys[0]).integers(2**60)


HEAD_3P = np.random.default_rng(0).uniform(-80, 80, (3, 200)).astype(np.float32)


def test_pose_to_scanner_inverts_to_template():
    for patient in range(20):
        pose = make_pose(make_patient(1, patient), 0)
        np.testing.assert_allclose(pose.to_template(pose.to_scanner(HEAD_3P)), HEAD_3P, atol=0.1)


def test_pose_differs_smoothly_between_patients():
    steps = np.array([[0, 1], [0, 0], [0, 0]], np.float32)
    points = [make_pose(make_patient(1, patient), 0).to_template(HEAD_3P) for patient in range(30)]
    assert 4 < np.std(points, axis=0).mean() < 15
    for patient in range(30):
        moved = np.diff(make_pose(make_patient(1, patient), 0).to_template(steps), axis=1)
        assert 0.6 < np.linalg.norm(moved) < 1.6


def test_pose_of_second_exam_changes_position_but_not_head_shape():
    patient = make_patient(1, 3)
    first, second = make_pose(patient, 0), make_pose(patient, 1)
    change = np.linalg.norm(first.to_template(HEAD_3P) - second.to_template(HEAD_3P), axis=0)
    assert 0.2 < change.mean() < 12
    np.testing.assert_array_equal(first.amplitude_W3, second.amplitude_W3)
    assert first.ventricle_growth == second.ventricle_growth


def test_pose_enlarges_ventricles_by_reading_nearer_their_centre():
    pose = next(p for p in (make_pose(make_patient(1, n), 0) for n in range(50)) if p.ventricle_growth > 0.2)
    middle = np.array(VENTRICLES_MM, np.float32)[:, None]
    near, far = middle + np.float32(10), middle + np.float32(90)
    assert np.linalg.norm(pose.scale_ventricles(near) - middle) < 0.85 * np.linalg.norm(near - middle)
    np.testing.assert_allclose(pose.scale_ventricles(far), far, atol=0.5)


@pytest.mark.parametrize(
    ("plane", "left", "top", "flat"),
    [("axial", (0, 1), (1, 1), 2), ("coronal", (0, 1), (2, 1), 1), ("sagittal", (1, 1), (2, 1), 0)],
)
def test_scanner_points_follow_radiological_orientation(plane, left, top, flat):
    """Left of the image: the patient's right, or the front if sagittal; top of the image: front, or top of the head."""
    across, down = np.array([-0.5, 0.5, 0, 0], np.float32), np.array([0, 0, -0.5, 0.5], np.float32)
    points = scanner_points(plane, 7.0, 1, across, down)
    half = SITES[1].field_of_view_mm / 2
    assert (points[flat] == 7).all()
    assert (points[left[0], 0], points[left[0], 1]) == (half, -half)
    assert (points[top[0], 2], points[top[0], 3]) == (half, -half)
