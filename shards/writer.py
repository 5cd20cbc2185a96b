"""Write tars: the same bytes for the same samples on any machine, on any day, with any number of workers.

Workers read and encode samples; this process alone writes, in the planned order.

numpy and webdataset (which loads torch) are imported late, so that verifying shards needs neither.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import BinaryIO

from hsadml_dist.data.contents import ContentHashes, hash_image
from hsadml_dist.data.index import SampleRow, ShardFile, SkippedSample
from hsadml_dist.data.sample import IMAGE, MASK, META, SampleMeta, split_member_name
from hsadml_dist.errors import DataError
from hsadml_dist.shards.source import DamagedSampleError, ImageSource, SourceRecord

OWNER = "hsadml"
MODE = 0o444
MTIME = 0.0
"""Owner, mode and time of every member: constant, so that the samples alone determine a tar's bytes."""

SHARED_FIELDS = ("key", "label", "person", "exam", "fold", "author_fold", "plane")
"""Fields that a sample's row and its JSON have in common."""

SAMPLES_AHEAD = 16
"""Samples per worker that are encoded before they are written: keeps workers busy and fits in memory."""


@dataclass(frozen=True, kw_only=True)
class EncodeTask:
    """One sample to encode; in ``meta``, ``shape`` is the stored one and ``spacing_mm`` still the source's."""

    source: ImageSource
    record: SourceRecord
    meta: SampleMeta


@dataclass(frozen=True, kw_only=True)
class EncodedSample:
    """The bytes of a sample's members, the content of its JSON, and the hashes of its image.

    ``lossy_mask`` is True if its mask was a JPEG.
    """

    meta: SampleMeta
    members: dict[str, bytes]
    contents: ContentHashes
    lossy_mask: bool = False


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One tar to write, and its samples in order."""

    number: int
    path: Path
    samples: tuple[EncodeTask, ...]


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """One tar as written.

    Attributes:
        rows: The rows of its samples in order.
        contents: Their content hashes, in the same order.
        skipped: The samples that could not be used.
        lossy_masks: Number of masks that were JPEGs.
    """

    number: int
    file: ShardFile
    rows: tuple[SampleRow, ...]
    contents: tuple[ContentHashes, ...]
    skipped: tuple[SkippedSample, ...]
    lossy_masks: int = 0


def write_shards(
    tasks: Sequence[ShardTask],
    workers: int,
    on_sample: Callable[[], None],
    on_shard: Callable[[ShardResult], None],
) -> None:
    """Write all tars in order; ``workers`` processes read and encode their samples, or with 1 this process.

    Args:
        on_sample: Called after each sample, written or skipped.
        on_shard: Called with the result of each tar, once it is on the disk.

    Raises:
        DataError: A worker died.
        OSError: A tar cannot be written.
    """
    samples = (sample for task in tasks for sample in task.samples)
    with _encoder(workers) as encode_all:
        encoded = encode_all(samples)
        for task in tasks:
            on_shard(_write_shard(task, islice(encoded, len(task.samples)), on_sample))


def encode_sample(task: EncodeTask) -> EncodedSample | SkippedSample:
    """Read, resample and compress one sample; a damaged one becomes a :class:`SkippedSample`."""
    from hsadml_dist.shards.image_codec import encode_png, scale_spacing, to_mask, to_uint16

    size = task.meta.shape[0]
    try:
        pixels = task.source.read(task.record)
        image = to_uint16(pixels.image, size)
    except DamagedSampleError as error:
        return error.skip
    except ValueError as error:
        return SkippedSample(where=task.record.where, reason=str(error))
    meta = replace(task.meta, spacing_mm=scale_spacing(task.meta.spacing_mm, pixels.image.shape, size))
    members = {IMAGE: encode_png(image), META: meta.to_json().encode()}
    if pixels.mask is not None:
        members[MASK] = encode_png(to_mask(pixels.mask, size))
    contents = ContentHashes(pixels=hash_image(image), source=hash_image(pixels.image))
    return EncodedSample(meta=meta, members=members, contents=contents, lossy_mask=pixels.mask_is_lossy)


def hash_images(samples: Sequence[EncodeTask], workers: int) -> list[str | None]:
    """Return the SHA-256 of each sample's image as it would be stored, in hex; None if it cannot be used."""
    with _encoder(workers) as encode_all:
        return [
            None if isinstance(sample, SkippedSample) else hashlib.sha256(sample.members[IMAGE]).hexdigest()
            for sample in encode_all(samples)
        ]


def describe_file(path: Path) -> ShardFile:
    """Return name, size and SHA-256 of a file."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ShardFile(name=path.name, bytes=path.stat().st_size, sha256=digest)


def member_spans(path: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Return key -> member -> (offset, size) of the raw bytes in a tar, in the tar's order.

    Raises:
        DataError: A member that the schema does not know, a duplicate member, or one of negative size.
        tarfile.TarError: Not a plain tar.
    """
    spans: dict[str, dict[str, tuple[int, int]]] = {}
    with tarfile.open(path, "r:") as tar:
        for info in tar:
            key, member = split_member_name(info.name)
            if info.size < 0:  # the next header would be one that was read before, for ever
                raise DataError(f"{path.name}: member {info.name} has a size of {info.size}")
            if spans.setdefault(key, {}).setdefault(member, (info.offset_data, info.size))[0] != info.offset_data:
                raise DataError(f"{path.name}: duplicate member {info.name}")
    return spans


def read_member(file: BinaryIO, row: SampleRow, member: str) -> bytes:
    """Return the bytes of one member of a sample from its open tar; fewer if the tar ends before."""
    offset, size = row.members[member]
    held = os.fstat(file.fileno()).st_size - offset  # an index may claim any size, and reading allocates it
    if held <= 0:
        return b""
    file.seek(offset)
    return file.read(min(size, held))


@contextmanager
def _encoder(workers: int) -> Iterator[Callable[[Iterable[EncodeTask]], Iterator[EncodedSample | SkippedSample]]]:
    """Provide a function that encodes samples in order.

    Workers are spawned, not forked, so that they inherit no thread or lock of this process.
    """
    if workers == 1:
        yield lambda samples: map(encode_sample, samples)
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_exit_with_parent)
    try:
        yield lambda samples: _encode_in_order(pool, samples, SAMPLES_AHEAD * workers)
    except BrokenProcessPool as error:
        raise DataError("--workers: a worker of the build died, perhaps out of memory; try fewer workers") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _exit_with_parent() -> None:
    """End this worker when the build is killed; otherwise it would wait on the pool's own pipes forever."""
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _encode_in_order(
    pool: ProcessPoolExecutor, samples: Iterable[EncodeTask], ahead: int
) -> Iterator[EncodedSample | SkippedSample]:
    pending: deque[Future[EncodedSample | SkippedSample]] = deque()
    for sample in samples:
        pending.append(pool.submit(encode_sample, sample))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _write_shard(
    task: ShardTask, encoded: Iterable[EncodedSample | SkippedSample], on_sample: Callable[[], None]
) -> ShardResult:
    from webdataset.writer import TarWriter

    written: list[tuple[SampleMeta, str]] = []
    contents: list[ContentHashes] = []
    skipped: list[SkippedSample] = []
    lossy_masks = 0
    with open(task.path, "wb") as file:
        with TarWriter(file, user=OWNER, group=OWNER, mode=MODE, mtime=MTIME, encoder=False, compress=False) as tar:
            for sample in encoded:
                if isinstance(sample, SkippedSample):
                    skipped.append(sample)
                else:
                    tar.write({"__key__": sample.meta.key, **sample.members})
                    written.append((sample.meta, hashlib.sha256(sample.members[IMAGE]).hexdigest()))
                    contents.append(sample.contents)
                    lossy_masks += sample.lossy_mask
                on_sample()
        file.flush()
        os.fsync(file.fileno())
    return ShardResult(
        number=task.number,
        file=describe_file(task.path),
        rows=_sample_rows(task, written),
        contents=tuple(contents),
        skipped=tuple(skipped),
        lossy_masks=lossy_masks,
    )


def _sample_rows(task: ShardTask, written: Sequence[tuple[SampleMeta, str]]) -> tuple[SampleRow, ...]:
    spans = member_spans(task.path)
    return tuple(
        SampleRow(
            shard=task.number,
            members=spans[meta.key],
            sha256=digest,
            **{name: getattr(meta, name) for name in SHARED_FIELDS},
        )
        for meta, digest in written
    )
