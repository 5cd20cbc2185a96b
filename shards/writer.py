"""Writing tars: the same bytes for the same samples, whatever machine, day or number of workers.

The only file of the builder that imports webdataset, and late: the import brings torch.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from hsadml_dist.data.index import SampleRow, ShardFile
from hsadml_dist.data.sample import IMAGE, MASK, META, SampleMeta, split_member_name
from hsadml_dist.errors import DataError
from hsadml_dist.shards.record import Record, Source

OWNER = "hsadml"
MODE = 0o444
MTIME = 0.0
"""Owner, mode and time of every member: fixed, so that only samples decide a tar's bytes."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One sample to write: its record and all that is already decided about it (``shape`` is the stored one)."""

    record: Record
    meta: SampleMeta


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One tar to write; goes to a worker process, so it holds values alone."""

    number: int
    path: Path
    source: Source
    size: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """One tar as written, with its samples' rows in order."""

    number: int
    file: ShardFile
    rows: tuple[SampleRow, ...]


def write_shards(
    tasks: Sequence[ShardTask], workers: int, on_done: Callable[[ShardResult], None]
) -> tuple[ShardResult, ...]:
    """Write all tars, ``workers`` at a time, and return them in the order of ``tasks``.

    Workers are started afresh (spawn): no thread or lock of this process is inherited.

    Raises:
        DataError: A sample cannot be read, or a worker died; the tars not yet begun are left out.
    """
    if workers == 1 or len(tasks) <= 1:
        return tuple(_reported(write_shard(task), on_done) for task in tasks)
    results: dict[int, ShardResult] = {}
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=get_context("spawn")) as pool:
        pending = [pool.submit(write_shard, task) for task in tasks]
        try:
            for future in as_completed(pending):
                result = _reported(future.result(), on_done)
                results[result.number] = result
        except BrokenProcessPool as error:
            raise DataError("a worker of the build died, perhaps for lack of memory: try fewer --workers") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return tuple(results[task.number] for task in tasks)


def write_shard(task: ShardTask) -> ShardResult:
    """Write one tar and return where each member lies in it.

    Raises:
        DataError: A sample cannot be read or the disk refuses.
    """
    from webdataset.writer import TarWriter

    hashes: list[str] = []
    try:
        with open(task.path, "wb") as file:
            with TarWriter(file, user=OWNER, group=OWNER, mode=MODE, mtime=MTIME, encoder=False, compress=False) as tar:
                for entry in task.entries:
                    members = _members(task.source, entry, task.size)
                    tar.write({"__key__": entry.meta.key, **members})
                    hashes.append(hashlib.sha256(members[IMAGE]).hexdigest())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DataError(f"{task.path.name} cannot be written: {error.strerror or error}") from error
    return ShardResult(number=task.number, file=describe_tar(task.path), rows=_rows(task, hashes))


def describe_tar(path: Path) -> ShardFile:
    """Return name, size and SHA-256 of a tar."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ShardFile(name=path.name, bytes=path.stat().st_size, sha256=digest)


def member_spans(path: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Return key -> member -> (offset, size) of the raw bytes in a tar, in the tar's order.

    Raises:
        DataError: A member that the schema does not know, or one that comes twice.
        tarfile.TarError: Not a plain tar.
    """
    spans: dict[str, dict[str, tuple[int, int]]] = {}
    with tarfile.open(path, "r:") as tar:
        for info in tar:
            key, member = split_member_name(info.name)
            if spans.setdefault(key, {}).setdefault(member, (info.offset_data, info.size))[0] != info.offset_data:
                raise DataError(f"{path.name}: member {info.name} comes twice")
    return spans


def _reported(result: ShardResult, on_done: Callable[[ShardResult], None]) -> ShardResult:
    on_done(result)
    return result


def _members(source: Source, entry: Entry, size: int) -> dict[str, bytes]:
    from hsadml_dist.shards.pixels import encode_png, scaled_spacing, to_mask, to_uint16

    pixels = source.read(entry.record)
    try:
        image = to_uint16(pixels.image, size)
    except ValueError as error:
        raise DataError(f"{entry.record.where}: {error}") from error
    spacing = scaled_spacing(entry.meta.spacing_mm, pixels.image.shape, size)
    members = {IMAGE: encode_png(image), META: replace(entry.meta, spacing_mm=spacing).to_json().encode()}
    if pixels.mask is not None:
        members[MASK] = encode_png(to_mask(pixels.mask, size))
    return members


def _rows(task: ShardTask, hashes: Sequence[str]) -> tuple[SampleRow, ...]:
    spans = member_spans(task.path)
    return tuple(
        SampleRow(
            key=entry.meta.key,
            shard=task.number,
            members=spans[entry.meta.key],
            sha256=digest,
            label=entry.meta.label,
            person=entry.meta.person,
            exam=entry.meta.exam,
            fold=entry.meta.fold,
        )
        for entry, digest in zip(task.entries, hashes, strict=True)
    )
