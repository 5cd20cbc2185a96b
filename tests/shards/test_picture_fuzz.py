"""Hostile images: thousands of mutated files, and small files made to cost much time or memory."""

import io
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hsadml_dist.data.image_header import MAX_CHUNKS
from tests.data.image_bytes import LONG, RATIONAL, make_png, make_tiff, png_chunk, png_of, saved

ROOT = Path(__file__).parents[2]
MUTATIONS = 7000
MAX_SECONDS = 10
MAX_BYTES = 20_000_000
GREY = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
SIDE = 8192


def fuzzer(*words: object) -> dict:
    """Run the fuzzer in a process of its own, since a crash of a decoder would end this one."""
    command = [sys.executable, "-m", "tests.shards.picture_fuzzer", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_mutated_images_end_in_our_errors_within_memory_and_time(tmp_path, kind):
    found = fuzzer(kind, MUTATIONS, tmp_path)
    assert found["files"] == MUTATIONS
    assert found["slowest"] < MAX_SECONDS
    assert min(found["decoded"], found["refused"]) > MUTATIONS // 20, found


def zeros(width: int, height: int, bits: int, colour: int, bytes_per_pixel: int) -> bytes:
    packer = zlib.compressobj(1)
    row = bytes(1 + width * bytes_per_pixel)
    packed = b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])
    empty = png_of(width, height, bits, colour, b"")
    end = empty.index(b"IDAT") - 4
    return empty[:end] + png_chunk(b"IDAT", packed) + png_chunk(b"IEND", b"")


def progressive(scans: int) -> bytes:
    """Return a progressive JPEG of the largest size with more scans than any encoder makes."""
    buffer = io.BytesIO()
    Image.new("L", (SIDE, SIDE), 9).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


def pages(count: int) -> bytes:
    chain = b"".join(struct.pack("<HI", 0, 8 + 6 * (number + 1)) for number in range(count - 1))
    return b"II*\0" + struct.pack("<I", 8) + chain + struct.pack("<HI", 0, 0)


def overlapping_tags() -> bytes:
    """Return a TIFF with an EXIF directory of which every tag is as large as the file."""
    file = make_tiff([np.zeros((8, 8), np.uint8)], tags=[(34665, LONG, [0])])
    at = file.index(struct.pack("<HHI", 34665, LONG, 1)) + 8
    rationals = b"".join(struct.pack("<HHII", tag, RATIONAL, 2_000_000, 8) for tag in range(1, 4000))
    directory = struct.pack("<H", 3999) + rationals + bytes(4)
    return file[:at] + struct.pack("<I", len(file)) + file[at + 4 :] + directory + bytes(17_000_000)


ATTACKS: dict[str, Callable[[], bytes]] = {
    "PNG of 16-bit grey": lambda: zeros(SIDE, SIDE, 16, 0, 2),
    "PNG of 16-bit colour": lambda: zeros(SIDE, SIDE, 16, 2, 6),
    "PNG of 8-bit colour with alpha": lambda: zeros(SIDE, SIDE, 8, 6, 4),
    "PNG of long rows": lambda: zeros(65536, 1024, 16, 2, 6),
    "PNG of many chunks": lambda: make_png(np.zeros((8, 8), np.uint8), before=[(b"abCd", b"")] * (MAX_CHUNKS - 9)),
    "PNG of more chunks": lambda: make_png(np.zeros((8, 8), np.uint8), before=[(b"abCd", b"")] * 1_500_000),
    "PNG of packed text": lambda: make_png(
        np.zeros((8, 8), np.uint8), before=[(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 20)))] * 15_000
    ),
    "JPEG of 90 scans": lambda: progressive(90),
    "JPEG of more scans": lambda: progressive(10_000),
    "JPEG of colour": lambda: saved(Image.new("RGB", (SIDE, SIDE)), "JPEG", progressive=True),
    "JPEG of four channels": lambda: saved(Image.new("CMYK", (SIDE, SIDE)), "JPEG", progressive=True),
    "JPEG of many EXIF segments": lambda: (
        b"\xff\xd8" + b"\xff\xe1\0\x09Exif\0\0x" * 1_800_000 + saved(GREY, "JPEG")[2:]
    ),
    "JPEG of junk": lambda: b"\xff\xd8\xff" + bytes(19_000_000) + saved(GREY, "JPEG")[2:],
    "TIFF of floats": lambda: make_tiff([np.zeros((SIDE, SIDE), np.float32)], compressed=True),
    "TIFF of wide floats": lambda: make_tiff([np.zeros((SIDE - 1, SIDE), np.float32)], compressed=True),
    "TIFF of 16-bit colour": lambda: make_tiff([np.zeros((SIDE, SIDE, 3), np.uint16)], compressed=True),
    "TIFF of dark 16-bit grey": lambda: make_tiff([np.eye(SIDE, dtype=np.uint16)], photometric=0, compressed=True),
    "TIFF of many strips": lambda: make_tiff([np.zeros((65536, 1), np.uint8)], strip_rows=1),
    "TIFF of more strips": lambda: make_tiff(
        [np.zeros((8, 8), np.uint8)], tags=[(273, LONG, [8] * 2_000_000), (279, LONG, [1] * 2_000_000)]
    ),
    "TIFF of a large tile": lambda: make_tiff(
        [np.zeros((8, 8), np.uint8)], tags=[(322, LONG, [SIDE]), (323, LONG, [SIDE])]
    ),
    "TIFF of many pages": lambda: pages(3_000_000),
    "TIFF of overlapping tags": overlapping_tags,
}


@pytest.mark.soak
@pytest.mark.parametrize("name", ATTACKS)
def test_small_file_costs_less_than_a_gibibyte_and_ten_seconds(tmp_path, name):
    content = ATTACKS[name]()
    assert len(content) < MAX_BYTES * 1.2
    (tmp_path / "a.png").write_bytes(content)
    found = fuzzer(tmp_path / "a.png")
    assert found["slowest"] < 2 * MAX_SECONDS, "twice, as processor time grows where other processes share the cores"
    if name.startswith(("PNG of 16", "PNG of 8", "JPEG of c", "TIFF of f", "TIFF of w", "TIFF of 16", "TIFF of d")):
        assert found["decoded"] >= 2, "an image of the largest size can be read"
