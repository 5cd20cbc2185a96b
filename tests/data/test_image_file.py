import os
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hsadml_dist.data.image_file import MAX_FILE_BYTES, decode_image_bytes, decode_shard_png, is_coloured, read_file
from hsadml_dist.errors import DataError
from tests.data.image_bytes import (
    LONG,
    PASSES,
    SHORT,
    foreign_files,
    make_png,
    make_tiff,
    png_chunk,
    png_of,
    saved,
)

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (9, 14), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (9, 14)).astype(np.uint16)
DEEP_COLOUR = RNG.integers(0, 65536, (9, 14, 3)).astype(np.uint16)


def luminance(colour: np.ndarray) -> np.ndarray:
    """Pillow's weights, in exact arithmetic."""
    red, green, blue = (colour[..., channel].astype(np.int64) for channel in range(3))
    return (red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16


def without_last_pass(pixels: np.ndarray) -> bytes:
    """Return the unpacked data of an interlaced PNG without every second row, which is last in the file."""
    parts = [pixels[top::step_y, left::step_x] for left, top, step_x, step_y in PASSES[:-1]]
    return b"".join(b"\0" + row.tobytes() for part in parts for row in part)


def with_alpha(pixels: np.ndarray) -> np.ndarray:
    samples = pixels.reshape(*pixels.shape[:2], -1)
    return np.concatenate([samples, np.full_like(samples[..., :1], 77)], axis=2)


@pytest.mark.parametrize("kind", sorted(foreign_files()))
def test_formats_other_than_png_jpeg_and_tiff_are_not_decoded(kind):
    with pytest.raises(DataError, match="not a PNG, JPEG or TIFF"):
        decode_image_bytes(foreign_files()[kind])


def test_eps_named_png_never_starts_ghostscript(tmp_path):
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/marker\n")
    (tmp_path / "gs").chmod(0o755)
    (tmp_path / "a.png").write_bytes(foreign_files()["EPS"])
    ours = (
        "from hsadml_dist.data.image_file import decode_image_bytes, decode_shard_png, is_coloured\n"
        "from hsadml_dist.errors import DataError\n"
        "data, refused = open(sys.argv[1], 'rb').read(), 0\n"
        "for use in (decode_image_bytes, is_coloured, lambda data: decode_shard_png(data, 16, None)):\n"
        "    try: use(data)\n"
        "    except DataError: refused += 1\n"
        "print(refused)\n"
    )
    careless = "from PIL import Image\ntry: Image.open(sys.argv[1]).load()\nexcept Exception: print(3)\n"
    found = []
    for code in (ours, careless):
        path = f"{tmp_path}:{os.environ['PATH']}"
        command = [sys.executable, "-c", f"import sys\n{code}", str(tmp_path / "a.png")]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PATH": path})
        found.append((done.stdout.strip(), (tmp_path / "marker").exists()))
    assert found == [("3", False), ("3", True)]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("pixels", [BYTES, DEEP, DEEP.astype(np.float32), (DEEP - 30000.0).astype(np.float32)])
def test_white_is_zero_is_turned_to_black_is_zero(order, compressed, pixels):
    data = make_tiff([pixels], order, photometric=0, compressed=compressed)
    top = {"u": np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else 0, "f": 0}[pixels.dtype.kind]
    np.testing.assert_array_equal(decode_image_bytes(data).pixels, top - pixels)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [SHORT, LONG])
def test_white_is_zero_is_found_in_a_tag_of_either_type(order, kind):
    data = make_tiff([DEEP], order, tags=[(262, kind, [0])])
    np.testing.assert_array_equal(decode_image_bytes(data).pixels, 65535 - DEEP)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", [np.uint32, np.int32, np.int16, np.uint16, np.int8, np.float32])
def test_tiff_keeps_values_at_both_ends_of_its_type(dtype, compressed, order):
    limits = np.finfo(dtype) if np.dtype(dtype).kind == "f" else np.iinfo(dtype)
    ends = np.array([[limits.min, limits.max, 0, 5]], dtype)
    data = make_tiff([ends], order, compressed=compressed)
    if (dtype, order) == (np.uint32, ">"):
        with pytest.raises(DataError, match="not read"):
            decode_image_bytes(data)
        return
    pixels = decode_image_bytes(data).pixels
    np.testing.assert_array_equal(pixels.astype(np.float64), ends.astype(np.float64))


def test_pixels_of_a_type_that_pillow_lacks_are_refused_not_changed():
    with pytest.raises(DataError, match="not read"):
        decode_image_bytes(make_tiff([DEEP.astype(np.float64)]))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("alpha", [False, True])
def test_png_of_16_bit_colour_keeps_its_depth(interlaced, alpha):
    data = make_png(with_alpha(DEEP_COLOUR) if alpha else DEEP_COLOUR, interlaced)
    pixels = decode_image_bytes(data).pixels
    assert pixels.dtype == np.uint16
    np.testing.assert_array_equal(pixels, luminance(DEEP_COLOUR))


@pytest.mark.parametrize("interlaced", [False, True])
def test_png_of_16_bit_grey_and_alpha_keeps_its_depth(interlaced):
    pixels = decode_image_bytes(make_png(with_alpha(DEEP), interlaced)).pixels
    assert pixels.dtype == np.uint16
    np.testing.assert_array_equal(pixels, DEEP)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("alpha", [None, 0, 2])
def test_tiff_of_16_bit_colour_keeps_its_depth(order, compressed, alpha):
    colour = DEEP_COLOUR if alpha is None else with_alpha(DEEP_COLOUR)
    tags = [] if alpha is None else [(338, SHORT, [alpha])]
    pixels = decode_image_bytes(make_tiff([colour], order, compressed=compressed, tags=tags, strip_rows=4)).pixels
    assert pixels.dtype == np.uint16
    np.testing.assert_array_equal(pixels, luminance(DEEP_COLOUR))


def test_16_bit_grey_stored_as_colour_is_that_grey():
    grey = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(decode_image_bytes(make_png(np.repeat(grey[..., None], 3, axis=2))).pixels, grey)


@pytest.mark.parametrize(
    ("colour", "tags"),
    [
        (DEEP_COLOUR, [(284, SHORT, [2])]),
        (with_alpha(DEEP_COLOUR), [(338, SHORT, [1])]),
        (with_alpha(DEEP_COLOUR), [(262, SHORT, [5])]),
        (with_alpha(DEEP), [(338, SHORT, [2])]),
    ],
)
def test_16_bit_colour_that_would_lose_depth_is_refused(colour, tags):
    with pytest.raises(DataError, match="not read"):
        decode_image_bytes(make_tiff([colour], tags=tags))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_obeyed_in_every_format(orientation):
    seen = {
        1: BYTES,
        2: BYTES[:, ::-1],
        3: BYTES[::-1, ::-1],
        4: BYTES[::-1],
        5: BYTES.T,
        6: np.rot90(BYTES, -1),
        7: BYTES[::-1, ::-1].T,
        8: np.rot90(BYTES),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    png = saved(Image.fromarray(BYTES), "PNG", exif=exif)
    tiff = make_tiff([BYTES], tags=[(274, SHORT, [orientation])])
    deep = make_tiff([DEEP_COLOUR], tags=[(274, SHORT, [orientation])])
    jpeg = saved(Image.fromarray(BYTES), "JPEG", exif=exif)
    for data in (png, tiff):
        np.testing.assert_array_equal(decode_image_bytes(data).pixels, seen)
    plain = decode_image_bytes(saved(Image.fromarray(BYTES), "JPEG")).pixels
    back = {5: lambda a: a.T, 6: np.rot90, 7: lambda a: a[::-1, ::-1].T, 8: lambda a: np.rot90(a, -1)}
    flips = {2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1]}
    undo = (back | flips).get(orientation, lambda a: a)
    np.testing.assert_array_equal(undo(decode_image_bytes(jpeg).pixels), plain)
    np.testing.assert_array_equal(undo(decode_image_bytes(deep).pixels), luminance(DEEP_COLOUR))


def test_pages_and_loss_are_reported():
    assert decode_image_bytes(make_tiff([BYTES] * 3)).pages == 3
    assert decode_image_bytes(make_png(BYTES)).pages == 1
    assert (
        decode_image_bytes(
            saved(Image.fromarray(BYTES), "MPO", save_all=True, append_images=[Image.fromarray(BYTES)])
        ).pages
        == 2
    )
    lossy = [saved(Image.fromarray(BYTES), "JPEG"), saved(Image.fromarray(BYTES), "TIFF", compression="jpeg")]
    assert all(decode_image_bytes(data).is_lossy for data in lossy)
    assert not decode_image_bytes(saved(Image.fromarray(BYTES), "TIFF", compression="tiff_lzw")).is_lossy


def test_cut_multi_page_tiff_is_refused():
    data = make_tiff([BYTES] * 3)
    for keep in (len(data) - 400, len(data) - 900):
        with pytest.raises(DataError, match=r"page [23]: .*cut short"):
            decode_image_bytes(data[:keep])


@pytest.mark.parametrize(
    "data",
    [
        make_png(DEEP),
        make_png(DEEP_COLOUR),
        make_tiff([DEEP], compressed=True),
        make_tiff([BYTES], strip_rows=2),
        saved(Image.fromarray(BYTES), "JPEG"),
        saved(Image.fromarray(BYTES), "TIFF", compression="tiff_lzw"),
    ],
)
def test_every_cut_of_a_file_is_refused_or_has_all_pixels(data):
    whole = decode_image_bytes(data).pixels
    for keep in range(len(data)):
        try:
            pixels = decode_image_bytes(data[:keep]).pixels
        except DataError as error:
            assert "\n" not in str(error)
        else:
            np.testing.assert_array_equal(pixels, whole)


def test_missing_pixels_are_refused_not_filled_up():
    rows = b"".join(b"\0" + row.tobytes() for row in BYTES[:5])
    with pytest.raises(DataError, match="lacks a part"):
        decode_image_bytes(png_of(14, 9, 8, 0, rows))
    with pytest.raises(DataError, match="lacks a part"):
        decode_image_bytes(png_of(14, 9, 8, 0, without_last_pass(BYTES), interlaced=True))
    with pytest.raises(DataError, match="lacks a part"):
        decode_image_bytes(make_tiff([BYTES], strip_rows=3, tags=[(273, LONG, [8, 8])]))
    black = np.zeros((9, 14), np.uint8)
    np.testing.assert_array_equal(decode_image_bytes(make_png(black)).pixels, black)


def test_size_that_pillow_and_the_header_read_differently_is_refused():
    png = make_png(BYTES)
    two = png[:33] + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 5, 8, 0, 0, 0, 0)) + png[33:]
    with pytest.raises(DataError, match="two sizes"):
        decode_image_bytes(two)


def test_odd_tags_give_no_warning():
    data = make_tiff([BYTES], tags=[(305, 2 + 5, [1] * 9), (34665, LONG, [99_999])])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(decode_image_bytes(data).pixels, BYTES)


@pytest.mark.parametrize("bits", [8, 16])
def test_shard_png_is_decoded_at_its_size_alone(bits):
    pixels = RNG.integers(0, 2**bits, (16, 16)).astype(f"uint{bits}")
    found = decode_shard_png(make_png(pixels), bits, 16)
    assert found.dtype == pixels.dtype
    np.testing.assert_array_equal(found, pixels)
    with pytest.raises(DataError, match=r"PNG of 16 x 16 pixels.*expected: .*32 x 32"):
        decode_shard_png(make_png(pixels), bits, 32)
    with pytest.raises(DataError, match=f"expected: .*{24 - bits} bits"):
        decode_shard_png(make_png(pixels), 24 - bits, 16)


@pytest.mark.parametrize(
    "data",
    [
        make_tiff([DEEP[:9, :9]]),
        saved(Image.fromarray(BYTES[:9, :9]), "JPEG"),
        make_png(DEEP_COLOUR[:9, :9]),
        saved(Image.fromarray(BYTES[:9, :9]).convert("P"), "PNG"),
        make_png(DEEP[:9, :9])[:-30],
        foreign_files()["EPS"],
        b"",
    ],
)
def test_shard_png_of_another_kind_is_refused(data):
    for bits in (8, 16):
        with pytest.raises(DataError):
            decode_shard_png(data, bits, 9)


def test_is_coloured_finds_colour_in_any_block_of_rows():
    grey = np.repeat(RNG.integers(0, 256, (40, 30, 1), dtype=np.uint8), 3, axis=2)
    colour = grey.copy()
    colour[-1, -1] = (200, 20, 20)
    assert not is_coloured(make_png(grey)) and is_coloured(make_png(colour))
    assert not is_coloured(make_png(DEEP)) and is_coloured(make_png(DEEP_COLOUR))
    tall = np.zeros((65536, 70, 3), np.uint8)
    tall[-1, 0, 2] = 99
    assert is_coloured(make_png(tall))


def test_large_image_is_the_same_in_blocks():
    pixels = np.arange(2100 * 2100, dtype=np.uint32).astype(np.uint16).reshape(2100, 2100)
    np.testing.assert_array_equal(decode_image_bytes(make_png(pixels)).pixels, pixels)


def test_read_file_refuses_what_is_no_regular_file_and_never_waits(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    os.symlink("/dev/zero", tmp_path / "zero.png")
    for name in ("pipe.png", "zero.png", "."):
        with pytest.raises(DataError, match=r"neither a file|Is a directory"):
            read_file(tmp_path / name)
    with pytest.raises(DataError, match="No such file") as caught:
        read_file(tmp_path / "SECRET.png")
    assert "SECRET" not in str(caught.value)


def test_read_file_refuses_a_file_that_is_too_large(tmp_path):
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(DataError, match=f"{MAX_FILE_BYTES + 1} bytes"):
        read_file(tmp_path / "a.png")


def test_only_one_module_opens_images_with_pillow():
    package = Path(__file__).parents[2]
    opening = {
        path.name
        for folder in ("hsadml_dist", "launch", "shards", "slurm")
        for path in (package / folder).rglob("*.py")
        if "Image.open(" in path.read_text()
    }
    assert opening == {"image_file.py"}
