import struct

import numpy as np
import pytest

from hsadml_dist.data.tiff_directory import MAX_PAGES, TiffData, exif_orientation
from hsadml_dist.errors import DataError
from tests.data.image_bytes import LONG, SHORT, make_tiff

PAGE = np.arange(12, dtype=np.uint8).reshape(3, 4)


@pytest.mark.parametrize("order", ["<", ">"])
def test_pages_have_their_tags(order):
    tiff = TiffData(make_tiff([PAGE, PAGE, PAGE], order))
    pages = list(tiff.pages())
    assert len(pages) == 3
    assert [tiff.numbers(page.entries[256]) + tiff.numbers(page.entries[257]) for page in pages] == [(4, 3)] * 3


@pytest.mark.parametrize(("kind", "counted"), [(0, 3), (1, 1), (2, 3), (4, 1)])
def test_thumbnails_and_masks_are_no_pages(kind, counted):
    tiff = TiffData(make_tiff([PAGE] * 3, tags=[(254, LONG, [kind])]))
    assert len(list(tiff.pages())) == counted


def test_pages_that_form_a_loop_are_counted_once():
    data = bytearray(make_tiff([PAGE, PAGE]))
    second = TiffData(bytes(data)).directory(8).next
    entries = struct.unpack_from("<H", data, second)[0]
    struct.pack_into("<I", data, second + 2 + 12 * entries, 8)
    assert len(list(TiffData(bytes(data)).pages())) == 2


def test_pages_are_counted_up_to_a_limit():
    empty = b"".join(struct.pack("<HI", 0, 8 + 6 * (number + 1)) for number in range(2 * MAX_PAGES))
    assert len(list(TiffData(b"II*\0" + struct.pack("<I", 8) + empty).pages())) == MAX_PAGES


@pytest.mark.parametrize("keep", [9, 40, -200])
def test_directory_beyond_the_end_is_refused(keep):
    data = make_tiff([PAGE, PAGE])[:keep]
    with pytest.raises(DataError, match=r"page [12]: .*cut short"):
        list(TiffData(data).pages())


def test_numbers_beyond_the_end_or_of_another_type_are_refused():
    tiff = TiffData(make_tiff([PAGE], tags=[(40000, SHORT, [1] * 9), (40001, 7, [1, 2, 3])]))
    entries = tiff.directory(8).entries
    assert tiff.numbers(entries[40000]) == (1,) * 9
    with pytest.raises(DataError, match="type 7"):
        tiff.numbers(entries[40001])
    cut = TiffData(tiff.data[: entries[40000].at + 3])
    with pytest.raises(DataError, match="cut short"):
        cut.numbers(entries[40000])


def exif(order: str, value: int, kind: int = SHORT) -> bytes:
    head = b"II*\0" if order == "<" else b"MM\0*"
    packed = struct.pack(order + {SHORT: "H2x", LONG: "I", 7: "B3x"}[kind], value)
    return head + struct.pack(f"{order}IHHHI", 8, 1, 274, kind, 1) + packed + bytes(4)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("prefix", [b"", b"Exif\0\0"])
def test_exif_orientation_is_read(order, prefix):
    assert [exif_orientation(prefix + exif(order, value)) for value in range(1, 9)] == list(range(1, 9))
    assert exif_orientation(prefix + exif(order, 6, LONG)) == 6


@pytest.mark.parametrize("data", [b"", b"MM", b"II*\0", exif("<", 0), exif("<", 9), exif("<", 6, 7), exif(">", 6)[:16]])
def test_absent_or_damaged_exif_leaves_an_image_as_stored(data):
    assert exif_orientation(data) == 1
