"""Read the MATLAB files of Jun Cheng's dataset: one slice per file, and the author's folds.

A slice is the struct ``cjdata`` in a MATLAB v7.3 file, which is HDF5 behind a block of 512 bytes. MATLAB stores columns
first, so HDF5 shows every array transposed; all shapes here are (height, width). Errors quote no content of a file.

``cvind.mat`` may also be a MATLAB v5 file. This module has its own reader for it, because scipy 1.17's reader ends the
process (segmentation fault) on some damaged files. A v5 file is a header of 128 bytes and a row of elements: a tag with
type and size, then the data, padded to 8 bytes. An element of type 14 is a variable made of further elements (flags,
shape, name, values); one of type 15 is an element compressed with zlib.

Sources: J. Cheng, brain tumor dataset, figshare 1512427 (2017); MathWorks, MAT-File Format, chapter 1, "Level 5
MAT-File Format".
"""

from __future__ import annotations

import io
import math
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
    import h5py
    import numpy as np

STRUCT = "cjdata"
LABELS = (1, 2, 3)
SLICES = 3064
"""Number of slices of the dataset, and so of folds in ``cvind``."""
AUTHOR_FOLDS = (1, 2, 3, 4, 5)
MAX_SIDE = 4096
"""More pixels per side than any slice has: a damaged header that claims more is rejected."""
MAX_CHUNK_BYTES = 1 << 27
"""HDF5 unpacks whole chunks, which may be larger than the array."""
MAX_PID_CHARACTERS = 64
HDF5_ERRORS = (OSError, KeyError, ValueError, TypeError, RuntimeError, OverflowError, MemoryError)
"""Exceptions of h5py for damaged content."""

V5_MAGIC = b"MATLAB 5.0"
V5_HEADER_BYTES = 128
V5_MATRIX, V5_COMPRESSED = 14, 15
V5_DTYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""Element type -> numpy type; MATLAB stores whole numbers in the smallest type that holds them."""
V5_NUMERIC_CLASSES = range(6, 16)
V5_COMPLEX = 0x0800
MAX_UNPACKED_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class SliceHeader:
    """Content of a slice's file apart from the pixels; ``shape`` is (height, width)."""

    label: int
    pid: str
    shape: tuple[int, int]


def read_header(content: Path | BinaryIO, where: str) -> SliceHeader:
    """Read all but the pixels of one slice.

    Raises:
        DamagedSampleError: The file does not exist, a field is missing or invalid, or the mask does not fit the image.
    """
    with _open_slice(content, where) as file:
        image = _image(file, where)
        _mask(file, image, where)
        return SliceHeader(label=_label(file, where), pid=_pid(file, where), shape=(image.shape[1], image.shape[0]))


def read_pixels(content: Path | BinaryIO, where: str) -> SourcePixels:
    """Read image (height, width) and, if the file has one, mask (height, width), in their stored types.

    Raises:
        DamagedSampleError: They cannot be read.
    """
    import numpy as np

    with _open_slice(content, where) as file:
        image = _image(file, where)
        mask = _mask(file, image, where)
        mask_HW = None if mask is None else np.ascontiguousarray(mask[()].T)
        return SourcePixels(image=np.ascontiguousarray(image[()].T), mask=mask_HW)


def read_author_folds(content: bytes) -> tuple[int, ...]:
    """Return the author's fold, 1 to 5, of each slice, in the order of slice numbers.

    Args:
        content: ``cvind.mat``, MATLAB v7.3 or v5.

    Raises:
        DataError: It cannot be read, or ``cvind`` is not 3064 whole numbers from 1 to 5.
    """
    try:
        values = _read_v73_folds(content) if not content.startswith(V5_MAGIC) else read_v5_array(content, "cvind")
    except HDF5_ERRORS as error:
        raise DataError("cvind.mat: not a complete MATLAB file: truncated, damaged or of another kind") from error
    if values is None:
        raise DataError("cvind.mat: no array 'cvind'")
    if values.size != SLICES or values.dtype.kind not in "iuf" or not set(values.flat) <= set(AUTHOR_FOLDS):
        raise DataError(
            f"cvind.mat: 'cvind' has {values.size} values; expected {SLICES} whole numbers from 1 to {AUTHOR_FOLDS[-1]}"
        )
    return tuple(int(value) for value in values.flat)


def read_v5_array(content: bytes, name: str) -> np.ndarray | None:
    """Return the values of a variable of a v5 file, flat, columns first; None if there is no such numeric array.

    Raises:
        ValueError: The file is damaged or truncated.
    """
    order = {b"IM": "<", b"MI": ">"}.get(content[V5_HEADER_BYTES - 2 : V5_HEADER_BYTES])
    if order is None:
        raise ValueError("no byte order in the header")
    for kind, data in _v5_elements(content[V5_HEADER_BYTES:], order):
        parts = list(_v5_elements(data, order)) if kind == V5_MATRIX else []
        if len(parts) >= 4 and parts[2][1] == name.encode() and _is_v5_numeric(parts[0][1], order):
            return _v5_values(*parts[3], order)
    return None


@contextmanager
def _open_slice(content: Path | BinaryIO, where: str) -> Iterator[h5py.File]:
    """Open a slice without a lock, because shared file systems often refuse locks, even to readers."""
    import h5py

    try:
        with h5py.File(content, "r", locking=False) as file:
            yield file
    except (FileNotFoundError, PermissionError) as error:
        raise DamagedSampleError(where, f"cannot be read: {os.strerror(error.errno or 0)}") from error
    except HDF5_ERRORS as error:
        raise DamagedSampleError(
            where, "not a complete MATLAB v7.3 (HDF5) file: truncated, damaged or of another kind"
        ) from error


def _field(file: h5py.File, name: str, where: str) -> h5py.Dataset:
    """Return one field of the struct."""
    import h5py

    group = _member(file, STRUCT)
    if not isinstance(group, h5py.Group):
        raise DamagedSampleError(where, f"has no struct {STRUCT!r}")
    field = _member(group, name)
    if field is None:
        raise DamagedSampleError(where, f"lacks the field {name!r}")
    if not isinstance(field, h5py.Dataset) or field.attrs.get("MATLAB_empty", 0):
        raise DamagedSampleError(where, f"its field {name!r} is empty or not an array")
    if not _is_self_contained(field):
        raise DamagedSampleError(where, f"its field {name!r} is kept in another file or in too large chunks")
    return field


def _member(parent: h5py.Group, name: str) -> h5py.Group | h5py.Dataset | None:
    """Return a member of a group; None if there is none, or only a link to another file."""
    import h5py

    return None if isinstance(parent.get(name, getlink=True), h5py.ExternalLink) else parent.get(name)


def _is_self_contained(field: h5py.Dataset) -> bool:
    """Return whether an array's values are in its own file, in chunks that can be unpacked."""
    chunk_bytes = math.prod(field.chunks or ()) * field.dtype.itemsize
    return not field.is_virtual and not field.external and chunk_bytes <= MAX_CHUNK_BYTES


def _image(file: h5py.File, where: str) -> h5py.Dataset:
    image = _field(file, "image", where)
    if image.ndim != 2 or not all(1 <= side <= MAX_SIDE for side in image.shape) or image.dtype.kind not in "iuf":
        raise DamagedSampleError(where, "its image is not two-dimensional and real")
    return image


def _mask(file: h5py.File, image: h5py.Dataset, where: str) -> h5py.Dataset | None:
    if file[STRUCT].get("tumorMask") is None:
        return None
    mask = _field(file, "tumorMask", where)
    if mask.shape != image.shape or mask.dtype.kind not in "iufb":
        raise DamagedSampleError(where, "its tumorMask does not have the image's shape")
    return mask


def _label(file: h5py.File, where: str) -> int:
    label = _field(file, "label", where)
    if label.size != 1 or label.dtype.kind not in "iuf" or label[()].item() not in LABELS:
        raise DamagedSampleError(where, f"its label is none of {', '.join(map(str, LABELS))}")
    return int(label[()].item())


def _pid(file: h5py.File, where: str) -> str:
    """Return the PID, whose characters are stored as UTF-16 codes."""
    pid = _field(file, "PID", where)
    if pid.dtype.kind != "u" or pid.dtype.itemsize > 2 or not 1 <= pid.size <= MAX_PID_CHARACTERS:
        raise DamagedSampleError(where, f"its PID is not a text of 1 to {MAX_PID_CHARACTERS} characters")
    try:
        text = pid[()].ravel().astype("<u2").tobytes().decode("utf-16-le").strip(" \0\t\r\n")
    except UnicodeDecodeError:
        text = ""
    if not text.isprintable() or not text:
        raise DamagedSampleError(where, "its PID is empty or not a text")
    return text


def _read_v73_folds(content: bytes) -> np.ndarray | None:
    """Return ``cvind``; zeros instead of its values if there are not as many as slices."""
    import h5py
    import numpy as np

    with h5py.File(io.BytesIO(content), "r") as file:
        cvind = _member(file, "cvind")
        if not isinstance(cvind, h5py.Dataset) or not _is_self_contained(cvind):
            return None
        return np.zeros(cvind.size) if cvind.size != SLICES else np.asarray(cvind[()])


def _v5_elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Yield type and data of each element, decompressed; all but compressed elements are padded to 8 bytes."""
    at = 0
    while at < len(data):
        kind, size, start, end = _v5_tag(data, at, order)
        if end > len(data):
            raise ValueError("an element extends beyond the file")
        if kind == V5_COMPRESSED:
            yield from _v5_elements(_decompress(data[start:end]), order)
            at = end
        else:
            yield kind, data[start : start + size]
            at = end + -end % 8


def _v5_tag(data: bytes, at: int, order: str) -> tuple[int, int, int, int]:
    """Return type, size, start and end of the data; up to four bytes of data are stored in the tag itself."""
    if at + 8 > len(data):
        raise ValueError("a truncated tag")
    kind, size = struct.unpack_from(order + "II", data, at)
    if kind >> 16:
        kind, size = kind & 0xFFFF, kind >> 16
        if size > 4:
            raise ValueError("a short element of more than four bytes")
        return kind, size, at + 4, at + 8
    return kind, size, at + 8, at + 8 + size


def _decompress(packed: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(packed, MAX_UNPACKED_BYTES)
    except zlib.error as error:
        raise ValueError("a damaged compressed element") from error
    if not unpacker.eof:
        raise ValueError("a compressed element is truncated or too large")
    return data


def _is_v5_numeric(flags: bytes, order: str) -> bool:
    if len(flags) != 8:
        raise ValueError("a variable without flags")
    word = struct.unpack_from(order + "I", flags)[0]
    return (word & 0xFF) in V5_NUMERIC_CLASSES and not word & V5_COMPLEX


def _v5_values(kind: int, data: bytes, order: str) -> np.ndarray:
    import numpy as np

    if kind not in V5_DTYPES:
        raise ValueError("values of an unknown type")
    return np.frombuffer(data, np.dtype(order + V5_DTYPES[kind]))
