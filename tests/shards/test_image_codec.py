import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from hsadml_dist.shards.image_codec import (
    decode_image_file,
    decode_mask_file,
    encode_png,
    pad_square,
    scale_spacing,
    to_mask,
    to_uint16,
)
from hsadml_dist.shards.source import DamagedSampleError
from tests.data.image_bytes import make_tiff


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
    "image",
    [
        np.zeros((4, 4, 3)),
        np.zeros((0, 4)),
        np.array([[1.0, np.nan]]),
        np.array([[np.inf]]),
        np.array([[0, 5e-324]]),
        np.array([[-1e308, 1e308]]),
        np.array([[1j]]),
        np.array([["text"]]),
    ],
)
def test_to_uint16_rejects_invalid_images(image):
    with pytest.raises(ValueError, match="image"):
        to_uint16(image, 4)


def test_to_uint16_keeps_order_at_both_ends_of_32_bits():
    image = np.array([[0, 1 << 31], [(1 << 32) - 1, 1]], np.uint32)
    assert to_uint16(image, 2).tolist() == [[0, 32768], [65535, 0]]


def test_to_uint16_of_a_tall_image_equals_stretching_it_at_once():
    image = np.random.default_rng(0).normal(size=(1500, 1500))
    low, high = image.min(), image.max()
    at_once = ((image - low) * (65535 / (high - low))).astype(np.float32)
    np.testing.assert_array_equal(to_uint16(image, 1500), np.rint(at_once).astype(np.uint16))


def test_long_image_is_scaled_like_its_padded_square():
    """The longest side that is still padded first, and one pixel more."""
    stripes = np.repeat(np.arange(8193, dtype=np.uint16)[None] // 64 * 500, 2048, axis=0)
    padded, scaled = (to_uint16(stripes[:, :side], 64).astype(int) for side in (8192, 8193))
    assert (padded[:20] == 0).all() and (scaled[:20] == 0).all()
    assert abs(padded[28:36] - scaled[28:36]).max() < 600
    mask = np.zeros((9000, 4000), np.uint8)
    mask[:4500, :2000] = 1
    assert (to_mask(mask, 18)[:9, 5:9] == 255).all()
    assert to_mask(mask, 18).sum() == 255 * 9 * 4


LIMITED = """
import resource, sys
from pathlib import Path
from hsadml_dist.shards.image_codec import decode_image_file, to_mask, to_uint16
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (1 << 30)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
image = decode_image_file(Path(sys.argv[1]), "row 1")
print(image.shape, to_uint16(image, 256).shape, to_mask(image, 256).shape)
"""


@pytest.mark.parametrize(("height", "width"), [(4, 60_000), (60_000, 4), (1, 65_536)])
def test_elongated_image_needs_less_than_a_gibibyte(tmp_path, height, width):
    Image.fromarray(np.eye(height, width, dtype=np.uint8) * 200).save(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size < 2000
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "a.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == f"({height}, {width}) (256, 256) (256, 256)\n", done.stderr


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


def test_decode_image_file_does_not_wait_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DamagedSampleError, match="row 1: its image cannot be read: neither a file"):
        decode_image_file(tmp_path / "a.png", "row 1")


@pytest.mark.parametrize("decode", [decode_image_file, decode_mask_file])
def test_several_pages_are_refused_with_their_number(tmp_path, decode):
    (tmp_path / "a.tif").write_bytes(make_tiff([np.zeros((4, 4), np.uint8)] * 24))
    with pytest.raises(DamagedSampleError, match=r"row 1: its (image|mask) has 24 pages.*one slice per file"):
        decode(tmp_path / "a.tif", "row 1")


@pytest.mark.parametrize(("value", "options"), [(255, {}), (200, {"quality": 20}), (100, {"quality": 50})])
def test_jpeg_mask_is_separated_from_its_noise(tmp_path, value, options):
    inside = np.zeros((64, 64), bool)
    inside[20:41, 13:30] = True
    noisy = Image.fromarray(inside.astype(np.uint8) * value)
    noisy.save(tmp_path / "m.jpg", **options)
    noisy.save(tmp_path / "m.png")
    assert np.count_nonzero(decode_image_file(tmp_path / "m.jpg", "row 1")) > inside.sum(), "the JPEG has no noise"
    found, is_lossy = decode_mask_file(tmp_path / "m.jpg", "row 1")
    assert is_lossy
    np.testing.assert_array_equal(found != 0, inside)
    exact, is_lossy = decode_mask_file(tmp_path / "m.png", "row 1")
    assert not is_lossy
    np.testing.assert_array_equal(exact, inside * value)


def test_black_jpeg_mask_stays_empty(tmp_path):
    Image.new("L", (16, 16)).save(tmp_path / "m.jpg")
    assert not decode_mask_file(tmp_path / "m.jpg", "row 1")[0].any()
