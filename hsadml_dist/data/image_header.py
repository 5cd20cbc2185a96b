"""Read what a PNG, JPEG or TIFF states about itself, before a decoder gets its bytes.

A decoder allocates what a header asks for, and some lists in a small file keep it busy for hours. Therefore sizes and
counts are checked here first. All numbers are the file's and may be wrong. This module needs the standard library
alone.

Sources: PNG, third edition (W3C, 2025); JPEG, ITU-T T.81 (1992), annex B; TIFF as in ``tiff_directory``.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from hsadml_dist.data.tiff_directory import TiffData, TiffDirectory, exif_orientation, is_tiff
from hsadml_dist.errors import DataError

PNG, JPEG, TIFF = FORMATS = ("PNG", "JPEG", "TIFF")
"""The formats that are read, by Pillow's names. No other decoder ever gets a file."""

MAX_SIDE = 1 << 16
MAX_PIXELS = 1 << 26
"""8192 x 8192; from the file to a stored image, a pixel takes up to 14 bytes of memory."""
MAX_UNPACKED_BYTES = 6 * MAX_PIXELS
"""Of all samples as stored: libtiff unpacks a whole image at once if it has a single strip."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Colour type of a PNG -> samples per pixel."""
PNG_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""The passes of an interlaced PNG: first column, first row, step between columns, step between rows."""
MAX_CHUNKS = 1 << 16
INFLATE_BYTES = 1 << 20

JPEG_MAGIC = b"\xff\xd8\xff"
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of frames, which hold the size."""
JPEG_SCAN, JPEG_END, JPEG_APP1 = 0xDA, 0xD9, 0xE1
JPEG_BARE = (0x01, *range(0xD0, 0xD9))
"""Markers without content."""
JPEG_MARKER = re.compile(rb"\xff([^\x00\xff])")
MAX_JUNK = 1 << 12
"""Bytes between two segments, which Pillow skips one by one."""
MAX_SEGMENTS = 1024
MAX_SCANS = 100
"""A progressive JPEG has about ten; each further one costs a pass over all pixels."""
MAX_EXIF_BYTES = 1 << 20

WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
SAMPLES, PLANAR, TILE_WIDTH, TILE_LENGTH, SAMPLE_FORMAT = 277, 284, 322, 323, 339
TIFF_TAGS = (WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, PLANAR, TILE_WIDTH, TILE_LENGTH, SAMPLE_FORMAT)
TIFF_COMPRESSIONS = (1, 2, 3, 4, 5, 7, 8, 32773, 32946, 50000)
"""None, CCITT (2, 3, 4), LZW, JPEG, Deflate, PackBits, Deflate, Zstandard."""
TIFF_JPEG = 7
MAX_TIFF_SAMPLES = 6
MAX_TIFF_NUMBERS = 1 << 18
"""Values of a page's tags: Pillow makes an object of up to 300 bytes of each."""
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
"""Values of SampleFormat."""


@dataclass(frozen=True, kw_only=True)
class ImageHeader:
    """What a file states about its image.

    Attributes:
        format: One of :data:`FORMATS`.
        width: Columns as stored, before the image is turned as ``orientation`` asks.
        bits: Bits of each sample.
        samples: Samples per pixel, alpha included; 1 for a palette.
        sample_format: :data:`UNSIGNED`, :data:`SIGNED` or :data:`FLOAT`.
        is_lossy: True for JPEG, and for a TIFF that holds one.
        is_interlaced: True for a PNG in seven passes.
        is_planar: True for a TIFF that stores each sample of all pixels before the next.
        pages: Pages of a TIFF, frames of an animated PNG.
        orientation: 1 to 8 as in EXIF; of a TIFF always 1, because Pillow turns it itself.
        white_is_zero_at: Position of the byte that, being 0, makes 0 white in a TIFF; None if 0 is black.
    """

    format: str
    width: int
    height: int
    bits: int
    samples: int
    sample_format: int = UNSIGNED
    is_lossy: bool = False
    is_interlaced: bool = False
    is_planar: bool = False
    pages: int = 1
    orientation: int = 1
    white_is_zero_at: int | None = None


def read_header(data: bytes) -> ImageHeader:
    """Return what a file states about its image, if it may be decoded.

    Raises:
        DataError: Not one of :data:`FORMATS` by its content, damaged, or too large; the message names no file.
    """
    if data.startswith(PNG_SIGNATURE):
        header = _read_png(data)
    elif data.startswith(JPEG_MAGIC):
        header = _read_jpeg(data)
    elif is_tiff(data):
        header = _read_tiff(data)
    else:
        raise DataError("the file is empty" if not data else "not a PNG, JPEG or TIFF by its content")
    check_size(header.width, header.height)
    unpacked = header.width * header.height * header.samples * header.bits // 8
    if unpacked > MAX_UNPACKED_BYTES:
        raise DataError(f"its header declares {unpacked} bytes of pixels; allowed: {MAX_UNPACKED_BYTES}")
    return header


def check_size(width: int, height: int) -> None:
    """Raise DataError unless an image of this size may be decoded."""
    if min(width, height) < 1 or max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise DataError(
            f"its header declares {width} x {height} pixels; allowed: 1 to {MAX_SIDE} a side, {MAX_PIXELS} in all"
        )


def has_all_rows(data: bytes, header: ImageHeader) -> bool:
    """Return whether the pixel data of a PNG are as long as its size asks for; Pillow fills up short ones with 0."""
    missing, unpacker = _png_data_bytes(header), zlib.decompressobj()
    for packed in (body for kind, body in _png_chunks(data) if kind == b"IDAT"):
        missing -= len(unpacker.decompress(packed, INFLATE_BYTES))
        while missing > 0 and unpacker.unconsumed_tail:
            missing -= len(unpacker.decompress(unpacker.unconsumed_tail, INFLATE_BYTES))
        if missing <= 0:
            return True
    return False


def _read_png(data: bytes) -> ImageHeader:
    chunks = _png_chunks(data)
    kind, body = next(chunks, (b"", b""))
    if kind != b"IHDR" or len(body) != 13:
        raise DataError("the file is damaged: a PNG that does not start with its header")
    width, height, bits, colour, _, _, interlace = struct.unpack(">IIBBBBB", body)
    if colour not in PNG_SAMPLES:
        raise DataError(f"the file is damaged: a PNG of colour type {colour}")
    header = ImageHeader(
        format=PNG, width=width, height=height, bits=bits, samples=PNG_SAMPLES[colour], is_interlaced=bool(interlace)
    )
    for kind, body in chunks:
        if kind == b"acTL" and len(body) >= 4:
            header = replace(header, pages=max(1, struct.unpack_from(">I", body)[0]))
        elif kind == b"eXIf":
            header = replace(header, orientation=exif_orientation(bytes(body)))
    return header


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yield kind and content of each chunk; a chunk that is cut short ends them, as pixels may be complete."""
    at, content = len(PNG_SIGNATURE), memoryview(data)
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, at)
        if at + 8 + length > len(data):
            return
        yield kind, content[at + 8 : at + 8 + length]
        if kind == b"IEND":
            return
        at += 12 + length
    raise DataError(f"the file has more than {MAX_CHUNKS} chunks")


def _png_data_bytes(header: ImageHeader) -> int:
    """Return the length of the unpacked pixel data: each row of each pass has one byte more than its pixels."""
    passes = PNG_PASSES if header.is_interlaced else ((0, 0, 1, 1),)
    total = 0
    for left, top, step_x, step_y in passes:
        columns, rows = -((left - header.width) // step_x), -((top - header.height) // step_y)
        total += rows * (1 + -(-columns * header.samples * header.bits // 8)) if columns > 0 and rows > 0 else 0
    return total


def _read_jpeg(data: bytes) -> ImageHeader:
    frame, exif, exif_bytes = b"", b"", 0
    for marker, body in _jpeg_segments(data):
        if marker in JPEG_FRAMES:
            if frame or len(body) < 6:
                raise DataError("the file is damaged: a JPEG without one complete header")
            frame = body
        elif marker == JPEG_APP1 and body.startswith(b"Exif\0\0"):
            exif, exif_bytes = exif or body, exif_bytes + len(body)
    if not frame:
        raise DataError("the file is damaged: a JPEG without a header")
    if exif_bytes > MAX_EXIF_BYTES:
        raise DataError(f"the file has {exif_bytes} bytes of EXIF; allowed: {MAX_EXIF_BYTES}")
    scans = data.count(b"\xff\xda")
    if scans > MAX_SCANS:
        raise DataError(f"the file has {scans} scans of its pixels; allowed: {MAX_SCANS}")
    bits, height, width, samples = struct.unpack_from(">BHHB", frame)
    orientation = exif_orientation(exif)
    return ImageHeader(
        format=JPEG, width=width, height=height, bits=bits, samples=samples, is_lossy=True, orientation=orientation
    )


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield marker and content of each segment before the first scan."""
    at = 2
    for _ in range(MAX_SEGMENTS):
        found = JPEG_MARKER.search(data, at, at + MAX_JUNK)
        if found is None or found.end() + 2 > len(data):
            return
        marker, at = found[1][0], found.end()
        if marker in (JPEG_SCAN, JPEG_END):
            return
        if marker not in JPEG_BARE:
            (length,) = struct.unpack_from(">H", data, at)
            yield marker, data[at + 2 : at + length]
            at += max(2, length)
    raise DataError(f"the file has more than {MAX_SEGMENTS} segments before its pixels")


def _read_tiff(data: bytes) -> ImageHeader:
    tiff = TiffData(data)
    pages = list(tiff.pages())
    if not pages:
        raise DataError("the file is damaged: a TIFF without a page")
    if pages[0].numbers > MAX_TIFF_NUMBERS:
        raise DataError(f"the tags of its page have {pages[0].numbers} values; allowed: {MAX_TIFF_NUMBERS}")
    tags = _tiff_tags(tiff, pages[0])
    _check_tiff_layout(tags)
    is_white_zero = PHOTOMETRIC in tags and _only(tags, PHOTOMETRIC, 1) == 0
    return ImageHeader(
        format=TIFF,
        width=_only(tags, WIDTH, 0),
        height=_only(tags, LENGTH, 0),
        bits=max(tags.get(BITS, (1,)), default=1),
        samples=_only(tags, SAMPLES, 1),
        sample_format=max(tags.get(SAMPLE_FORMAT, (UNSIGNED,)), default=UNSIGNED),
        is_lossy=_only(tags, COMPRESSION, 1) == TIFF_JPEG,
        is_planar=_only(tags, PLANAR, 1) != 1,
        pages=len(pages),
        white_is_zero_at=tiff.lowest_byte(pages[0].entries[PHOTOMETRIC]) if is_white_zero else None,
    )


def _tiff_tags(tiff: TiffData, page: TiffDirectory) -> dict[int, tuple[int, ...]]:
    if page.repeated & set(TIFF_TAGS):
        raise DataError("the file is damaged: a TIFF that states its size or kind twice")
    return {tag: tiff.numbers(page.entries[tag]) for tag in TIFF_TAGS if tag in page.entries}


def _only(tags: dict[int, tuple[int, ...]], tag: int, default: int) -> int:
    """Return the first value of a tag."""
    return next(iter(tags.get(tag, ())), default)


def _check_tiff_layout(tags: dict[int, tuple[int, ...]]) -> None:
    """Refuse compressions without a use here, and tiles and pixels for which a decoder would need too much memory."""
    compression, samples = _only(tags, COMPRESSION, 1), _only(tags, SAMPLES, 1)
    if compression not in TIFF_COMPRESSIONS:
        raise DataError(f"a TIFF of compression {compression}, which is not read; save it with Deflate or LZW")
    if samples > MAX_TIFF_SAMPLES:
        raise DataError(f"a TIFF with {samples} samples per pixel; allowed: {MAX_TIFF_SAMPLES}")
    if TILE_WIDTH in tags or TILE_LENGTH in tags:
        check_size(_only(tags, TILE_WIDTH, 0), _only(tags, TILE_LENGTH, 0))
