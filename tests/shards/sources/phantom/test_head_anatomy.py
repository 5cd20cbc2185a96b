import numpy as np
import pytest

from hsadml_dist.shards.sources.phantom.head_anatomy import (
    AIR,
    CORD,
    CORTEX,
    EYE,
    FAT,
    MARROW,
    MUSCLE,
    VoxelGrid,
    ellipsoid_distance,
    load_anatomy,
    paint_soft_tissue,
)


def ramp(mode):
    x, y, z = np.meshgrid(np.arange(4.0), np.arange(5.0), np.arange(6.0), indexing="ij")
    return VoxelGrid(values=x + 10 * y + 100 * z, origin=(-2.0, 4.0, 6.0), step=2, mode=mode)


def test_grid_sample_interpolates_linearly():
    points_3P = np.array([[-2, 1, 4], [4, 7, 12], [6, 9.5, 16]], np.float32)
    expected = [0, 1.5 + 15 + 175, 3 + 40 + 500]
    sampled = ramp("nearest").sample(points_3P)
    np.testing.assert_allclose(sampled, expected, rtol=1e-5)
    assert sampled.dtype == np.float32


@pytest.mark.parametrize(("mode", "beyond"), [("constant", 0), ("nearest", 3), ("grid-wrap", 0)])
def test_grid_sample_beyond_the_grid_follows_mode(mode, beyond):
    assert ramp(mode).sample(np.array([[6.0], [4.0], [6.0]], np.float32))[0] == pytest.approx(beyond, abs=1e-5)


def test_grid_sample_at_grid_points_returns_stored_values():
    volume = ramp("nearest")
    points_3P = np.stack(np.broadcast_arrays(*volume.coordinates()))
    np.testing.assert_allclose(volume.sample(points_3P), volume.values, atol=1e-4)


def test_grid_window_contains_the_box_and_little_more():
    volume = ramp("nearest")
    x, y, z = volume.window((1.0, 8.0, 11.0), (1.0, 2.0, 1.5))
    inside = volume.values[x, y, z]
    assert inside.shape == (3, 4, 4)
    assert inside.min() == 1 + 10 + 100
    assert volume.window((-90.0, 8.0, 11.0), (1.0, 2.0, 1.5))[0] == slice(0, 0)


def test_ellipsoid_distance_of_a_ball_is_exact():
    points = tuple(np.array(v, np.float32) for v in ([3.0, 0.0, 0.0], [4.0, 2.0, 0.0], [0.0, 0.0, 0.0]))
    np.testing.assert_allclose(ellipsoid_distance(points, (0, 0, 0), (4, 4, 4)), [1, -2, -4], rtol=2e-3)


def test_ellipsoid_distance_is_accurate_near_the_surface():
    points = tuple(np.array(v, np.float32) for v in ([10.5, 0.0], [0.0, 4.5], [0.0, 0.0]))
    np.testing.assert_allclose(ellipsoid_distance(points, (0, 0, 0), (10, 5, 2)), [0.5, -0.5], rtol=0.15)


@pytest.fixture(scope="module")
def soft():
    still = VoxelGrid(values=np.zeros((4, 4, 4), np.float32), origin=(0.0, 0.0, 0.0), step=1)
    return paint_soft_tissue(still)


@pytest.mark.parametrize(
    ("place", "brightness"),
    [
        ((0, 20, -45), AIR),
        ((33, 62, -38), EYE),
        ((28, 48, -66), AIR),
        ((0, 40, -102), MUSCLE),
        ((34, 34, -30), FAT),
        ((-52, 14, -100), MUSCLE),
        ((46, 6, -120), MARROW),
        ((42, -28, -36), CORTEX),
        ((0, -45, -112), CORD),
    ],
)
def test_soft_tissue_has_expected_parts(soft, place, brightness):
    assert soft.sample(np.array(place, np.float32)[:, None])[0] / 255 == pytest.approx(brightness, abs=0.12)


def test_soft_tissue_is_symmetric(soft):
    np.testing.assert_array_equal(soft.values, soft.values[::-1])


def test_soft_tissue_follows_the_texture():
    rough = VoxelGrid(values=np.random.default_rng(0).standard_normal((7, 7, 7)), origin=(0.0, 0.0, 0.0), step=1)
    values = paint_soft_tissue(rough).values
    assert values.dtype == np.uint8
    assert values[:3].std() > 5


VENTRICLE, WHITE, OUTSIDE = (8, 6, 16), (25, -30, 28), (0, 120, 40)
SELLA, VERTEX_SKIN, NECK = (0, 3, -34), (0, -20, 93), (0, -60, -130)


@pytest.fixture(scope="module")
def anatomy():
    return load_anatomy()


def at(volume, *points):
    return volume.sample(np.array(points, np.float32).T)


def test_anatomy_template_matches_its_coordinates(anatomy):
    fluid, white, air = at(anatomy.brain, VENTRICLE, WHITE, OUTSIDE)
    assert air == 0 < fluid < 120
    assert white > 190
    assert at(anatomy.white, WHITE)[0] > 220
    assert at(anatomy.white, VENTRICLE)[0] < 60


def test_anatomy_skull_encloses_the_brain_but_not_the_sella(anatomy):
    assert at(anatomy.inner, VENTRICLE, WHITE).max() < -15
    assert 2 < at(anatomy.inner, SELLA)[0] < 16
    x, y, z = anatomy.brain.coordinates()
    brain = anatomy.brain.values[::4, ::4, ::4] > 60
    points = np.stack(np.broadcast_arrays(x[::4], y[:, ::4], z[:, :, ::4]))
    distance = anatomy.inner.sample(points)
    assert distance[brain].max() < 4
    assert np.mean(distance[brain] > 1) < 0.01


def test_anatomy_distances_are_in_millimetres(anatomy):
    ray = np.array([[0.0] * 6, [-20.0] * 6, [60, 66, 72, 90, 96, 99]], np.float32)
    np.testing.assert_allclose(np.diff(anatomy.inner.sample(ray)), [6, 6, 18, 6, 3], atol=1.2)
    np.testing.assert_allclose(np.diff(anatomy.skin.sample(ray)), [6, 6, 18, 6, 3], atol=1.2)


def test_anatomy_skin_encloses_skull_face_and_neck(anatomy):
    assert abs(at(anatomy.skin, VERTEX_SKIN)[0]) < 6
    inside = at(anatomy.skin, VENTRICLE, SELLA, NECK, (33, 60, -38), (0, 98, -58), (0, 60, -110))
    assert inside.max() < -3
    outside = at(anatomy.skin, OUTSIDE, (0, 60, -150), (88, 30, 0), (0, -130, -100))
    assert outside.min() > 3


def test_anatomy_skull_is_inside_the_skin(anatomy):
    assert anatomy.skin.values[anatomy.inner.values < 8].max() < 0


def test_anatomy_texture_is_smooth_and_periodic(anatomy):
    values = anatomy.texture.values
    assert values.std() == pytest.approx(1, abs=1e-3)
    assert abs(values.mean()) < 0.1
    points = np.random.default_rng(0).uniform(0, 144, (3, 50)).astype(np.float32)
    np.testing.assert_allclose(
        anatomy.texture.sample(points), anatomy.texture.sample(points + np.float32(144)), atol=1e-3
    )
    assert np.abs(np.diff(values, axis=0)).mean() < 0.6


def test_load_anatomy_is_cached(anatomy):
    assert load_anatomy() is anatomy
