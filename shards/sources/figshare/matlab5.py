"""One array of numbers out of a MATLAB v5 file, such as ``cvind.mat`` may be.

Own code, since scipy 1.17's reader of this format ends the whole process (segmentation fault) on some damaged files.
A file is a header of 128 bytes and elements: a tag (type, size in bytes), then the data. An element of type 14 is a
variable, itself a row of elements (flags, shape, name, values); one of type 15 is an element packed by zlib.

Source: MathWorks, MAT-File Format, chapter 1, "Level 5 MAT-File Format".
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

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
