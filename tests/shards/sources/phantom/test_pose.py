import numpy as np
import pytest

from hsadml_dist.shards.sources.phantom.person import make_patient
from hsadml_dist.shards.sources.phantom.pose import VENTRICLES_MM, make_pose, scanner_places
from hsadml_dist.shards.sources.phantom.scan import SITES

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
