import numpy as np
import pytest

from hsadml_dist.shards.sources.phantom.volume import VoxelGrid, ellipsoid_distance


def ramp(mode):
    x, y, z = np.meshgrid(np.arange(4.0), np.arange(5.0), np.arange(6.0), indexing="ij")
    return VoxelGrid(values=x + 10 * y + 100 * z, origin=(-2.0, 4.0, 6.0), step=2, mode=mode)


def test_between_the_grids_places_values_are_linear():
    places_3P = np.array([[-2, 1, 4], [4, 7, 12], [6, 9.5, 16]], np.float32)
    expected = [0, 1.5 + 15 + 175, 3 + 40 + 500]
    sampled = ramp("nearest").at(places_3P)
    np.testing.assert_allclose(sampled, expected, rtol=1e-5)
    assert sampled.dtype == np.float32


@pytest.mark.parametrize(("mode", "beyond"), [("constant", 0), ("nearest", 3), ("grid-wrap", 0)])
def test_beyond_the_grid(mode, beyond):
    assert ramp(mode).at(np.array([[6.0], [4.0], [6.0]], np.float32))[0] == pytest.approx(beyond, abs=1e-5)


def test_places_of_the_grid_give_its_own_values():
    volume = ramp("nearest")
    places_3P = np.stack(np.broadcast_arrays(*volume.places()))
    np.testing.assert_allclose(volume.at(places_3P), volume.values, atol=1e-4)


def test_a_window_holds_the_box_and_little_more():
    volume = ramp("nearest")
    x, y, z = volume.window((1.0, 8.0, 11.0), (1.0, 2.0, 1.5))
    inside = volume.values[x, y, z]
    assert inside.shape == (3, 4, 4)
    assert inside.min() == 1 + 10 + 100
    assert volume.window((-90.0, 8.0, 11.0), (1.0, 2.0, 1.5))[0] == slice(0, 0)


def test_the_distance_to_a_ball_is_exact():
    places = tuple(np.array(v, np.float32) for v in ([3.0, 0.0, 0.0], [4.0, 2.0, 0.0], [0.0, 0.0, 0.0]))
    np.testing.assert_allclose(ellipsoid_distance(places, (0, 0, 0), (4, 4, 4)), [1, -2, -4], rtol=2e-3)


def test_the_distance_to_an_ellipsoid_is_right_near_its_surface():
    places = tuple(np.array(v, np.float32) for v in ([10.5, 0.0], [0.0, 4.5], [0.0, 0.0]))
    np.testing.assert_allclose(ellipsoid_distance(places, (0, 0, 0), (10, 5, 2)), [0.5, -0.5], rtol=0.15)
