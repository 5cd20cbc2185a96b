"""Verify a folder of shards: read every byte, compare it with the index, and report all faults; needs no numpy."""

from __future__ import annotations

import hashlib
import struct
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from hsadml_dist.data.image_header import PNG_SIGNATURE
from hsadml_dist.data.index import INDEX_NAME, SAMPLES_NAME, SampleRow, ShardFile, ShardIndex, load_index
from hsadml_dist.data.sample import BITS, IMAGE, META, SampleMeta
from hsadml_dist.errors import DataError
from hsadml_dist.shards.writer import SHARED_FIELDS, describe_file, member_spans, read_member

PNG_HEADER_BYTES = 26
GREYSCALE = 0


def verify_shards(folder: Path, on_shard: Callable[[int, int], None] = lambda done, total: None) -> tuple[str, ...]:
    """Return all faults of a folder, one line each; ``on_shard`` gets the number of tars checked and their total."""
    try:
        index = load_index(folder)
    except DataError as error:
        return (str(error),)
    faults = list(_index_faults(index))
    known = {shard.name for shard in index.shards}
    faults += [f"{path.name}: not in {INDEX_NAME}" for path in sorted(folder.glob("*.tar")) if path.name not in known]
    for file in index.files:
        faults.extend(_file_faults(folder, file))
    rows: defaultdict[int, list[SampleRow]] = defaultdict(list)
    for row in index.samples:
        rows[row.shard].append(row)
    for number in range(len(index.shards)):
        faults.extend(_shard_faults(folder, index, number, rows[number]))
        on_shard(number + 1, len(index.shards))
    return tuple(faults)


def _index_faults(index: ShardIndex) -> Iterator[str]:
    """Yield duplicate keys, groups in two folds, and classes or folds without samples."""
    seen: set[str] = set()
    for row in index.samples:
        if row.key in seen:
            yield f"{SAMPLES_NAME}: duplicate key {row.key}"
        seen.add(row.key)
    yield from _split_group_faults(index)
    if len(index.fold_numbers) != index.folds:
        yield f"{INDEX_NAME}: folds {index.folds}, but samples are in {len(index.fold_numbers)}"
    for label in sorted(set(range(len(index.classes))) - {row.label for row in index.samples}):
        yield f"{INDEX_NAME}: class {index.classes[label]!r} has no sample"


def _split_group_faults(index: ShardIndex) -> Iterator[str]:
    if index.split_unit == "slice":
        return
    folds: defaultdict[str | None, set[int]] = defaultdict(set)
    for row in index.samples:
        folds[getattr(row, index.split_unit)].add(row.fold)
    if None in folds:
        yield f"{SAMPLES_NAME}: split by {index.split_unit}, but some samples have none"
    for name, numbers in folds.items():
        if name is not None and len(numbers) > 1:
            yield f"{SAMPLES_NAME}: {index.split_unit} {name} is in folds {', '.join(map(str, sorted(numbers)))}"


def _file_faults(folder: Path, expected: ShardFile) -> Iterator[str]:
    """Compare the size and hash of a file with the index."""
    try:
        found = describe_file(folder / expected.name)
    except OSError as error:
        yield f"{expected.name}: cannot be read: {error.strerror}"
        return
    if found.bytes != expected.bytes:
        yield f"{expected.name}: {found.bytes} bytes, expected {expected.bytes}"
    if found.sha256 != expected.sha256:
        yield f"{expected.name}: damaged: its SHA-256 differs from {INDEX_NAME}"


def _shard_faults(folder: Path, index: ShardIndex, number: int, rows: Sequence[SampleRow]) -> list[str]:
    expected = index.shards[number]
    path = folder / expected.name
    faults = list(_file_faults(folder, expected))
    if not path.is_file():
        return faults
    faults.extend(_offset_faults(path, rows))
    with open(path, "rb") as file:
        for row in rows:
            faults.extend(f"{expected.name}: sample {row.key}: {fault}" for fault in _sample_faults(file, row, index))
    return faults


def _offset_faults(path: Path, rows: Sequence[SampleRow]) -> Iterator[str]:
    """Compare the offsets of the tar's members with the index."""
    try:
        spans = member_spans(path)
    except (tarfile.TarError, DataError, EOFError, MemoryError, OSError, OverflowError, ValueError) as error:
        yield f"{path.name}: not a tar of samples: {error}"
        return
    for row in rows:
        if spans.pop(row.key, None) != row.members:
            yield f"{path.name}: sample {row.key}: missing, or at another offset than in {SAMPLES_NAME}"
    for key in spans:
        yield f"{path.name}: sample {key} is not in {SAMPLES_NAME}"


def _sample_faults(file: BinaryIO, row: SampleRow, index: ShardIndex) -> Iterator[str]:
    if hashlib.sha256(read_member(file, row, IMAGE)).hexdigest() != row.sha256:
        yield f"damaged: the SHA-256 of its image differs from {SAMPLES_NAME}"
    for member in row.members.keys() & BITS.keys():
        yield from _png_faults(read_member(file, row, member), member, index.size)
    try:
        meta = SampleMeta.from_json(read_member(file, row, META))
    except DataError as error:
        yield str(error)
        return
    different = [name for name in SHARED_FIELDS if getattr(meta, name) != getattr(row, name)]
    if index.classes[row.label] != meta.class_name:
        different.append("class_name")
    if meta.shape != (index.size,) * index.spatial_dims:
        different.append("shape")
    if different:
        yield f"its JSON and its row differ in: {', '.join(different)}"


def _png_faults(content: bytes, member: str, size: int) -> Iterator[str]:
    if len(content) < PNG_HEADER_BYTES or not content.startswith(PNG_SIGNATURE):
        yield f"{member} is not a PNG"
        return
    width, height, depth, colour = struct.unpack(">IIBB", content[16:PNG_HEADER_BYTES])
    if (width, height, depth, colour) != (size, size, BITS[member], GREYSCALE):
        expected = f"{size} x {size}, {BITS[member]} bits, colour {GREYSCALE}"
        yield f"{member} is {width} x {height}, {depth} bits, colour {colour}; expected {expected}"
