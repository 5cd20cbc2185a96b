"""Assign samples to tars and write them: the same bytes on any machine, on any day, with any number of workers.

A tar holds samples of one fold, so that a run need not open the tars of its test fold. Within a fold, samples of all
patients are shuffled by a hash of the seed: a reader of whole tars sees many patients, not forty slices of one.
Workers read and encode samples; this process alone writes, in the planned order. webdataset is imported late, because
the import loads torch.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, pairwise
from multiprocessing import get_context, parent_process
from pathlib import Path

from hsadml_dist.data.index import SampleRow, ShardFile, SkippedSample
from hsadml_dist.data.sample import IMAGE, SampleMeta, split_member_name
from hsadml_dist.errors import DataError
from hsadml_dist.shards.encode import EncodedSample, EncodeTask, encode_sample
from hsadml_dist.shards.source import SourceRecord
from hsadml_dist.shards.split import seeded_hash


def plan_shards(
    records: Sequence[SourceRecord], folds: Sequence[int], samples_per_shard: int, seed: int
) -> tuple[tuple[int, ...], ...]:
    """Return for each tar the places in ``records`` of its samples, in order; folds ascending."""
    members: defaultdict[int, list[int]] = defaultdict(list)
    for place, fold in enumerate(folds):
        members[fold].append(place)
    plan: list[tuple[int, ...]] = []
    for fold in sorted(members):
        mixed = sorted(members[fold], key=lambda place: seeded_hash(seed, "order", records[place].record_id))
        plan.extend(_even(mixed, samples_per_shard))
    return tuple(plan)


def shard_name(number: int) -> str:
    """Return the file name of tar ``number``."""
    return f"shard-{number:05d}.tar"


def _even(places: Sequence[int], most: int) -> list[tuple[int, ...]]:
    count = -(-len(places) // most)
    edges = [len(places) * part // count for part in range(count + 1)]
    return [tuple(places[low:high]) for low, high in pairwise(edges)]


OWNER = "hsadml"
MODE = 0o444
MTIME = 0.0
"""Owner, mode and time of every member: fixed, so that only samples decide a tar's bytes."""

AHEAD = 16
"""Samples that a worker may be ahead of the writer: enough to keep it busy, little enough to hold in memory."""


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One tar to write: its number, its place and its samples in order."""

    number: int
    path: Path
    entries: tuple[EncodeTask, ...]


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """One tar as written: its samples' rows in order, and the samples that could not be used."""

    number: int
    file: ShardFile
    rows: tuple[SampleRow, ...]
    skipped: tuple[SkippedSample, ...]


def write_shards(
    tasks: Sequence[ShardTask],
    workers: int,
    on_sample: Callable[[], None],
    on_shard: Callable[[ShardResult], None],
) -> None:
    """Write all tars in order; ``workers`` processes read and encode their samples.

    Args:
        tasks: What to write.
        workers: Processes; with 1 this one does all.
        on_sample: Called after each sample, written or skipped.
        on_shard: Called with each tar, once it is on the disk.

    Raises:
        DataError: A worker died.
        OSError: The disk refuses.
    """
    entries = (entry for task in tasks for entry in task.entries)
    with _encoder(workers) as encode_all:
        encoded = encode_all(entries)
        for task in tasks:
            on_shard(_write_shard(task, islice(encoded, len(task.entries)), on_sample))


def describe_file(path: Path) -> ShardFile:
    """Return name, size and SHA-256 of a file."""
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


@contextmanager
def _encoder(workers: int) -> Iterator[Callable[[Iterable[EncodeTask]], Iterator[EncodedSample | SkippedSample]]]:
    """Provide what turns entries into encoded samples, in order.

    Workers are started afresh (spawn): no thread or lock of this process is inherited.
    """
    if workers == 1:
        yield lambda entries: map(encode_sample, entries)
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_leave_with_parent)
    try:
        yield lambda entries: _in_order(pool, entries, AHEAD * workers)
    except BrokenProcessPool as error:
        raise DataError("a worker of the build died, perhaps for lack of memory: try fewer --workers") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _leave_with_parent() -> None:
    """End this worker when the build is killed: the pool's own pipes would keep it waiting for ever."""
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _in_order(
    pool: ProcessPoolExecutor, entries: Iterable[EncodeTask], ahead: int
) -> Iterator[EncodedSample | SkippedSample]:
    waiting: deque[Future[EncodedSample | SkippedSample]] = deque()
    for entry in entries:
        waiting.append(pool.submit(encode_sample, entry))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _write_shard(
    task: ShardTask, encoded: Iterable[EncodedSample | SkippedSample], on_sample: Callable[[], None]
) -> ShardResult:
    from webdataset.writer import TarWriter

    metas: list[tuple[SampleMeta, str]] = []
    skipped: list[SkippedSample] = []
    with open(task.path, "wb") as file:
        with TarWriter(file, user=OWNER, group=OWNER, mode=MODE, mtime=MTIME, encoder=False, compress=False) as tar:
            for one in encoded:
                if isinstance(one, SkippedSample):
                    skipped.append(one)
                else:
                    tar.write({"__key__": one.meta.key, **one.members})
                    metas.append((one.meta, hashlib.sha256(one.members[IMAGE]).hexdigest()))
                on_sample()
        file.flush()
        os.fsync(file.fileno())
    rows = _rows(task, metas)
    return ShardResult(number=task.number, file=describe_file(task.path), rows=rows, skipped=tuple(skipped))


def _rows(task: ShardTask, metas: Sequence[tuple[SampleMeta, str]]) -> tuple[SampleRow, ...]:
    spans = member_spans(task.path)
    return tuple(
        SampleRow(
            key=meta.key,
            shard=task.number,
            members=spans[meta.key],
            sha256=digest,
            label=meta.label,
            person=meta.person,
            exam=meta.exam,
            fold=meta.fold,
            author_fold=meta.author_fold,
            plane=meta.plane,
        )
        for meta, digest in metas
    )
