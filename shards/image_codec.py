"""Decode image files of sources, and encode pixels as the PNGs that shards hold.

Range: unsigned 8-bit values v become v * 257, which is exact and reversible. Every other type is stretched, image by
image, from its own minimum and maximum to 0 ... 65535; a constant image becomes 0. Shape: the image is padded to a
square with its minimum, centred, and resampled in floating point with an antialiased Lanczos filter; an image of the
stored size is not resampled.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from hsadml_dist.shards.source import DamagedSampleError

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
UINT16_MAX = 65535
BYTE_TO_UINT16 = 257
COMPRESSION = 2
"""zlib level of the PNGs: higher levels gain 5 % in size and take up to four times as long."""


def decode_image_file(path: Path, where: str, role: str) -> np.ndarray:
    """Return the pixels (height, width) of a JPEG, PNG or TIFF in their stored type; colour becomes 8-bit luminance.

    ``where`` is the name of the sample in messages, ``role`` what the file is for it: ``image`` or ``mask``.

    Raises:
        DamagedSampleError: The file cannot be read or decoded.
    """
    try:
        with Image.open(path) as image:
            grey = image.mode in ("L", "I", "F") or image.mode.startswith("I;16")
            return np.array(image if grey else image.convert("L"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        kind = type(error).__name__
        reason = f"its {role} cannot be decoded ({kind}): the file is damaged, or is not a JPEG, PNG or TIFF"
        raise DamagedSampleError(where, reason) from error


def to_uint16(image: np.ndarray, size: int) -> np.ndarray:
    """Return ``image`` (height, width), any real dtype, as uint16 (size, size).

    Raises:
        ValueError: Not two-dimensional, empty, or not finite.
    """
    if image.ndim != 2 or image.size == 0:
        raise ValueError(f"an image of shape {image.shape}: expected (height, width)")
    scaled = resample(pad_square(_stretch(image)), size)
    return np.clip(np.rint(scaled), 0, UINT16_MAX).astype(np.uint16)


def to_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Return ``mask`` (height, width) as uint8 (size, size): 255 where at least half a pixel is inside, otherwise 0."""
    inside = pad_square((mask != 0).astype(np.float32))
    return np.where(resample(inside, size, Image.Resampling.BOX) >= 0.5, np.uint8(255), np.uint8(0))


def encode_png(pixels: np.ndarray, compression: int = COMPRESSION) -> bytes:
    """Return the PNG of uint16 or uint8 (height, width); lossless, without date or text."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=compression)
    return buffer.getvalue()


def scale_spacing(spacing_mm: tuple[float, ...] | None, shape: tuple[int, ...], size: int) -> tuple[float, ...] | None:
    """Return the pixel size after padding an image of ``shape`` to a square and resampling it to ``size``."""
    return None if spacing_mm is None else tuple(step * max(shape) / size for step in spacing_mm)


def pad_square(image: np.ndarray) -> np.ndarray:
    """Return ``image`` centred in a square of its longer side, padded with its minimum."""
    height, width = image.shape
    side = max(height, width)
    if height == width:
        return image
    top, left = (side - height) // 2, (side - width) // 2
    square = np.full((side, side), image.min(), dtype=image.dtype)
    square[top : top + height, left : left + width] = image
    return square


def resample(square: np.ndarray, size: int, method: Image.Resampling = Image.Resampling.LANCZOS) -> np.ndarray:
    """Return float32 (size, size). When downsampling, the filter widens with the step, so that no detail aliases."""
    if square.shape == (size, size):
        return square
    return np.asarray(Image.fromarray(square.astype(np.float32)).resize((size, size), method))


def _stretch(image: np.ndarray) -> np.ndarray:
    """Return ``image`` as float32 over the 16-bit range."""
    if image.dtype == np.uint8:
        return image.astype(np.float32) * BYTE_TO_UINT16
    values = image.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("an image with values that are not finite")
    if low == high:
        return np.zeros(image.shape, np.float32)
    return ((values - low) * (UINT16_MAX / (high - low))).astype(np.float32)
