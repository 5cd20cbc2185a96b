import numpy as np
import pytest
from PIL import Image

from hsadml_dist.shards.source import DamagedSampleError
from hsadml_dist.shards.sources.image_files import decode_image_file


@pytest.mark.parametrize(
    ("name", "dtype", "top"), [("a.png", np.uint8, 255), ("b.png", np.uint16, 65535), ("c.tif", np.float32, 3)]
)
def test_values_come_as_stored(tmp_path, name, dtype, top):
    pixels = (np.linspace(0, 1, 48).reshape(6, 8) * top).astype(dtype)
    Image.fromarray(pixels).save(tmp_path / name)
    found = decode_image_file(tmp_path / name, "row 1", "image")
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, pixels)


def test_colour_becomes_luminance(tmp_path):
    Image.new("RGB", (4, 3), (255, 0, 0)).save(tmp_path / "red.png")
    found = decode_image_file(tmp_path / "red.png", "row 1", "image")
    assert (found.dtype, found.shape) == (np.uint8, (3, 4))
    assert set(found.ravel()) == {76}


@pytest.mark.parametrize("content", [b"", b"these are words, not a picture", b"\xff\xd8\xff\xe0" + b"0" * 50])
def test_what_is_no_picture_is_damaged_and_its_name_is_not_told(tmp_path, content):
    path = tmp_path / "SECRET.jpg"
    path.write_bytes(content)
    with pytest.raises(DamagedSampleError, match=r"^row 3: its mask cannot be decoded \(\w+\)") as caught:
        decode_image_file(path, "row 3", "mask")
    assert "SECRET" not in str(caught.value)


def test_a_picture_that_is_cut_is_damaged(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(DamagedSampleError, match="cannot be decoded"):
        decode_image_file(path, "row 1", "image")
