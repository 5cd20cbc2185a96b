"""Read the MATLAB files of Jun Cheng's dataset: one slice per file, and the author's folds.

A slice is the struct ``cjdata`` in a MATLAB v7.3 file, which is HDF5 behind a block of 512 bytes. MATLAB stores columns
first, so HDF5 shows every array transposed; all shapes here are (height, width). Errors quote no content of a file.

``cvind.mat`` may also be a MATLAB v5 file. It is read by our own code, because scipy 1.17's reader of this format ends
the process (segmentation fault) on some damaged files.

Sources: J. Cheng, brain tumor dataset, figshare 1512427 (2017); MathWorks, MAT-File Format, chapter 1, "Level 5
MAT-File Format".
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from hsadml_dist.errors import DataError
from hsadml_dist.shards.source import DamagedSampleError, SourcePixels

if TYPE_CHECKING:
    import numpy as np

V5_MAGIC = b"MATLAB 5.0"
V5_HEADER_BYTES = 128
MATRIX, COMPRESSED = 14, 15
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""Element type to numpy's name; MATLAB stores whole numbers in the smallest type that holds them."""
NUMERIC_CLASSES = range(6, 16)
COMPLEX = 0x0800
MOST_UNPACKED = 1 << 20


def read_v5_array(content: bytes, name: str) -> np.ndarray | None:
    """Return the values of variable ``name``, flat, columns first; None where the file has no such array of numbers.

    Raises:
        ValueError: The file is damaged or cut short.
    """
    order = {b"IM": "<", b"MI": ">"}.get(content[V5_HEADER_BYTES - 2 : V5_HEADER_BYTES])
    if order is None:
        raise ValueError("no byte order in the header")
    for kind, data in _elements(content[V5_HEADER_BYTES:], order):
        parts = list(_elements(data, order)) if kind == MATRIX else []
        if len(parts) >= 4 and parts[2][1] == name.encode() and _is_numeric(parts[0][1], order):
            return _values(*parts[3], order)
    return None


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Yield type and data of each element, unpacked; all but packed ones are filled up to 8 bytes."""
    at = 0
    while at < len(data):
        kind, size, start, end = _tag(data, at, order)
        if end > len(data):
            raise ValueError("an element ends behind the file")
        if kind == COMPRESSED:
            yield from _elements(_unpacked(data[start:end]), order)
            at = end
        else:
            yield kind, data[start : start + size]
            at = end + -end % 8


def _tag(data: bytes, at: int, order: str) -> tuple[int, int, int, int]:
    """Return type, size, and where the data start and end; up to four bytes stand in the tag itself."""
    if at + 8 > len(data):
        raise ValueError("a tag is cut short")
    kind, size = struct.unpack_from(order + "II", data, at)
    if kind >> 16:
        kind, size = kind & 0xFFFF, kind >> 16
        if size > 4:
            raise ValueError("a short element of more than four bytes")
        return kind, size, at + 4, at + 8
    return kind, size, at + 8, at + 8 + size


def _unpacked(packed: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(packed, MOST_UNPACKED)
    except zlib.error as error:
        raise ValueError("a packed element is damaged") from error
    if not unpacker.eof:
        raise ValueError("a packed element is cut short or too large")
    return data


def _is_numeric(flags: bytes, order: str) -> bool:
    if len(flags) != 8:
        raise ValueError("a variable without flags")
    word = struct.unpack_from(order + "I", flags)[0]
    return (word & 0xFF) in NUMERIC_CLASSES and not word & COMPLEX


def _values(kind: int, data: bytes, order: str) -> np.ndarray:
    import numpy as np

    if kind not in NUMBERS:
        raise ValueError("values of an unknown type")
    return np.frombuffer(data, np.dtype(order + NUMBERS[kind]))


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
    values = _cvind_v5(content) if content.startswith(V5_MAGIC) else _cvind_v73(content)
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
        values = read_v5_array(content, "cvind")
    except ValueError as error:
        raise DataError("cvind.mat: no whole MATLAB file: cut short, damaged or of another kind") from error
    if values is None:
        raise DataError("cvind.mat: holds no array 'cvind'")
    return values
