"""The MATLAB files of Jun Cheng's data set: a slice a file, and the author's folds.

A slice is the struct ``cjdata`` in a MATLAB v7.3 file, which is HDF5 behind a block of 512 bytes. MATLAB stores columns
first, so that HDF5 shows every array transposed; here all shapes are (height, width) again. A file that cannot be used
ends as a :class:`DamagedSampleError` whose reason quotes nothing of its content.

Source: J. Cheng, brain tumor dataset, figshare 1512427 (2017).
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from hsadml_dist.errors import DataError
from hsadml_dist.shards.record import DamagedSampleError, SourcePixels
from hsadml_dist.shards.sources.figshare import matlab5

if TYPE_CHECKING:
    import h5py
    import numpy as np

STRUCT = "cjdata"
LABELS = (1, 2, 3)
FILES = 3064
"""How many slices the data set has, and so how many folds ``cvind`` lists."""
AUTHOR_FOLDS = (1, 2, 3, 4, 5)
MOST_SIDE = 16384
"""More pixels a side than any slice has: a damaged header that claims more is not believed."""
MOST_LETTERS = 64
READ_ERRORS = (OSError, KeyError, ValueError, TypeError, RuntimeError, OverflowError, MemoryError)
"""What h5py raises on damaged content."""


@dataclass(frozen=True, kw_only=True)
class SliceHeader:
    """What a slice's file says beside its pixels.

    Attributes:
        label: 1 meningioma, 2 glioma, 3 pituitary.
        pid: The PID, in clear.
        shape: (height, width) of the image.
    """

    label: int
    pid: str
    shape: tuple[int, int]


def read_header(content: Path | BinaryIO, where: str) -> SliceHeader:
    """Read all but the pixels of one slice.

    Raises:
        DamagedError: No such file, a field that is missing or wrong, or a mask that does not fit its image.
    """
    with _opened(content, where) as file:
        image = _image(file, where)
        _mask(file, image, where)
        return SliceHeader(label=_label(file, where), pid=_pid(file, where), shape=(image.shape[1], image.shape[0]))


def read_pixels(content: Path | BinaryIO, where: str) -> SourcePixels:
    """Read image (height, width) and, where the file has one, mask (height, width); types as stored.

    Raises:
        DamagedError: They cannot be read.
    """
    import numpy as np

    with _opened(content, where) as file:
        image = _image(file, where)
        mask = _mask(file, image, where)
        return SourcePixels(
            image=np.ascontiguousarray(image[()].T),
            mask=None if mask is None else np.ascontiguousarray(mask[()].T),
        )


def read_author_folds(content: bytes) -> tuple[int, ...]:
    """Return the author's fold, 1 to 5, of each slice, in the order of the slices' numbers.

    Args:
        content: ``cvind.mat``, MATLAB v7.3 or v5.

    Raises:
        DataError: It cannot be read, or ``cvind`` is not 3064 whole numbers from 1 to 5.
    """
    values = _cvind_v5(content) if content.startswith(matlab5.V5_MAGIC) else _cvind_v73(content)
    if values.size != FILES or values.dtype.kind not in "iuf" or not set(values.flat) <= set(AUTHOR_FOLDS):
        raise DataError(
            f"cvind.mat: 'cvind' has {values.size} values: expected {FILES} whole numbers from 1 to {AUTHOR_FOLDS[-1]}"
        )
    return tuple(int(value) for value in values.flat)


@contextmanager
def _opened(content: Path | BinaryIO, where: str) -> Iterator[h5py.File]:
    """Open without a lock, since shared file systems often refuse one, also to readers."""
    import h5py

    try:
        with h5py.File(content, "r", locking=False) as file:
            yield file
    except (FileNotFoundError, PermissionError) as error:
        raise DamagedSampleError(where, f"cannot be read: {os.strerror(error.errno or 0)}") from error
    except READ_ERRORS as error:
        raise DamagedSampleError(
            where, "no whole MATLAB v7.3 (HDF5) file: cut short, damaged or of another kind"
        ) from error


def _field(file: h5py.File, name: str, where: str) -> h5py.Dataset | None:
    """Return one field of the struct, or None where the file lacks it."""
    import h5py

    struct = file.get(STRUCT)
    if not isinstance(struct, h5py.Group):
        raise DamagedSampleError(where, f"holds no struct {STRUCT!r}")
    field = struct.get(name)
    if field is None:
        return None
    if not isinstance(field, h5py.Dataset) or field.attrs.get("MATLAB_empty", 0):
        raise DamagedSampleError(where, f"its field {name!r} is empty or no array")
    return field


def _needed(file: h5py.File, name: str, where: str) -> h5py.Dataset:
    field = _field(file, name, where)
    if field is None:
        raise DamagedSampleError(where, f"lacks the field {name!r}")
    return field


def _image(file: h5py.File, where: str) -> h5py.Dataset:
    image = _needed(file, "image", where)
    if image.ndim != 2 or not all(1 <= side <= MOST_SIDE for side in image.shape) or image.dtype.kind not in "iuf":
        raise DamagedSampleError(where, "its image is not two-dimensional and real")
    return image


def _mask(file: h5py.File, image: h5py.Dataset, where: str) -> h5py.Dataset | None:
    mask = _field(file, "tumorMask", where)
    if mask is not None and (mask.shape != image.shape or mask.dtype.kind not in "iufb"):
        raise DamagedSampleError(where, "its tumorMask has not the image's shape")
    return mask


def _label(file: h5py.File, where: str) -> int:
    label = _needed(file, "label", where)
    if label.size != 1 or label.dtype.kind not in "iuf" or label[()].item() not in LABELS:
        raise DamagedSampleError(where, f"its label is none of {', '.join(map(str, LABELS))}")
    return int(label[()].item())


def _pid(file: h5py.File, where: str) -> str:
    """Return the PID: characters stored as their UTF-16 codes."""
    pid = _needed(file, "PID", where)
    if pid.dtype.kind != "u" or pid.dtype.itemsize > 2 or not 1 <= pid.size <= MOST_LETTERS:
        raise DamagedSampleError(where, f"its PID is no text of 1 to {MOST_LETTERS} characters")
    try:
        text = pid[()].ravel().astype("<u2").tobytes().decode("utf-16-le").strip(" \0\t\r\n")
    except UnicodeDecodeError:
        text = ""
    if not text.isprintable() or not text:
        raise DamagedSampleError(where, "its PID is empty or no text")
    return text


def _cvind_v73(content: bytes) -> np.ndarray:
    import h5py
    import numpy as np

    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            cvind = file.get("cvind")
            if not isinstance(cvind, h5py.Dataset):
                raise DataError("cvind.mat: holds no array 'cvind'")
            return np.zeros(cvind.size) if cvind.size != FILES else np.asarray(cvind[()])
    except READ_ERRORS as error:
        raise DataError("cvind.mat: no whole MATLAB file: cut short, damaged or of another kind") from error


def _cvind_v5(content: bytes) -> np.ndarray:
    try:
        values = matlab5.read_v5_array(content, "cvind")
    except ValueError as error:
        raise DataError("cvind.mat: no whole MATLAB file: cut short, damaged or of another kind") from error
    if values is None:
        raise DataError("cvind.mat: holds no array 'cvind'")
    return values
