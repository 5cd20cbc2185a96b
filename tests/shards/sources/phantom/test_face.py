import numpy as np
import pytest

from hsadml_dist.shards.sources.phantom.face import AIR, CORD, CORTEX, EYE, FAT, MARROW, MUSCLE, paint_soft_tissue
from hsadml_dist.shards.sources.phantom.volume import VoxelGrid


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
def test_parts_lie_where_they_should(soft, place, brightness):
    assert soft.at(np.array(place, np.float32)[:, None])[0] / 255 == pytest.approx(brightness, abs=0.12)


def test_left_mirrors_right(soft):
    np.testing.assert_array_equal(soft.values, soft.values[::-1])


def test_texture_roughens_it():
    rough = VoxelGrid(values=np.random.default_rng(0).standard_normal((7, 7, 7)), origin=(0.0, 0.0, 0.0), step=1)
    values = paint_soft_tissue(rough).values
    assert values.dtype == np.uint8
    assert values[:3].std() > 5
