import numpy as np
import pytest

from hsadml_dist.shards.sources.phantom.anatomy import load_anatomy

VENTRICLE, WHITE, OUTSIDE = (8, 6, 16), (25, -30, 28), (0, 120, 40)
SELLA, VERTEX_SKIN, NECK = (0, 3, -34), (0, -20, 93), (0, -60, -130)


@pytest.fixture(scope="module")
def anatomy():
    return load_anatomy()


def at(volume, *places):
    return volume.at(np.array(places, np.float32).T)


def test_the_template_lies_where_its_coordinates_say(anatomy):
    fluid, white, air = at(anatomy.brain, VENTRICLE, WHITE, OUTSIDE)
    assert air == 0 < fluid < 120
    assert white > 190
    assert at(anatomy.white, WHITE)[0] > 220
    assert at(anatomy.white, VENTRICLE)[0] < 60


def test_the_skull_surrounds_the_brain_and_leaves_the_sella_out(anatomy):
    assert at(anatomy.inner, VENTRICLE, WHITE).max() < -15
    assert 2 < at(anatomy.inner, SELLA)[0] < 16
    x, y, z = anatomy.brain.places()
    brain = anatomy.brain.values[::4, ::4, ::4] > 60
    places = np.stack(np.broadcast_arrays(x[::4], y[:, ::4], z[:, :, ::4]))
    distance = anatomy.inner.at(places)
    assert distance[brain].max() < 4
    assert np.mean(distance[brain] > 1) < 0.01


def test_distances_are_in_millimetres(anatomy):
    ray = np.array([[0.0] * 6, [-20.0] * 6, [60, 66, 72, 90, 96, 99]], np.float32)
    np.testing.assert_allclose(np.diff(anatomy.inner.at(ray)), [6, 6, 18, 6, 3], atol=1.2)
    np.testing.assert_allclose(np.diff(anatomy.skin.at(ray)), [6, 6, 18, 6, 3], atol=1.2)


def test_skin_surrounds_skull_face_and_neck(anatomy):
    assert abs(at(anatomy.skin, VERTEX_SKIN)[0]) < 6
    inside = at(anatomy.skin, VENTRICLE, SELLA, NECK, (33, 60, -38), (0, 98, -58), (0, 60, -110))
    assert inside.max() < -3
    outside = at(anatomy.skin, OUTSIDE, (0, 60, -150), (88, 30, 0), (0, -130, -100))
    assert outside.min() > 3


def test_no_part_of_the_skull_lies_outside_the_skin(anatomy):
    assert anatomy.skin.values[anatomy.inner.values < 8].max() < 0


def test_the_texture_is_smooth_and_has_no_end(anatomy):
    values = anatomy.texture.values
    assert values.std() == pytest.approx(1, abs=1e-3)
    assert abs(values.mean()) < 0.1
    places = np.random.default_rng(0).uniform(0, 144, (3, 50)).astype(np.float32)
    np.testing.assert_allclose(anatomy.texture.at(places), anatomy.texture.at(places + np.float32(144)), atol=1e-3)
    assert np.abs(np.diff(values, axis=0)).mean() < 0.6


def test_it_is_loaded_once(anatomy):
    assert load_anatomy() is anatomy
