import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from hsadml_dist.data.image_header import (
    FLOAT,
    MAX_CHUNKS,
    MAX_PIXELS,
    MAX_SCANS,
    MAX_SEGMENTS,
    MAX_SIDE,
    SIGNED,
    has_all_rows,
    read_header,
)
from hsadml_dist.errors import DataError
from tests.data.image_bytes import LONG, RATIONAL, SHORT, foreign_files, make_png, make_tiff, png_chunk, png_of, saved

GREY = np.arange(60, dtype=np.uint8).reshape(6, 10)
COLOUR = np.arange(180, dtype=np.uint8).reshape(6, 10, 3)


def facts(data: bytes) -> tuple:
    header = read_header(data)
    return header.format, header.width, header.height, header.bits, header.samples, header.pages, header.is_lossy


def test_png_states_size_depth_and_samples():
    assert facts(make_png(GREY)) == ("PNG", 10, 6, 8, 1, 1, False)
    assert facts(make_png(COLOUR.astype(np.uint16))) == ("PNG", 10, 6, 16, 3, 1, False)
    assert facts(make_png(GREY, before=[(b"acTL", struct.pack(">II", 7, 0))])) == ("PNG", 10, 6, 8, 1, 7, False)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"comment": b"x" * 999}])
def test_jpeg_states_size_and_samples(options):
    assert facts(saved(Image.fromarray(GREY), "JPEG", **options)) == ("JPEG", 10, 6, 8, 1, 1, True)
    assert facts(saved(Image.fromarray(COLOUR), "JPEG", **options)) == ("JPEG", 10, 6, 8, 3, 1, True)


def test_tiff_states_size_type_and_pages():
    assert facts(make_tiff([GREY, GREY])) == ("TIFF", 10, 6, 8, 1, 2, False)
    assert facts(make_tiff([COLOUR.astype(np.uint16)], ">")) == ("TIFF", 10, 6, 16, 3, 1, False)
    assert facts(saved(Image.fromarray(COLOUR), "TIFF", compression="jpeg")) == ("TIFF", 10, 6, 8, 3, 1, True)
    assert facts(saved(Image.fromarray(GREY), "TIFF", big_tiff=True)) == ("TIFF", 10, 6, 8, 1, 1, False)
    kinds = [read_header(make_tiff([GREY.astype(kind)])).sample_format for kind in (np.int16, np.float32)]
    assert kinds == [SIGNED, FLOAT]


@pytest.mark.parametrize("kind", sorted(foreign_files()))
def test_other_formats_are_refused_by_their_content(kind):
    with pytest.raises(DataError, match="not a PNG, JPEG or TIFF"):
        read_header(foreign_files()[kind])


@pytest.mark.parametrize(
    ("width", "height"),
    [(MAX_SIDE + 1, 1), (1, MAX_SIDE + 1), (8192, 8193), (2**31 - 1, 2**31 - 1), (0, 5), (5, 0)],
)
def test_size_is_refused_by_the_header_alone(width, height):
    tiff = make_tiff([GREY], tags=[(256, LONG, [width]), (257, LONG, [height])])
    with pytest.raises(DataError, match=f"declares {width} x {height} pixels.*{MAX_PIXELS}"):
        read_header(png_of(width, height, 8, 0, b""))
    with pytest.raises(DataError, match=f"declares {width} x {height} pixels"):
        read_header(tiff)


def test_bytes_of_pixels_are_refused_by_the_header_alone():
    with pytest.raises(DataError, match=f"declares {8192 * 8192 * 8} bytes of pixels"):
        read_header(png_of(8192, 8192, 16, 6, b""))
    assert read_header(png_of(8192, 8192, 16, 2, b"")).samples == 3


def test_size_of_a_jpeg_is_refused_by_its_header():
    data = bytearray(saved(Image.fromarray(GREY), "JPEG"))
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, 65500, 65500)
    with pytest.raises(DataError, match="declares 65500 x 65500 pixels"):
        read_header(bytes(data))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (make_png(GREY)[:20], "damaged"),
        (png_of(10, 6, 8, 5, b""), "colour type 5"),
        (b"\xff\xd8\xff", "damaged"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "damaged"),
        (b"II*\0\0\0\0\0", "damaged"),
        (make_tiff([GREY], tags=[(259, SHORT, [34925])]), "compression 34925"),
        (make_tiff([GREY], tags=[(277, SHORT, [60000])]), "60000 samples"),
        (make_tiff([GREY], tags=[(322, LONG, [70000]), (323, LONG, [70000])]), "70000 x 70000"),
        (make_tiff([GREY], tags=[(256, RATIONAL, [10, 1])]), "type 5"),
        (make_tiff([GREY], tags=[(60000, SHORT, [1] * 300_000)]), "3000[0-9]{2} values"),
    ],
)
def test_damaged_or_excessive_header_is_refused(data, text):
    with pytest.raises(DataError, match=text) as caught:
        read_header(data)
    assert "\n" not in str(caught.value)


def test_numbers_of_parts_are_limited():
    many = b"".join([make_png(GREY)[:33], png_chunk(b"IDAT", b"") * MAX_CHUNKS])
    jpeg = saved(Image.fromarray(GREY), "JPEG")
    segments = jpeg[:2] + b"\xff\xfe\0\3x" * MAX_SEGMENTS + jpeg[2:]
    scans = jpeg[:-2] + b"\xff\xda" * MAX_SCANS + jpeg[-2:]
    for data, text in ((many, "chunks"), (segments, "segments"), (scans, "scans")):
        with pytest.raises(DataError, match=f"more than .* {text}|{MAX_SCANS + 1} {text}"):
            read_header(data)


def test_tag_of_the_size_given_twice_is_refused():
    data = bytearray(make_tiff([GREY], tags=[(255, LONG, [9])]))
    at = data.index(struct.pack("<HH", 255, LONG))
    struct.pack_into("<H", data, at, 256)
    with pytest.raises(DataError, match="twice"):
        read_header(bytes(data))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("shape", [(6, 10), (1, 1), (9, 3), (5, 7, 3)])
def test_missing_rows_of_a_png_are_noticed(shape, interlaced):
    pixels = np.ones(shape, np.uint16)
    data = make_png(pixels, interlaced)
    assert has_all_rows(data, read_header(data))
    header = read_header(data)
    short = png_of(header.width, header.height, 16, 2 if len(shape) == 3 else 0, b"\0" * 4, interlaced)
    assert has_all_rows(short, header) == (shape == (1, 1))


def test_header_is_read_without_numpy_and_pillow():
    code = (
        "import sys; import hsadml_dist.data.image_header; print(sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
