import numpy as np
import pytest

from hsadml_dist.shards.sources.phantom.head_anatomy import load_anatomy
from hsadml_dist.shards.sources.phantom.lesion import LOWEST_MM, SELLA_MM, make_lesion
from hsadml_dist.shards.sources.phantom.patient import CLASSES, make_patient

PATIENTS = 90


@pytest.fixture(scope="module")
def anatomy():
    return load_anatomy()


@pytest.fixture(scope="module")
def bodies(anatomy):
    """Return for each class the tumours and the places inside them."""
    found = {name: [] for name in CLASSES}
    for patient in range(PATIENTS):
        person = make_patient(8, patient)
        lesion = make_lesion(person)
        found[person.class_name].append((lesion, lesion.places_inside(anatomy)))
    return found


def test_a_meningioma_sits_on_the_skulls_inner_surface_with_a_broad_base(bodies, anatomy):
    for lesion, inside in bodies["meningioma"]:
        inner = anatomy.inner.at(inside)
        assert -0.5 < inner.max() <= 1, "touches the bone, and stays within"
        assert np.median(inner) < -3, "most of it presses on the brain"
        base = inside[:, inner > -3]
        assert np.linalg.norm(base - base.mean(1, keepdims=True), axis=0).max() > 0.7 * lesion.radius
        assert lesion.centre[2] > LOWEST_MM - lesion.radius


def test_meningiomas_are_all_over_the_skull(bodies):
    centres = np.array([lesion.centre for lesion, _ in bodies["meningioma"]])
    assert (centres.std(0) > 20).all()
    assert (centres.min(0) < [-30, -60, -10]).all() and (centres.max(0) > [30, 20, 40]).all()


def test_a_glioma_grows_in_white_matter_away_from_the_skull(bodies, anatomy):
    shares = {name: [np.mean(anatomy.white.at(inside) > 100) for _, inside in bodies[name]] for name in CLASSES}
    assert np.median(shares["glioma"]) > 0.5
    assert np.median(shares["meningioma"]) < 0.4
    for lesion, inside in bodies["glioma"]:
        assert anatomy.inner.at(inside).max() <= -1
        assert anatomy.inner.at(lesion.centre[:, None])[0] < -12


def test_a_pituitary_tumour_lies_at_the_sella_and_grows_upwards_if_at_all(bodies):
    for lesion, inside in bodies["pituitary"]:
        away = lesion.centre - np.array(SELLA_MM)
        assert np.linalg.norm(away) < 9
        assert np.linalg.norm((inside - lesion.centre[:, None])[:2], axis=0).max() < 1.9 * lesion.radius
        assert inside[2].max() - lesion.centre[2] > 0.85 * (lesion.centre[2] - inside[2].min())
    heights = [np.ptp(inside[2]) / np.ptp(inside[0]) for _, inside in bodies["pituitary"]]
    assert min(heights) < 1.25 and max(heights) > 1.6, "some round, some like a snowman"


def test_only_gliomas_are_ragged(bodies, anatomy):
    def stray(lesion, inside):
        depth = lesion.depth(inside, anatomy)
        shell = np.linalg.norm((inside - inside.mean(1, keepdims=True))[:, depth < 1.5], axis=0)
        return shell.std() / shell.mean()

    strays = {name: np.median([stray(*body) for body in bodies[name]]) for name in ("meningioma", "glioma")}
    assert strays["glioma"] > 1.2 * strays["meningioma"]


def test_a_gliomas_rim_is_bright_and_its_core_dark_and_the_others_are_even(bodies, anatomy):
    for name in CLASSES:
        for lesion, inside in bodies[name]:
            depth = lesion.depth(inside, anatomy)
            bright = lesion.brightness(depth, inside, anatomy)
            if name == "glioma":
                rim, core = bright[depth < 0.05 * lesion.radius], bright[depth > 0.9 * depth.max()]
                assert np.median(rim) > 1.5 * np.median(core)
            else:
                assert bright.std() < 0.08 * bright.mean()


def test_brightness_has_one_range_for_all_classes(bodies):
    means = [np.mean([lesion.bright for lesion, _ in bodies[name]]) for name in CLASSES]
    assert np.ptp(means) < 0.08


def test_tissue_is_pushed_away_near_the_tumour_and_nowhere_else(bodies):
    lesion, _ = bodies["glioma"][0]
    direction = np.array([[0.6], [0.8], [0.0]], np.float32)
    distances = lesion.radius * np.array([1.1, 1.5, 2.0, 6.0], np.float32)
    sources = lesion.push_aside(lesion.centre[:, None] + direction * distances)
    came_from = np.linalg.norm(sources - lesion.centre[:, None], axis=0)
    moved = distances - came_from
    assert (np.diff(moved) < 0).all()
    assert moved[0] > 0.2 * lesion.radius and abs(moved[-1]) < 0.01 * lesion.radius
    assert (np.diff(came_from) > 0).all(), "no tissue is folded over"


def test_all_of_it_lies_within_its_reach(bodies, anatomy):
    for name in CLASSES:
        for lesion, inside in bodies[name]:
            assert np.linalg.norm(inside - lesion.centre[:, None], axis=0).max() <= lesion.reach_mm
            assert inside.shape[1] > 200
            assert (lesion.depth(inside, anatomy) > 0).all()
