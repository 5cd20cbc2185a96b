"""Decoding picture files: JPEG, PNG and TIFF, 8 or 16 bits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hsadml_dist.shards.source import DamagedSampleError

if TYPE_CHECKING:
    import numpy as np

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff")


def decode_image_file(path: Path, where: str, role: str) -> np.ndarray:
    """Return (height, width): 8-bit, 16-bit, 32-bit or float as stored; colour as its 8-bit luminance.

    Args:
        path: The file.
        where: How an error names the sample.
        role: What the picture is to the sample: ``image`` or ``mask``.

    Raises:
        DamagedError: The file cannot be read or decoded.
    """
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path) as image:
            grey = image.mode in ("L", "I", "F") or image.mode.startswith("I;16")
            return np.array(image if grey else image.convert("L"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        kind = type(error).__name__
        reason = f"its {role} cannot be decoded ({kind}): damaged, or no JPEG, PNG or TIFF"
        raise DamagedSampleError(where, reason) from error
