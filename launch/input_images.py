"""Find and decode the image files given on a command line, scaled like the images in shards."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hsadml_dist.errors import DataError, UsageError
from hsadml_dist.shards.image_codec import IMAGE_EXTENSIONS

if TYPE_CHECKING:
    import numpy as np

UNSUPPORTED_SUFFIXES = {
    "DICOM": (".dcm", ".dicom", ".ima"),
    "NIfTI": (".nii", ".nii.gz"),
    "MATLAB": (".mat",),
    "NRRD": (".nrrd",),
    "MetaImage": (".mha",),
    "FreeSurfer": (".mgz",),
}
"""Formats that are not read here, with their suffixes. Their files are reported one by one, never skipped silently."""
HEAD_BYTES = 352
"""Enough for the magic number of every format; that of NIfTI is at byte 344."""


@dataclass(frozen=True, kw_only=True)
class InputFiles:
    """The files to process.

    Attributes:
        files: In the order of the command line; those of a folder sorted by path.
        skipped: Files in folders that are not images by their names.
    """

    files: tuple[Path, ...]
    skipped: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class InputImage:
    """A decoded image.

    Attributes:
        pixels: (size, size), uint16, as in shards.
        notes: Remarks about the conversion.
    """

    pixels: np.ndarray
    notes: tuple[str, ...] = ()


def list_input_files(paths: Iterable[Path]) -> InputFiles:
    """Return the files in ``paths``; a folder stands for all images below it.

    Raises:
        UsageError: A path does not exist, or a folder contains no image.
    """
    files: list[Path] = []
    skipped: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted(_walk(path))
            images = [file for file in found if _is_image(file)]
            skipped += [file for file in found if not _is_image(file)]
            if not images:
                raise UsageError(f"PATH {path}: the folder contains no image ({', '.join(IMAGE_EXTENSIONS)})")
            files += images
        elif path.exists():
            files.append(path)
        else:
            raise UsageError(f"PATH {path}: does not exist")
    return InputFiles(files=tuple(files), skipped=tuple(skipped))


def read_input_image(path: Path, size: int) -> InputImage:
    """Decode a JPEG, PNG or TIFF and scale it exactly as ``hsadml shards build`` does.

    Raises:
        DataError: The file cannot be used. The message gives the reason without the file's name.
    """
    from hsadml_dist.data.image_file import decode_image_bytes, is_coloured, read_file
    from hsadml_dist.shards.image_codec import to_uint16

    if problem := _problem(path):
        raise DataError(problem)
    data = read_file(path)
    try:
        decoded = decode_image_bytes(data)
        coloured = is_coloured(data)
    except DataError as error:
        raise DataError(f"it cannot be decoded: {error}") from error
    try:
        pixels = to_uint16(decoded.pixels, size)
    except ValueError as error:
        raise DataError(str(error)) from error
    notes = (f"{decoded.pages} pages, only the first is read",) if decoded.pages > 1 else ()
    return InputImage(pixels=pixels, notes=(*notes, "coloured image, converted to luminance") if coloured else notes)


def scale_input_array(image: np.ndarray, size: int) -> np.ndarray:
    """Scale an array (H, W) of an integer or float dtype to (size, size), uint16, as in shards.

    Raises:
        DataError: The array has another shape or dtype, or a value that is not finite.
    """
    from hsadml_dist.shards.image_codec import to_uint16

    try:
        return to_uint16(image, size)
    except ValueError as error:
        raise DataError(f"image array: {error}") from error


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent) / name for name in names if not name.startswith("."))


def _is_image(path: Path) -> bool:
    if path.suffix.lower() in IMAGE_EXTENSIONS or _format_of_suffix(path.name):
        return True
    try:
        return _format_of_content(_read_head(path)) != ""
    except OSError:
        return False


def _problem(path: Path) -> str:
    """Return why a file cannot be decoded; empty if it may be an image."""
    try:
        head = _read_head(path)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    if not head:
        return "the file is empty"
    kind = _format_of_content(head) or _format_of_suffix(path.name)
    return f"{kind} files are not supported; save the slices as 16-bit PNG or TIFF" if kind else ""


def _format_of_suffix(name: str) -> str:
    return next((kind for kind, suffixes in UNSUPPORTED_SUFFIXES.items() if name.lower().endswith(suffixes)), "")


def _format_of_content(head: bytes) -> str:
    """Return the unsupported format that a file's first bytes show; empty if there is none."""
    if head[128:132] == b"DICM":
        return "DICOM"
    if head[344:347] in (b"n+1", b"ni1"):
        return "NIfTI"
    if head.startswith((b"MATLAB ", b"\x89HDF\r\n")):
        return "MATLAB or HDF5"
    return "PDF" if head.startswith(b"%PDF") else ""


def _read_head(path: Path) -> bytes:
    # Opening a pipe would wait for its writer.
    if not path.is_file():
        raise OSError(0, "neither a file nor a folder")
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)
