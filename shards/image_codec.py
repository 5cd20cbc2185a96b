"""Decode image files of sources, and encode pixels as the PNGs that shards hold.

Range: unsigned 8-bit values v become v * 257, which is exact and reversible. Every other type is stretched, image by
image, from its own minimum and maximum to 0 ... 65535; a constant image becomes 0. Shape: the image is padded to a
square with its minimum, centred, and resampled in floating point with an antialiased Lanczos filter; an image of the
stored size is not resampled. A very long or wide image is resampled first and then padded, since its square would not
fit in memory.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from hsadml_dist.data.image_file import DecodedImage, decode_image_bytes, read_file
from hsadml_dist.data.image_header import MAX_PIXELS
from hsadml_dist.errors import DataError
from hsadml_dist.shards.source import DamagedSampleError

CONVERSION_VERSION = 2
"""Increased whenever some file becomes other stored pixels than before; an interrupted build is then not resumed."""
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
UINT16_MAX = 65535
BYTE_TO_UINT16 = 257
COMPRESSION = 2
"""zlib level of the PNGs: higher levels gain 5 % in size and take up to four times as long."""
BLOCK_ROWS = 512
"""Rows that are stretched at a time, in double precision."""


def decode_image_file(path: Path, where: str, role: str = "image") -> np.ndarray:
    """Return the pixels (height, width) of a JPEG, PNG or TIFF in their stored type; colour becomes luminance.

    ``where`` is the name of the sample in messages, ``role`` what the file is for it: ``image`` or ``mask``.

    Raises:
        DamagedSampleError: The file cannot be read or decoded, or holds several pages.
    """
    return _decode(path, where, role).pixels


def decode_mask_file(path: Path, where: str) -> tuple[np.ndarray, bool]:
    """Return a mask (height, width), non-zero inside the lesion, and whether it is a JPEG.

    A JPEG has no exact pixels: what was 0 comes back as a few grey levels near edges. Inside is then what has at least
    half of the mask's maximum.

    Raises:
        DamagedSampleError: As :func:`decode_image_file`.
    """
    mask = _decode(path, where, "mask")
    if not mask.is_lossy:
        return mask.pixels, False
    return (mask.pixels > 0) & (mask.pixels >= mask.pixels.max() / 2), True


def _decode(path: Path, where: str, role: str) -> DecodedImage:
    try:
        data = read_file(path)
    except DataError as error:
        raise DamagedSampleError(where, f"its {role} cannot be read: {error}") from error
    try:
        decoded = decode_image_bytes(data)
    except DataError as error:
        raise DamagedSampleError(where, f"its {role} cannot be decoded: {error}") from error
    if decoded.pages > 1:
        reason = (
            f"its {role} has {decoded.pages} pages; allowed: one slice per file; save each page as a file of its own"
        )
        raise DamagedSampleError(where, reason)
    return decoded


def to_uint16(image: np.ndarray, size: int) -> np.ndarray:
    """Return ``image`` (height, width), any real dtype, as uint16 (size, size).

    Raises:
        ValueError: Not two-dimensional, empty, not of real numbers, or not finite.
    """
    if image.ndim != 2 or image.size == 0:
        raise ValueError(f"an image of shape {image.shape}: expected (height, width)")
    if image.dtype.kind not in "buif":
        raise ValueError(f"an image of dtype {image.dtype}: expected integers or floats")
    scaled = fit_square(_stretch(image), size, Image.Resampling.LANCZOS)
    return np.clip(np.rint(scaled), 0, UINT16_MAX).astype(np.uint16)


def to_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Return ``mask`` (height, width) as uint8 (size, size): 255 where at least half a pixel is inside, otherwise 0."""
    inside = fit_square((mask != 0).astype(np.float32), size, Image.Resampling.BOX)
    return np.where(inside >= 0.5, np.uint8(255), np.uint8(0))


def encode_png(pixels: np.ndarray, compression: int = COMPRESSION) -> bytes:
    """Return the PNG of uint16 or uint8 (height, width); lossless, without date or text."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=compression)
    return buffer.getvalue()


def scale_spacing(spacing_mm: tuple[float, ...] | None, shape: tuple[int, ...], size: int) -> tuple[float, ...] | None:
    """Return the pixel size after padding an image of ``shape`` to a square and resampling it to ``size``."""
    return None if spacing_mm is None else tuple(step * max(shape) / size for step in spacing_mm)


def fit_square(image: np.ndarray, size: int, method: Image.Resampling) -> np.ndarray:
    """Return float32 (height, width) as (size, size), centred and padded with its minimum."""
    side = max(image.shape)
    if side * side <= MAX_PIXELS:
        image = pad_square(image)  # the unpadded image is freed before Pillow makes its own copy of the square
        return resample(image, (size, size), method)
    height, width = (max(1, round(length * size / side)) for length in image.shape)
    return pad_square(resample(image, (height, width), method), image.min())


def pad_square(image: np.ndarray, fill: float | None = None) -> np.ndarray:
    """Return ``image`` centred in a square of its longer side, padded with ``fill``, by default its minimum."""
    height, width = image.shape
    side = max(height, width)
    if height == width:
        return image
    top, left = (side - height) // 2, (side - width) // 2
    square = np.full((side, side), image.min() if fill is None else fill, dtype=image.dtype)
    square[top : top + height, left : left + width] = image
    return square


def resample(image: np.ndarray, shape: tuple[int, int], method: Image.Resampling) -> np.ndarray:
    """Return float32 of ``shape``. When downsampling, the filter widens with the step, so that no detail aliases."""
    if image.shape == shape:
        return image
    height, width = shape
    return np.asarray(Image.fromarray(image).resize((width, height), method))


def _stretch(image: np.ndarray) -> np.ndarray:
    """Return ``image`` as float32 over the 16-bit range."""
    if image.dtype == np.uint8:
        return image * np.float32(BYTE_TO_UINT16)
    low, high = float(image.min()), float(image.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("an image with values that are not finite")
    stretched = np.zeros(image.shape, np.float32)
    if low == high:
        return stretched
    factor = UINT16_MAX / (high - low)
    if not 0 < factor < np.inf:
        raise ValueError(f"an image with values from {low:g} to {high:g}: too near or too far to be scaled to 16 bits")
    for top in range(0, len(image), BLOCK_ROWS):
        rows = slice(top, top + BLOCK_ROWS)
        stretched[rows] = (image[rows].astype(np.float64) - low) * factor
    return stretched
