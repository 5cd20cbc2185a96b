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
    """Return for each class the tumours and the points inside them."""
    found = {name: [] for name in CLASSES}
    for number in range(PATIENTS):
        patient = make_patient(8, number)
        lesion = make_lesion(patient)
        found[patient.class_name].append((lesion, lesion.points_inside(anatomy)))
    return found


def test_meningioma_has_a_broad_base_on_the_inner_surface_of_the_skull(bodies, anatomy):
    for lesion, inside in bodies["meningioma"]:
        inner = anatomy.inner.sample(inside)
        assert -0.5 < inner.max() <= 1, "touches the bone, and stays within"
        assert np.median(inner) < -3, "most of it presses on the brain"
        base = inside[:, inner > -3]
        assert np.linalg.norm(base - base.mean(1, keepdims=True), axis=0).max() > 0.7 * lesion.radius
        assert lesion.centre[2] > LOWEST_MM - lesion.radius


def test_meningiomas_occur_all_over_the_skull(bodies):
    centres = np.array([lesion.centre for lesion, _ in bodies["meningioma"]])
    assert (centres.std(0) > 20).all()
    assert (centres.min(0) < [-30, -60, -10]).all() and (centres.max(0) > [30, 20, 40]).all()


def test_glioma_is_in_white_matter_away_from_the_skull(bodies, anatomy):
    shares = {name: [np.mean(anatomy.white.sample(inside) > 100) for _, inside in bodies[name]] for name in CLASSES}
    assert np.median(shares["glioma"]) > 0.5
    assert np.median(shares["meningioma"]) < 0.4
    for lesion, inside in bodies["glioma"]:
        assert anatomy.inner.sample(inside).max() <= -1
        assert anatomy.inner.sample(lesion.centre[:, None])[0] < -12


def test_pituitary_tumour_is_at_the_sella_and_extends_upwards(bodies):
    for lesion, inside in bodies["pituitary"]:
        away = lesion.centre - np.array(SELLA_MM)
        assert np.linalg.norm(away) < 9
        assert np.linalg.norm((inside - lesion.centre[:, None])[:2], axis=0).max() < 1.9 * lesion.radius
        assert inside[2].max() - lesion.centre[2] > 0.85 * (lesion.centre[2] - inside[2].min())
    heights = [np.ptp(inside[2]) / np.ptp(inside[0]) for _, inside in bodies["pituitary"]]
    assert min(heights) < 1.25 and max(heights) > 1.6, "some round, some like a snowman"


def test_glioma_has_the_roughest_surface(bodies, anatomy):
    def stray(lesion, inside):
        depth = lesion.depth(inside, anatomy)
        shell = np.linalg.norm((inside - inside.mean(1, keepdims=True))[:, depth < 1.5], axis=0)
        return shell.std() / shell.mean()

    strays = {name: np.median([stray(*body) for body in bodies[name]]) for name in ("meningioma", "glioma")}
    assert strays["glioma"] > 1.2 * strays["meningioma"]


def test_glioma_has_bright_rim_and_dark_core_and_others_are_homogeneous(bodies, anatomy):
    for name in CLASSES:
        for lesion, inside in bodies[name]:
            depth = lesion.depth(inside, anatomy)
            bright = lesion.brightness(depth, inside, anatomy)
            if name == "glioma":
                rim, core = bright[depth < 0.05 * lesion.radius], bright[depth > 0.9 * depth.max()]
                assert np.median(rim) > 1.5 * np.median(core)
            else:
                assert bright.std() < 0.08 * bright.mean()


def test_lesion_brightness_has_the_same_range_in_all_classes(bodies):
    means = [np.mean([lesion.bright for lesion, _ in bodies[name]]) for name in CLASSES]
    assert np.ptp(means) < 0.08


def test_lesion_displaces_only_tissue_near_it(bodies):
    lesion, _ = bodies["glioma"][0]
    direction = np.array([[0.6], [0.8], [0.0]], np.float32)
    distances = lesion.radius * np.array([1.1, 1.5, 2.0, 6.0], np.float32)
    sources = lesion.undo_displacement(lesion.centre[:, None] + direction * distances)
    came_from = np.linalg.norm(sources - lesion.centre[:, None], axis=0)
    moved = distances - came_from
    assert (np.diff(moved) < 0).all()
    assert moved[0] > 0.2 * lesion.radius and abs(moved[-1]) < 0.01 * lesion.radius
    assert (np.diff(came_from) > 0).all(), "no tissue is folded over"


def test_lesion_is_within_its_reach(bodies, anatomy):
    for name in CLASSES:
        for lesion, inside in bodies[name]:
            assert np.linalg.norm(inside - lesion.centre[:, None], axis=0).max() <= lesion.reach_mm
            assert inside.shape[1] > 200
            assert (lesion.depth(inside, anatomy) > 0).all()
