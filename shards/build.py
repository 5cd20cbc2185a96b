"""A build from end to end: list, split, plan, write, index, put in place."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from hsadml_dist.data.index import SampleRow, ShardIndex, samples_table, table_digest, write_index
from hsadml_dist.data.sample import SCHEMA_VERSION, SampleMeta
from hsadml_dist.errors import UsageError
from hsadml_dist.shards.identity import IdKey
from hsadml_dist.shards.plan import plan_shards, shard_name
from hsadml_dist.shards.record import Record, Source
from hsadml_dist.shards.split import assign_folds
from hsadml_dist.shards.staging import Staging, open_staging, refuse_filled
from hsadml_dist.shards.writer import Entry, ShardResult, ShardTask, write_shards

LEAST_SIZE = 8
MOST_SIZE = 4096


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What decides a folder of shards beside its source and the id key.

    Attributes:
        split_by: What no two folds share: ``person``, ``exam`` or ``slice``.
        folds: How many folds, unless the source prescribes them.
        seed: What folds and order are drawn from.
        samples_per_shard: Most samples in a tar.
        size: Side of the stored square images in pixels.
    """

    split_by: str = "person"
    folds: int = 5
    seed: int = 0
    samples_per_shard: int = 256
    size: int = 256


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """A finished build: its index and what deserves a look.

    Attributes:
        index: The index as written.
        reused: Samples taken over from a killed build.
        persons_in_two_classes: Persons with slices of more than one class.
        repeated_images: Images that are a byte-equal copy of another one.
        repeats_across_folds: Of those, the ones whose copy is in another fold: a leak.
    """

    index: ShardIndex
    reused: int
    persons_in_two_classes: int
    repeated_images: int
    repeats_across_folds: int


def build(
    source: Source,
    out: Path,
    options: BuildOptions,
    key: IdKey,
    workers: int,
    progress: Callable[[int, int], None],
) -> BuildReport:
    """Write the shards of ``source`` to ``out``, which appears whole or not at all.

    The bytes depend on source, options and key alone, never on ``workers``. ``progress`` is called with the samples
    written so far and their total.

    Raises:
        UsageError: An option is out of its range.
        DataError: The source, the split or the target is at fault; one clear line.
    """
    _check(options, workers)
    out = out.absolute()
    refuse_filled(out)
    records = source.records()
    folds = assign_folds(records, options.split_by, options.folds, options.seed)
    plan = plan_shards(records, folds, options.samples_per_shard, options.seed)
    classes = class_order(record.class_name for record in records)
    metas = _metas(records, folds, classes, options.size, key)
    with open_staging(out, _fingerprint(source, options, key)) as staging:
        tasks = _tasks(source, records, metas, plan, options.size, staging.folder)
        results, reused = _write(tasks, workers, staging, progress)
        index = _index(results, classes, len(set(folds)), options)
        write_index(staging.folder, index)
        staging.publish()
    return _report(index, reused)


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return the classes in label order: whole numbers by value, else by alphabet."""
    unique = set(names)
    whole = all(name.isascii() and name.isdigit() for name in unique)
    return tuple(sorted(unique, key=(lambda name: (int(name), name)) if whole else None))


def _check(options: BuildOptions, workers: int) -> None:
    if not LEAST_SIZE <= options.size <= MOST_SIZE:
        raise UsageError(f"--size {options.size}: allowed: {LEAST_SIZE} ... {MOST_SIZE} pixels")
    if workers < 1:
        raise UsageError(f"--workers {workers}: at least 1")


def _metas(
    records: Sequence[Record], folds: Sequence[int], classes: Sequence[str], size: int, key: IdKey
) -> list[SampleMeta]:
    labels = {name: label for label, name in enumerate(classes)}
    return [
        SampleMeta(
            key=key.sample(record.identity, record.person, record.exam),
            class_name=record.class_name,
            label=labels[record.class_name],
            person=None if record.person is None else key.person(record.person),
            exam=None if record.exam is None else key.exam(record.person, record.exam),
            fold=fold,
            plane=record.plane,
            spacing_mm=record.spacing_mm,
            shape=(size, size),
        )
        for record, fold in zip(records, folds, strict=True)
    ]


def _fingerprint(source: Source, options: BuildOptions, key: IdKey) -> str:
    """Return what two builds share only if they write the same bytes; sealed, since it derives from identifiers."""
    versions = {name: version(name) for name in ("pillow", "webdataset", "numpy")}
    return key.seal(json.dumps([SCHEMA_VERSION, asdict(options), versions, source.fingerprint()], sort_keys=True))


def _tasks(
    source: Source,
    records: Sequence[Record],
    metas: Sequence[SampleMeta],
    plan: Sequence[Sequence[int]],
    size: int,
    folder: Path,
) -> list[ShardTask]:
    return [
        ShardTask(
            number=number,
            path=folder / shard_name(number),
            source=source,
            size=size,
            entries=tuple(Entry(record=records[place], meta=metas[place]) for place in places),
        )
        for number, places in enumerate(plan)
    ]


def _write(
    tasks: Sequence[ShardTask], workers: int, staging: Staging, progress: Callable[[int, int], None]
) -> tuple[list[ShardResult], int]:
    """Write the tars that no earlier build finished; return all in order, and the samples taken over."""
    total = sum(len(task.entries) for task in tasks)
    results = {task.number: result for task in tasks if (result := staging.finished(task.number))}
    reused = sum(len(result.rows) for result in results.values())
    progress(reused, total)

    def on_done(result: ShardResult) -> None:
        staging.keep(result)
        results[result.number] = result
        progress(sum(len(done.rows) for done in results.values()), total)

    write_shards([task for task in tasks if task.number not in results], workers, on_done)
    return [results[task.number] for task in tasks], reused


def _index(results: Sequence[ShardResult], classes: tuple[str, ...], folds: int, options: BuildOptions) -> ShardIndex:
    rows = tuple(row for result in results for row in result.rows)
    return ShardIndex(
        classes=classes,
        split_unit=options.split_by,
        folds=folds,
        seed=options.seed,
        size=options.size,
        digest=table_digest(samples_table(rows)),
        shards=tuple(result.file for result in results),
        samples=rows,
    )


def _report(index: ShardIndex, reused: int) -> BuildReport:
    classes: defaultdict[str, set[int]] = defaultdict(set)
    copies: defaultdict[str, list[SampleRow]] = defaultdict(list)
    for row in index.samples:
        copies[row.sha256].append(row)
        if row.person is not None:
            classes[row.person].add(row.label)
    return BuildReport(
        index=index,
        reused=reused,
        persons_in_two_classes=sum(len(labels) > 1 for labels in classes.values()),
        repeated_images=sum(len(rows) - 1 for rows in copies.values()),
        repeats_across_folds=sum(
            len(rows) - max(Counter(row.fold for row in rows).values()) for rows in copies.values()
        ),
    )
