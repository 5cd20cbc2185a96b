"""From what a user names on a command line to images scaled as the shards' images were."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hsadml_dist.errors import DataError, UsageError
from hsadml_dist.shards.image_codec import IMAGE_EXTENSIONS, decode_image_file

if TYPE_CHECKING:
    import numpy as np

MEDICAL = {
    ".dcm": "DICOM",
    ".dicom": "DICOM",
    ".ima": "DICOM",
    ".nii": "NIfTI",
    ".nii.gz": "NIfTI",
    ".mat": "MATLAB",
    ".nrrd": "NRRD",
    ".mha": "MetaImage",
    ".mgz": "FreeSurfer",
}
"""Names of image files that are not read here: told one by one, never left out in silence."""
HEAD_BYTES = 352
"""As far as the last mark of a format reaches (NIfTI's, at 344)."""
COLOUR = 24
"""Grey levels between two channels from which on a picture counts as coloured; JPEG's rounding stays below."""


@dataclass(frozen=True, kw_only=True)
class InputFiles:
    """What there is to answer.

    Attributes:
        files: In the order of the command line; a folder's sorted by path.
        left_out: Files in folders that are no images by their names.
    """

    files: tuple[Path, ...]
    left_out: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class InputImage:
    """An image as the shards would hold it, (size, size), uint16, and what to say of how it came there."""

    pixels: np.ndarray
    notes: tuple[str, ...] = ()


def list_input_files(paths: Iterable[Path]) -> InputFiles:
    """Return the files that ``paths`` stand for; a folder stands for all images in it and below it.

    Raises:
        UsageError: A path does not exist, or a folder holds no image.
    """
    files: list[Path] = []
    left_out: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted(_below(path))
            chosen = [file for file in found if _is_image(file)]
            left_out += [file for file in found if not _is_image(file)]
            if not chosen:
                raise UsageError(f"PATH {path}: the folder holds no image ({', '.join(IMAGE_EXTENSIONS)})")
            files += chosen
        elif path.exists():
            files.append(path)
        else:
            raise UsageError(f"PATH {path}: does not exist")
    return InputFiles(files=tuple(files), left_out=tuple(left_out))


def read_input_image(path: Path, size: int) -> InputImage:
    """Decode and scale a JPEG, PNG or TIFF exactly as a build of shards does.

    Raises:
        DataError: It cannot be used; the text says why and does not name the file.
    """
    from hsadml_dist.shards.image_codec import to_uint16
    from hsadml_dist.shards.source import DamagedSampleError

    fault = _fault(path)
    if fault:
        raise DataError(fault)
    try:
        pixels = to_uint16(decode_image_file(path, path.name, "image"), size)
    except DamagedSampleError as error:
        raise DataError(error.skip.reason) from error
    except ValueError as error:
        raise DataError(str(error)) from error
    return InputImage(pixels=pixels, notes=_notes(path))


def _below(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent) / name for name in names if not name.startswith("."))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_EXTENSIONS or _medical(path.name) != "" or _mark(_head(path)) != ""


def _fault(path: Path) -> str:
    """Say why a file is no picture; empty if it may be one."""
    try:
        head = _head_or_error(path)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    if not head:
        return "the file is empty"
    kind = _mark(head) or _medical(path.name)
    return f"a {kind} file is not read; save its slices as 16-bit PNG or TIFF" if kind else ""


def _medical(name: str) -> str:
    return next((kind for end, kind in MEDICAL.items() if name.lower().endswith(end)), "")


def _mark(head: bytes) -> str:
    """Return the format that a file's first bytes name, of those that are not read here."""
    if head[128:132] == b"DICM":
        return "DICOM"
    if head[344:347] in (b"n+1", b"ni1"):
        return "NIfTI"
    if head.startswith((b"MATLAB ", b"\x89HDF\r\n")):
        return "MATLAB or HDF5"
    return "PDF" if head.startswith(b"%PDF") else ""


def _head(path: Path) -> bytes:
    try:
        return _head_or_error(path)
    except OSError:
        return b""


def _head_or_error(path: Path) -> bytes:
    if not path.is_file():
        raise OSError(0, "neither a file nor a folder")
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def _notes(path: Path) -> tuple[str, ...]:
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        pages = getattr(image, "n_frames", 1)
        notes = (f"{pages} pages, the first is read",) if pages > 1 else ()
        image.draft("RGB", (256, 256))
        if image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16"):
            return notes
        channels = np.asarray(image.convert("RGB")).astype(np.int16)
    coloured = int(np.ptp(channels, axis=2).max()) >= COLOUR
    return (*notes, "coloured: its luminance is read") if coloured else notes
