"""Decode images that may be damaged, or made to do harm: the only place that hands the bytes of others to Pillow.

Each format has one named decoder. Pillow, when asked to guess, would try all of its decoders, some of which start other
programs (EPS starts Ghostscript). Headers are checked first, and whatever a decoder raises becomes a ``DataError``.

Pillow keeps 8 bits of 16-bit colour. Such files are decoded twice, once for the high and once for the low bytes of all
samples, by naming the other byte order the second time.
"""

from __future__ import annotations

import io
import os
import stat
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from hsadml_dist.data.image_header import (
    FLOAT,
    JPEG,
    PNG,
    SIGNED,
    TIFF,
    UNSIGNED,
    ImageHeader,
    check_size,
    has_all_rows,
    read_header,
)
from hsadml_dist.errors import DataError, os_error_reason

DECODERS = {PNG: PngImagePlugin, JPEG: JpegImagePlugin, TIFF: TiffImagePlugin}
"""Imported here so that Pillow does not search, and thereby import, all of its decoders for one of them."""

MAX_FILE_BYTES = 1 << 29
"""More than any image of the largest size needs."""
BLOCK_PIXELS = 1 << 22
"""Pixels that are copied at a time, because Pillow makes two more copies on the way to NumPy."""

GREY_MODES = ("L", "I", "F")
SHARD_MODES = {8: "L", 16: "I;16"}
"""Bits of a PNG in a shard -> Pillow's mode."""
LUMINANCE = (19595, 38470, 7471)
"""Weights of red, green and blue in 1/65536, those of Pillow's conversion to 8 bits."""
DEEP_KINDS = ("RGB;16", "RGBA;16", "RGBX;16")
"""Pillow's names of the layouts of 16-bit colour that can be decoded in full; the byte order follows."""
NATIVE_KINDS = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}
"""Layouts that Pillow expects of a compressed big-endian TIFF -> those that libtiff returns, in the machine's order."""
OTHER_ORDER = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
COLOUR_LEVELS = 24
"""Difference between two channels from which an image counts as coloured; JPEG's rounding is below it."""
DRAFT_SIDE = 256


@dataclass(frozen=True, kw_only=True)
class DecodedImage:
    """An image file, decoded.

    Attributes:
        pixels: (height, width) of the first page, in its stored type, turned as its EXIF data ask; colour becomes
            luminance, of 8 bits or, where the colours have 16, of 16.
        pages: Number of pages or frames in the file.
        is_lossy: True if it was compressed as JPEG, so that no pixel is exact.
    """

    pixels: np.ndarray
    pages: int
    is_lossy: bool


def read_file(path: Path) -> bytes:
    """Return the bytes of a regular file; a pipe or a device is never waited for.

    Raises:
        DataError: It cannot be read, or is too large; the message does not name it.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise DataError("neither a file nor a folder")
            if state.st_size > MAX_FILE_BYTES:
                raise DataError(f"{state.st_size} bytes; allowed: {MAX_FILE_BYTES}")
            return file.read(state.st_size)
    except OSError as error:
        raise DataError(os_error_reason(error)) from error


def decode_image_bytes(data: bytes) -> DecodedImage:
    """Decode a PNG, JPEG or TIFF.

    Raises:
        DataError: Its header or its pixels cannot be used; the message gives the reason and names no file.
    """
    header = read_header(data)
    with _no_warnings():
        if header.samples > 1 and header.bits > 8:
            pixels, pages = _decode_deep_colour(data, header), header.pages
        else:
            pixels, pages = _decode(data, header)
    return DecodedImage(pixels=_turn(pixels, header.orientation), pages=pages, is_lossy=header.is_lossy)


def decode_shard_png(data: bytes, bits: int, side: int | None) -> np.ndarray:
    """Decode a member of a shard to (side, side), uint16 or uint8; any size is accepted if ``side`` is None.

    Raises:
        DataError: It is not a greyscale PNG of this size with ``bits`` per sample, or is damaged.
    """
    header = read_header(data)
    found = (header.format, header.samples, header.bits, header.width, header.height)
    if found != (PNG, 1, bits, side or header.width, side or header.height):
        size = "" if side is None else f" of {side} x {side} pixels"
        raise DataError(
            f"a {header.format} of {header.width} x {header.height} pixels, {header.samples} samples of {header.bits} "
            f"bits each; expected: a greyscale PNG{size}, {bits} bits"
        )
    with _opened(data, header) as image:
        if image.mode != SHARD_MODES[bits]:
            raise DataError(f"a PNG of mode {image.mode}; expected: greyscale")
        return np.array(image)


def is_coloured(data: bytes) -> bool:
    """Return whether the channels of a PNG, JPEG or TIFF differ by more than a JPEG's rounding.

    Raises:
        DataError: As :func:`decode_image_bytes`.
    """
    header = read_header(data)
    with _no_warnings(), _opened(data, header) as image:
        image.draft("RGB", (DRAFT_SIDE, DRAFT_SIDE))
        if image.mode in ("1", "LA", *GREY_MODES) or image.mode.startswith("I;16"):
            return False
        return any(_channel_range(block) >= COLOUR_LEVELS for _, block in _row_blocks(image))


@contextmanager
def _opened(data: bytes, header: ImageHeader) -> Iterator[ImageFile.ImageFile]:
    """Open ``data`` with the decoder of its format; any exception of a decoder becomes a DataError."""
    try:
        with Image.open(io.BytesIO(data), formats=(header.format,)) as image:
            _check_as_declared(image, header)
            if header.format == TIFF:
                _prepare_tiff(image)
            yield image
    except DataError:
        raise
    except OSError as error:
        if error.errno is not None:  # of the system, such as too many open files: the bytes may be sound
            raise
        raise _decoder_error(error, header) from error
    except Exception as error:  # decoders raise whatever the bytes make them stumble over
        raise _decoder_error(error, header) from error


def _decoder_error(error: Exception, header: ImageHeader) -> DataError:
    pixel = f"{header.samples} x {header.bits} bits per pixel"
    kind = type(error).__name__
    return DataError(f"the file is damaged, or a kind of {header.format} that is not read ({pixel}, {kind})")


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Silence Pillow, which warns of odd tags in several lines that name its own files; not for threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _check_as_declared(image: ImageFile.ImageFile, header: ImageHeader) -> None:
    """Refuse a file of which Pillow reads another size than we did, and one that lacks a part of its pixels."""
    check_size(*image.size)
    declared = (header.width, header.height)
    if image.size not in (declared, declared[::-1]):
        raise DataError("the file is damaged: it declares two sizes")
    tiles = [extents for _, extents, *_ in image.tile if extents is not None]
    if sum((right - left) * (lower - upper) for left, upper, right, lower in tiles) < header.width * header.height:
        raise DataError(f"the file is damaged: a {header.format} that lacks a part of its pixels")


def _prepare_tiff(image: ImageFile.ImageFile) -> None:
    """Correct what Pillow plans to do with a TIFF."""
    # With one page, it would also read all EXIF tags, each of which may be as large as the file.
    image.is_animated = True  # type: ignore[attr-defined]
    image.tile = [
        tile._replace(args=_renamed(tile.args, lambda kind: NATIVE_KINDS.get(kind, kind)))
        if tile.codec_name == "libtiff"
        else tile
        for tile in image.tile
    ]


def _decode(data: bytes, header: ImageHeader) -> tuple[np.ndarray, int]:
    """Return the pixels, colour as 8-bit luminance and all else in its stored type, and the number of pages."""
    inverted = header.white_is_zero_at is not None and header.bits > 8
    with _opened(_black_is_zero(data, header) if inverted else data, header) as image:
        image.load()
        pages = getattr(image, "n_frames", 1) if image.format == "MPO" else header.pages
        if header.format == PNG and _may_lack_rows(image, header) and not has_all_rows(data, header):
            raise DataError("the file is damaged: a PNG that lacks a part of its pixels")
        grey = image.mode in GREY_MODES or image.mode.startswith("I;16")
        pixels = _as_stored(_to_array(image if grey else image.convert("L")), header)
    if inverted:
        pixels = -pixels if header.sample_format == FLOAT else ~pixels
    return pixels, pages


def _as_stored(pixels: np.ndarray, header: ImageHeader) -> np.ndarray:
    """Return the pixels in their own type where Pillow has only another one of the same width."""
    if header.sample_format == UNSIGNED and pixels.dtype == np.int32:
        return pixels.view(np.uint32)
    if header.sample_format == SIGNED and pixels.dtype == np.uint8:
        return pixels.view(np.int8)
    return pixels


def _black_is_zero(data: bytes, header: ImageHeader) -> bytes:
    """Return a TIFF in which 0 is black: of samples of more than 8 bits, Pillow ignores that it is white."""
    at = header.white_is_zero_at or 0
    return data[:at] + b"\1" + data[at + 1 :]


def _decode_deep_colour(data: bytes, header: ImageHeader) -> np.ndarray:
    """Return the luminance, uint16, of colour with 16 bits per sample, or the grey of grey and alpha."""
    if header.is_planar:
        raise DataError("16-bit colour in separate planes is not read; save it as 16-bit grey")
    if header.format == PNG and header.samples == 2:
        # Four bytes per pixel, read as if they were four channels: high and low of grey, high and low of alpha.
        total = _weigh_channels(data, header, lambda kind: "RGBA", (256 << 16, 1 << 16, 0), None)
    else:
        red, green, blue = LUMINANCE
        total = _weigh_channels(data, header, _as_is, (256 * red, 256 * green, 256 * blue), None)
        _weigh_channels(data, header, _in_other_order, LUMINANCE, total)
    total += 1 << 15
    total >>= 16
    return total.astype(np.uint16)


def _weigh_channels(
    data: bytes,
    header: ImageHeader,
    rename: Callable[[str], str],
    weights: tuple[int, int, int],
    total: np.ndarray | None,
) -> np.ndarray:
    """Add, to ``total`` or to 0, the weighted sum of the first three 8-bit channels of the renamed layout; uint32."""
    with _opened(data, header) as image:
        image.tile = [tile._replace(args=_renamed(tile.args, rename)) for tile in image.tile]
        image.load()
        if total is None:
            total = np.zeros(image.size[::-1], np.uint32)
        for rows, block in _row_blocks(image):
            channels = np.asarray(block)
            for channel, weight in enumerate(weights):
                total[rows] += channels[..., channel] * np.uint32(weight)
    return total


def _renamed(args: Any, rename: Callable[[str], str]) -> Any:
    """Return the arguments of one of Pillow's decoders with another name of the layout of pixels."""
    return rename(args) if isinstance(args, str) else (rename(args[0]), *args[1:])


def _as_is(kind: str) -> str:
    if not kind.startswith(DEEP_KINDS):
        raise DataError(f"16-bit colour of the kind {kind} is not read; save it as 16-bit grey")
    return kind


def _in_other_order(kind: str) -> str:
    return kind[:-1] + OTHER_ORDER[kind[-1]]


def _row_blocks(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """Yield blocks of whole rows: where they are, and the pixels."""
    width, height = image.size
    step = max(1, BLOCK_PIXELS // width)
    for top in range(0, height, step):
        rows = slice(top, min(top + step, height))
        yield rows, image.crop((0, rows.start, width, rows.stop))


def _to_array(image: Image.Image) -> np.ndarray:
    if image.width * image.height <= BLOCK_PIXELS:
        return np.array(image)
    blocks = _row_blocks(image)
    rows, first = next(blocks)
    pixels = np.empty((image.height, image.width), np.asarray(first).dtype)
    pixels[rows] = np.asarray(first)
    for rows, block in blocks:
        pixels[rows] = np.asarray(block)
    return pixels


def _may_lack_rows(image: Image.Image, header: ImageHeader) -> bool:
    """Return whether the row that comes last in the file may be missing: Pillow leaves it zero."""
    width, height = image.size
    return header.is_interlaced or not np.asarray(image.crop((0, height - 1, width, height))).any()


def _channel_range(image: Image.Image) -> int:
    """Return the largest difference between the channels of one pixel."""
    red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")), 2, 0)
    highest, lowest = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    return int((highest - lowest).max())


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return the pixels as an image of this EXIF orientation, 1 to 8, is meant to be seen."""
    if orientation == 1:
        return pixels
    turned = pixels.T if orientation >= 5 else pixels
    rows, columns = -1 if orientation in (3, 4, 7, 8) else 1, -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(turned[::rows, ::columns])


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
