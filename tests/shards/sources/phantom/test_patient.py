from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from hsadml_dist.shards.sources.phantom.patient import (
    CLASSES,
    PLANES_A_PERSON,
    VENTRICLES_MM,
    Stream,
    make_patient,
    make_pose,
    scanner_places,
    stream,
)
from hsadml_dist.shards.sources.phantom.scanner import SITES


@pytest.fixture(scope="module")
def people():
    return [make_patient(4, patient) for patient in range(3000)]


def test_the_site_is_drawn_without_looking_at_the_class(people):
    pairs = Counter((person.class_name, person.site) for person in people)
    expected = len(people) / (len(CLASSES) * len(SITES))
    assert len(pairs) == len(CLASSES) * len(SITES)
    squares = sum((count - expected) ** 2 / expected for count in pairs.values())
    assert squares < 25, "chi-square with 11 degrees of freedom: 0.99 of all draws lie below"


def test_the_site_does_not_take_turns(people):
    repeats = np.mean([one.site == two.site for one, two in pairwise(people)])
    assert 0.2 < repeats < 0.3


def test_one_to_38_slices_about_seven_and_few_of_many(people):
    counts = [len(person.planes) for person in people]
    assert (min(counts), max(counts)) == (1, 38)
    assert 6 <= np.median(counts) <= 8
    assert np.mean(counts) < 9
    assert np.mean(np.array(counts) > 20) < 0.08


def test_the_number_of_slices_has_nothing_to_do_with_the_class(people):
    means = [np.mean([len(p.planes) for p in people if p.class_name == name]) for name in CLASSES]
    assert max(means) < 1.12 * min(means)


def test_most_people_are_imaged_in_one_or_two_planes(people):
    planes = Counter(len(set(person.planes)) for person in people)
    assert planes[1] + planes[2] > 0.8 * len(people)
    assert planes[3] > 0.5 * PLANES_A_PERSON[2] * len(people)
    used = Counter(plane for person in people for plane in person.planes)
    assert max(used.values()) < 1.15 * min(used.values())


def test_about_a_fifth_come_back_and_the_second_exam_follows_the_first(people):
    again = [person for person in people if 1 in person.exams]
    assert 0.16 < len(again) / len(people) < 0.23
    assert all(person.exams[0] == 0 and list(person.exams) == sorted(person.exams) for person in people)


def test_places_in_a_series_count_up_within_one_exam_and_plane(people):
    person = next(p for p in people if 1 in p.exams and len(set(p.planes)) > 1 and len(p.planes) > 8)
    seen = Counter()
    for number, kind in enumerate(zip(person.exams, person.planes, strict=True)):
        assert person.place_in_series(number) == seen[kind]
        seen[kind] += 1


def test_each_purpose_and_number_has_its_own_stream():
    keys = [(1, 2, purpose, number) for purpose in Stream for number in (0, 1)]
    keys += [(2, 1, Stream.PERSON, 0), (1, 3, Stream.PERSON, 0)]
    firsts = {stream(*key).integers(2**60).item() for key in keys}
    assert len(firsts) == len(keys)
    assert stream(*keys[0]).integers(2**60) == stream(*keys[0]).integers(2**60)


HEAD_3P = np.random.default_rng(0).uniform(-80, 80, (3, 200)).astype(np.float32)


def test_back_and_forth_ends_at_the_start():
    for patient in range(20):
        pose = make_pose(make_patient(1, patient), 0)
        np.testing.assert_allclose(pose.to_template(pose.to_scanner(HEAD_3P)), HEAD_3P, atol=0.1)


def test_people_differ_smoothly_and_by_much():
    steps = np.array([[0, 1], [0, 0], [0, 0]], np.float32)
    places = [make_pose(make_patient(1, patient), 0).to_template(HEAD_3P) for patient in range(30)]
    assert 4 < np.std(places, axis=0).mean() < 15
    for patient in range(30):
        moved = np.diff(make_pose(make_patient(1, patient), 0).to_template(steps), axis=1)
        assert 0.6 < np.linalg.norm(moved) < 1.6


def test_a_second_exam_is_a_small_change_of_the_lie_and_none_of_the_build():
    person = make_patient(1, 3)
    first, second = make_pose(person, 0), make_pose(person, 1)
    change = np.linalg.norm(first.to_template(HEAD_3P) - second.to_template(HEAD_3P), axis=0)
    assert 0.2 < change.mean() < 12
    np.testing.assert_array_equal(first.push_W3, second.push_W3)
    assert first.swell == second.swell


def test_larger_ventricles_are_read_from_nearer_their_middle():
    pose = next(p for p in (make_pose(make_patient(1, n), 0) for n in range(50)) if p.swell > 0.2)
    middle = np.array(VENTRICLES_MM, np.float32)[:, None]
    near, far = middle + np.float32(10), middle + np.float32(90)
    assert np.linalg.norm(pose.ventricles(near) - middle) < 0.85 * np.linalg.norm(near - middle)
    np.testing.assert_allclose(pose.ventricles(far), far, atol=0.5)


@pytest.mark.parametrize(
    ("plane", "left", "top", "flat"),
    [("axial", (0, 1), (1, 1), 2), ("coronal", (0, 1), (2, 1), 1), ("sagittal", (1, 1), (2, 1), 0)],
)
def test_pictures_hang_as_radiologists_hang_them(plane, left, top, flat):
    """Left of the picture: the patient's right, or the front in sagittal ones; top: front, or the head's top."""
    across, down = np.array([-0.5, 0.5, 0, 0], np.float32), np.array([0, 0, -0.5, 0.5], np.float32)
    places = scanner_places(plane, 7.0, 1, across, down)
    half = SITES[1].field_of_view_mm / 2
    assert (places[flat] == 7).all()
    assert (places[left[0], 0], places[left[0], 1]) == (half, -half)
    assert (places[top[0], 2], places[top[0], 3]) == (half, -half)
