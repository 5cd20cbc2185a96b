"""Checking a folder of shards against its index: every byte is read, every fault told; without torch or numpy."""

from __future__ import annotations

import hashlib
import struct
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from hsadml_dist.data.index import INDEX_NAME, SAMPLES_NAME, SampleRow, ShardFile, ShardIndex, load_index
from hsadml_dist.data.sample import IMAGE, MASK, META, SampleMeta
from hsadml_dist.errors import DataError
from hsadml_dist.shards.writer import describe_file, member_spans

PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_HEADER_BYTES = 26
GREYSCALE = 0
DEPTHS = {IMAGE: 16, MASK: 8}


def verify_shards(folder: Path, on_shard: Callable[[int, int], None] = lambda done, total: None) -> tuple[str, ...]:
    """Return every fault of a folder of shards, one line each; none where all is well.

    Args:
        folder: The folder.
        on_shard: Called with the tars checked so far and their number.
    """
    try:
        index = load_index(folder)
    except DataError as error:
        return (str(error),)
    faults = [*_index_faults(index), *_stray_files(folder, index)]
    for file in index.files:
        faults.extend(_file_faults(folder, file))
    rows = _by_shard(index)
    for number in range(len(index.shards)):
        faults.extend(_shard_faults(folder, index, number, rows[number]))
        on_shard(number + 1, len(index.shards))
    return tuple(faults)


def _by_shard(index: ShardIndex) -> dict[int, list[SampleRow]]:
    rows: defaultdict[int, list[SampleRow]] = defaultdict(list)
    for row in index.samples:
        rows[row.shard].append(row)
    return rows


def _index_faults(index: ShardIndex) -> Iterator[str]:
    """Tell keys that come twice, units in two folds, and classes or folds without samples."""
    seen: set[str] = set()
    for row in index.samples:
        if row.key in seen:
            yield f"{SAMPLES_NAME}: key {row.key} comes twice"
        seen.add(row.key)
    yield from _torn_units(index)
    if len(index.fold_numbers) != index.folds:
        yield f"{INDEX_NAME}: folds {index.folds}, but samples are in {len(index.fold_numbers)}"
    for label in sorted(set(range(len(index.classes))) - {row.label for row in index.samples}):
        yield f"{INDEX_NAME}: class {index.classes[label]!r} has no sample"


def _torn_units(index: ShardIndex) -> Iterator[str]:
    if index.split_unit == "slice":
        return
    folds: defaultdict[str | None, set[int]] = defaultdict(set)
    for row in index.samples:
        folds[getattr(row, index.split_unit)].add(row.fold)
    if None in folds:
        yield f"{SAMPLES_NAME}: split by {index.split_unit}, but samples without one"
    for unit, found in folds.items():
        if unit is not None and len(found) > 1:
            yield f"{SAMPLES_NAME}: {index.split_unit} {unit} is in folds {', '.join(map(str, sorted(found)))}"


def _stray_files(folder: Path, index: ShardIndex) -> Iterator[str]:
    known = {shard.name for shard in index.shards}
    for path in sorted(folder.glob("*.tar")):
        if path.name not in known:
            yield f"{path.name}: not in {INDEX_NAME}"


def _file_faults(folder: Path, expected: ShardFile) -> Iterator[str]:
    """Compare a file's size and hash with the index."""
    try:
        found = describe_file(folder / expected.name)
    except OSError as error:
        yield f"{expected.name}: cannot be read: {error.strerror}"
        return
    if found.bytes != expected.bytes:
        yield f"{expected.name}: {found.bytes} bytes, expected {expected.bytes}"
    if found.sha256 != expected.sha256:
        yield f"{expected.name}: its SHA-256 is not the one in {INDEX_NAME}: damaged"


def _shard_faults(folder: Path, index: ShardIndex, number: int, rows: Sequence[SampleRow]) -> list[str]:
    expected = index.shards[number]
    path = folder / expected.name
    faults = list(_file_faults(folder, expected))
    if not path.is_file():
        return faults
    faults.extend(_place_faults(path, rows))
    with open(path, "rb") as file:
        for row in rows:
            faults.extend(f"{expected.name}: sample {row.key}: {text}" for text in _faults_of(file, row, index))
    return faults


def _place_faults(path: Path, rows: Sequence[SampleRow]) -> Iterator[str]:
    """Compare where the tar has its members with where the index says."""
    try:
        spans = member_spans(path)
    except (tarfile.TarError, DataError) as error:
        yield f"{path.name}: not a tar of samples: {error}"
        return
    for row in rows:
        if spans.pop(row.key, None) != row.members:
            yield f"{path.name}: sample {row.key}: the tar has it elsewhere than {SAMPLES_NAME} says, or not at all"
    for key in spans:
        yield f"{path.name}: sample {key} is not in {SAMPLES_NAME}"


def _faults_of(file: BinaryIO, row: SampleRow, index: ShardIndex) -> Iterable[str]:
    image = _bytes(file, row, IMAGE)
    if hashlib.sha256(image).hexdigest() != row.sha256:
        yield "its image's SHA-256 is not the one in its row: damaged"
    for member in row.members.keys() & DEPTHS.keys():
        yield from _png_faults(_bytes(file, row, member), member, index.size)
    try:
        meta = SampleMeta.from_json(_bytes(file, row, META))
    except DataError as error:
        yield str(error)
        return
    shared = ("key", "label", "person", "exam", "fold", "author_fold", "plane")
    wrong = [name for name in shared if getattr(meta, name) != getattr(row, name)]
    wrong += ["class_name"] * (index.classes[row.label] != meta.class_name)
    wrong += ["shape"] * (meta.shape != (index.size,) * index.spatial_dims)
    if wrong:
        yield f"its json and its row differ in: {', '.join(wrong)}"


def _bytes(file: BinaryIO, row: SampleRow, member: str) -> bytes:
    offset, size = row.members[member]
    file.seek(offset)
    return file.read(size)


def _png_faults(content: bytes, member: str, size: int) -> Iterator[str]:
    if len(content) < PNG_HEADER_BYTES or not content.startswith(PNG_START):
        yield f"{member} is no PNG"
        return
    width, height, depth, colour = struct.unpack(">IIBB", content[16:PNG_HEADER_BYTES])
    if (width, height, depth, colour) != (size, size, DEPTHS[member], GREYSCALE):
        expected = f"{size} x {size}, {DEPTHS[member]} bits, colour {GREYSCALE}"
        yield f"{member} is {width} x {height}, {depth} bits, colour {colour}: expected {expected}"
