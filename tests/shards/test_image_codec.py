import io

import numpy as np
import pytest
from PIL import Image

from hsadml_dist.shards.image_codec import (
    decode_image_file,
    encode_png,
    pad_square,
    scale_spacing,
    to_mask,
    to_uint16,
)
from hsadml_dist.shards.source import DamagedSampleError


def decode(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def test_to_uint16_of_bytes_at_equal_size_is_exact():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    stored = decode(encode_png(to_uint16(image, 16)))
    assert stored.dtype == np.uint16
    np.testing.assert_array_equal(stored, image.astype(np.uint16) * 257)


def test_encode_png_keeps_16_bits():
    image = np.random.default_rng(0).integers(0, 65536, (64, 64)).astype(np.uint16)
    assert len(np.unique(image)) > 3000
    np.testing.assert_array_equal(decode(encode_png(image)), image)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.float32, np.float64])
def test_to_uint16_stretches_other_types_to_full_range(dtype):
    image = np.linspace(-100 if np.dtype(dtype).kind != "u" else 7, 900, 64).astype(dtype).reshape(8, 8)
    stored = to_uint16(image, 8)
    assert (stored.min(), stored.max()) == (0, 65535)
    assert (np.diff(stored.ravel().astype(int)) > 0).all()


def test_to_uint16_of_constant_image_is_zero():
    assert not to_uint16(np.full((8, 8), 3.5), 8).any()


def test_to_uint16_downsampling_does_not_alias():
    checkers = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    inner = to_uint16(checkers, 32)[4:-4, 4:-4].astype(float)
    np.testing.assert_allclose(inner, 65535 / 2, rtol=0.02)


def test_to_uint16_clips_overshoot():
    step = np.zeros((64, 64), np.uint8)
    step[:, 32:] = 255
    stored = to_uint16(step, 24)
    assert stored[:, :8].max() < 2000
    assert stored[:, -8:].min() > 63000


def test_pad_square_centres_the_image():
    image = np.full((4, 8), 9, np.uint8)
    image[0, 0] = 2
    square = pad_square(image)
    assert square.shape == (8, 8)
    np.testing.assert_array_equal(square[2:6], image)
    assert (square[:2] == 2).all() and (square[6:] == 2).all()


def test_to_mask_keeps_two_values_and_position():
    mask = np.zeros((32, 64), np.uint8)
    mask[8:16, 20:40] = 3
    stored = to_mask(mask, 16)
    assert set(np.unique(stored)) == {0, 255}
    rows, columns = np.nonzero(stored)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (6, 7, 5, 9)
    assert stored.dtype == decode(encode_png(stored)).dtype == np.uint8


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4, 3)), np.zeros((0, 4)), np.array([[1.0, np.nan]]), np.array([[np.inf]])]
)
def test_to_uint16_rejects_invalid_images(image):
    with pytest.raises(ValueError, match="image"):
        to_uint16(image, 4)


def test_scale_spacing_follows_pixel_size():
    assert scale_spacing((0.5, 0.5), (512, 256), 256) == (1.0, 1.0)
    assert scale_spacing(None, (512, 512), 256) is None


@pytest.mark.parametrize(
    ("name", "dtype", "top"), [("a.png", np.uint8, 255), ("b.png", np.uint16, 65535), ("c.tif", np.float32, 3)]
)
def test_decode_image_file_keeps_stored_values(tmp_path, name, dtype, top):
    pixels = (np.linspace(0, 1, 48).reshape(6, 8) * top).astype(dtype)
    Image.fromarray(pixels).save(tmp_path / name)
    found = decode_image_file(tmp_path / name, "row 1", "image")
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, pixels)


def test_decode_image_file_converts_colour_to_luminance(tmp_path):
    Image.new("RGB", (4, 3), (255, 0, 0)).save(tmp_path / "red.png")
    found = decode_image_file(tmp_path / "red.png", "row 1", "image")
    assert (found.dtype, found.shape) == (np.uint8, (3, 4))
    assert set(found.ravel()) == {76}


@pytest.mark.parametrize("content", [b"", b"these are words, not a picture", b"\xff\xd8\xff\xe0" + b"0" * 50])
def test_decode_image_file_reports_damage_without_the_file_name(tmp_path, content):
    path = tmp_path / "SECRET.jpg"
    path.write_bytes(content)
    with pytest.raises(DamagedSampleError, match=r"^row 3: its mask ") as caught:
        decode_image_file(path, "row 3", "mask")
    assert "SECRET" not in str(caught.value)


def test_decode_image_file_rejects_truncated_image(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(DamagedSampleError, match="row 1: its image"):
        decode_image_file(path, "row 1", "image")
