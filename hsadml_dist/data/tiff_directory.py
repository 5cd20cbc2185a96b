"""Read the directories of TIFF files and of EXIF data, which have one structure.

A directory is a list of entries: a tag, the type and number of its values, and the values or their offset. The next
page has its directory at another offset. All of these numbers are the file's and may be wrong: nothing outside the data
is read, and lists have a limit. This module needs the standard library alone.

Sources: TIFF, revision 6.0 (Adobe, 1992), section 2; BigTIFF, The AWare Systems proposal (2007).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from hsadml_dist.errors import DataError

ORDERS = {b"II": "<", b"MM": ">"}
MAX_ENTRIES = 4096
MAX_PAGES = 4096
"""Pages that are counted: a file of 20 MB can have a million."""

NEW_SUBFILE_TYPE, ORIENTATION = 254, 274
NOT_A_PAGE = 0b101
"""Bits of NewSubfileType: a thumbnail of another page, or its transparency mask."""

UNSIGNED = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
"""Type of an entry's values -> format of struct."""
BYTE_TYPES = (1, 2, 7)


@dataclass(frozen=True, kw_only=True, slots=True)
class TiffEntry:
    """The values of one tag: their type, their number, and the position of the first in the data."""

    kind: int
    count: int
    at: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TiffDirectory:
    """One directory, the tags that it repeats, and the offset of the next one; 0 for the last."""

    entries: dict[int, TiffEntry]
    repeated: frozenset[int]
    next: int

    @property
    def numbers(self) -> int:
        """Count of all values that are numbers, not bytes or text."""
        return sum(entry.count for entry in self.entries.values() if entry.kind not in BYTE_TYPES)


def is_tiff(data: bytes) -> bool:
    """Return whether the first bytes are those of a TIFF or a BigTIFF."""
    return data[:2] in ORDERS and sorted(data[2:4]) in ([0, 42], [0, 43])


class TiffData:
    """The bytes of a TIFF, or of EXIF data without its prefix.

    Attributes:
        first: Offset of the first directory.
        order: Byte order as in ``struct``.
    """

    def __init__(self, data: bytes) -> None:
        if not is_tiff(data):
            raise DataError("not a TIFF by its content")
        self.data, self.order, self.big = data, ORDERS[data[:2]], 43 in data[2:4]
        (self.first,) = self._unpack("Q", 8) if self.big else self._unpack("I", 4)

    def directory(self, offset: int) -> TiffDirectory:
        """Read the directory at ``offset``.

        Raises:
            DataError: It is not within the data, or has too many entries.
        """
        (count,), at = self._unpack("Q" if self.big else "H", offset), offset + (8 if self.big else 2)
        if count > MAX_ENTRIES:
            raise DataError(f"a directory with {count} entries; allowed: {MAX_ENTRIES}")
        width = 20 if self.big else 12
        found: dict[int, TiffEntry] = {}
        repeated = set()
        for place in range(at, at + count * width, width):
            tag, entry = self._entry(place)
            if found.setdefault(tag, entry) is not entry:
                repeated.add(tag)
        (following,) = self._unpack("Q" if self.big else "I", at + count * width)
        return TiffDirectory(entries=found, repeated=frozenset(repeated), next=following)

    def numbers(self, entry: TiffEntry, most: int = 16) -> tuple[int, ...]:
        """Return the values of an entry, at most ``most``; raises DataError unless they are whole and unsigned."""
        if entry.kind not in UNSIGNED:
            raise DataError(f"a tag with values of type {entry.kind} where whole numbers are expected")
        return self._unpack(UNSIGNED[entry.kind] * min(entry.count, most), entry.at)

    def lowest_byte(self, entry: TiffEntry) -> int:
        """Return the position of the least significant byte of an unsigned entry's first value."""
        return entry.at + (struct.calcsize(f"={UNSIGNED[entry.kind]}") - 1 if self.order == ">" else 0)

    def pages(self) -> Iterator[TiffDirectory]:
        """Yield the directory of each page, at most :data:`MAX_PAGES`; thumbnails and masks are no pages."""
        seen: set[int] = set()
        offset = self.first
        while offset and offset not in seen and len(seen) < MAX_PAGES:
            try:
                directory = self.directory(offset)
            except DataError as error:
                raise DataError(f"page {len(seen) + 1}: {error}") from error
            kind = directory.entries.get(NEW_SUBFILE_TYPE)
            if not seen or kind is None or not sum(self.numbers(kind, 1)) & NOT_A_PAGE:
                yield directory
            seen.add(offset)
            offset = directory.next

    def _entry(self, place: int) -> tuple[int, TiffEntry]:
        tag, kind, count = self._unpack("HHQ" if self.big else "HHI", place)
        inline, here = (8, place + 12) if self.big else (4, place + 8)
        size = count * struct.calcsize(f"={UNSIGNED[kind]}") if kind in UNSIGNED else 0
        (at,) = (here,) if size <= inline else self._unpack("Q" if self.big else "I", here)
        return tag, TiffEntry(kind=kind, count=count, at=at)

    def _unpack(self, kinds: str, at: int) -> tuple[int, ...]:
        layout = self.order + kinds
        if at + struct.calcsize(layout) > len(self.data):
            raise DataError("the file is cut short, or refers to bytes beyond its end")
        return struct.unpack_from(layout, self.data, at)


def exif_orientation(exif: bytes) -> int:
    """Return the orientation, 1 to 8, that EXIF data ask for; 1 (as stored) if they are absent or damaged."""
    try:
        tiff = TiffData(exif.removeprefix(b"Exif\0\0"))
        entry = tiff.directory(tiff.first).entries.get(ORIENTATION)
        value = sum(tiff.numbers(entry, 1)) if entry is not None else 1
    except DataError:
        return 1
    return value if 1 <= value <= 8 else 1
