"""A build from end to end: list, split, plan, write, index, put in place."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

from hsadml_dist.data.index import ShardFile, ShardIndex, SkippedSample, samples_table, table_digest, write_index
from hsadml_dist.data.sample import SCHEMA_VERSION, SampleMeta
from hsadml_dist.errors import DataError, UsageError
from hsadml_dist.shards.build_folder import BuildFolder, open_build_folder, require_empty_folder
from hsadml_dist.shards.card import CARD_JSON, CARD_PAGE, write_card
from hsadml_dist.shards.encode import EncodeTask
from hsadml_dist.shards.leakage import LeakageReport
from hsadml_dist.shards.pseudonyms import IdKey
from hsadml_dist.shards.source import ImageSource, SourceRecord
from hsadml_dist.shards.split import SPLITS_NAME, assign_folds, check_split, choose_unit, splits_text
from hsadml_dist.shards.writer import ShardResult, ShardTask, describe_file, plan_shards, shard_name, write_shards

LEAST_SIZE = 8
MOST_SIZE = 4096


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What decides a folder of shards beside its source and the id key.

    Attributes:
        split_by: What no two folds share: ``person``, ``exam`` or ``slice``; None: the largest that the source names.
        folds: How many folds, unless the source prescribes them.
        seed: What folds and order are drawn from.
        samples_per_shard: Most samples in a tar.
        size: Side of the stored square images in pixels.
    """

    split_by: str | None = None
    folds: int = 5
    seed: int = 0
    samples_per_shard: int = 256
    size: int = 256


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """A finished build.

    Attributes:
        index: The index as written.
        reused: Samples taken over from a killed build.
        mixed_class_patients: For each person with slices of two classes, where two such slices stand.
        leakage: What raw pixels reach without learning, by split unit.
    """

    index: ShardIndex
    reused: int
    mixed_class_patients: tuple[str, ...]
    leakage: LeakageReport


def build_shards(
    source: ImageSource,
    out: Path,
    options: BuildOptions,
    key: IdKey,
    workers: int,
    progress: Callable[[int, int], None],
) -> BuildReport:
    """Write the shards of ``source`` to ``out``, which appears whole or not at all.

    The bytes depend on source, options and key alone, never on ``workers``. ``progress`` is called with the samples
    done so far and their total. Samples that cannot be used are left out and listed in the index.

    Raises:
        UsageError: An option is out of its range.
        DataError: The source, the split or the target is at fault; one clear line.
    """
    _check(options, workers)
    out = out.absolute()
    require_empty_folder(out)
    listing = source.list_records()
    records = listing.records
    if not records:
        raise DataError(f"INPUT: nothing to build: {_first_reasons(listing.skipped)}")
    unit = choose_unit(records, options.split_by)
    folds = assign_folds(records, unit, options.folds, options.seed)
    plan = plan_shards(records, folds, options.samples_per_shard, options.seed)
    classes = class_order(record.class_name for record in records)
    metas = _metas(records, folds, classes, options.size, key)
    with open_build_folder(out, _fingerprint(source, options, key)) as staging:
        tasks = _tasks(source, records, metas, plan, staging.folder)
        results, reused = _write(tasks, workers, staging, progress)
        index = _index(source, results, classes, unit, options, listing.skipped)
        _refuse_gaps(index, set(folds))
        index, leak = _describe(staging.folder, index, workers)
        write_index(staging.folder, index)
        staging.publish()
    return BuildReport(index=index, reused=reused, mixed_class_patients=_mixed(records), leakage=leak)


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return the classes in label order: whole numbers by value, else by alphabet."""
    unique = set(names)
    whole = all(name.isascii() and name.isdigit() for name in unique)
    return tuple(sorted(unique, key=(lambda name: (int(name), name)) if whole else None))


def _check(options: BuildOptions, workers: int) -> None:
    if not LEAST_SIZE <= options.size <= MOST_SIZE:
        raise UsageError(f"--size {options.size}: allowed: {LEAST_SIZE} ... {MOST_SIZE} pixels")
    if options.samples_per_shard < 1:
        raise UsageError(f"--samples-per-shard {options.samples_per_shard}: at least 1")
    if workers < 1:
        raise UsageError(f"--workers {workers}: at least 1")
    check_split(options.split_by, options.folds)


def _metas(
    records: Sequence[SourceRecord], folds: Sequence[int], classes: Sequence[str], size: int, key: IdKey
) -> list[SampleMeta]:
    labels = {name: label for label, name in enumerate(classes)}
    return [
        SampleMeta(
            key=key.sample(record.record_id, record.person, record.exam),
            class_name=record.class_name,
            label=labels[record.class_name],
            person=None if record.person is None else key.person(record.person),
            exam=None if record.exam is None else key.exam(record.person, record.exam),
            fold=fold,
            author_fold=record.author_fold,
            plane=record.plane,
            spacing_mm=record.spacing_mm,
            shape=(size, size),
            volume=(size, size),
            origin=(0, 0),
        )
        for record, fold in zip(records, folds, strict=True)
    ]


def _fingerprint(source: ImageSource, options: BuildOptions, key: IdKey) -> str:
    """Return what two builds share only if they write the same bytes; sealed, since it derives from identifiers."""
    versions = {name: version(name) for name in ("pillow", "webdataset", "numpy")}
    return key.seal(json.dumps([SCHEMA_VERSION, asdict(options), versions, source.fingerprint()], sort_keys=True))


def _tasks(
    source: ImageSource,
    records: Sequence[SourceRecord],
    metas: Sequence[SampleMeta],
    plan: Sequence[Sequence[int]],
    folder: Path,
) -> list[ShardTask]:
    return [
        ShardTask(
            number=number,
            path=folder / shard_name(number),
            entries=tuple(EncodeTask(source=source, record=records[place], meta=metas[place]) for place in places),
        )
        for number, places in enumerate(plan)
    ]


def _write(
    tasks: Sequence[ShardTask], workers: int, staging: BuildFolder, progress: Callable[[int, int], None]
) -> tuple[list[ShardResult], int]:
    """Write the tars that no earlier build finished; return all in order, and the samples taken over."""
    total = sum(len(task.entries) for task in tasks)
    results = {task.number: result for task in tasks if (result := staging.finished(task.number))}
    left = [task for task in tasks if task.number not in results]
    reused = sum(len(result.rows) for result in results.values())
    done = total - sum(len(task.entries) for task in left)
    progress(done, total)

    def on_sample() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    def on_shard(result: ShardResult) -> None:
        staging.keep(result)
        results[result.number] = result

    write_shards(left, workers, on_sample, on_shard)
    return [results[task.number] for task in tasks], reused


def _index(
    source: ImageSource,
    results: Sequence[ShardResult],
    classes: tuple[str, ...],
    unit: str,
    options: BuildOptions,
    skipped: Sequence[SkippedSample],
) -> ShardIndex:
    """Return the index of all tars that hold a sample."""
    filled = [result for result in results if result.rows]
    rows = tuple(replace(row, shard=place) for place, result in enumerate(filled) for row in result.rows)
    return ShardIndex(
        source=source.name,
        classes=classes,
        split_unit=unit,
        folds=len({row.fold for row in rows}),
        seed=options.seed,
        size=options.size,
        digest=table_digest(samples_table(rows)),
        shards=tuple(result.file for result in filled),
        skipped=(*skipped, *(skip for result in results for skip in result.skipped)),
        samples=rows,
    )


def _refuse_gaps(index: ShardIndex, folds: set[int]) -> None:
    """Refuse a build in which a class or a fold lost all its samples to damage."""
    first = _first_reasons(index.skipped)
    for label, name in enumerate(index.classes):
        if all(row.label != label for row in index.samples):
            raise DataError(f"class {name}: none of its samples can be used: {first}")
    if missing := sorted(folds - set(index.fold_numbers)):
        raise DataError(f"fold {missing[0]}: none of its samples can be used: {first}; try fewer --folds")


def _first_reasons(skipped: Sequence[SkippedSample]) -> str:
    if not skipped:
        return "the source lists no sample"
    more = f", and {len(skipped) - 1} more" if len(skipped) > 1 else ""
    return f"{skipped[0].where}: {skipped[0].reason}{more}"


def _describe(folder: Path, index: ShardIndex, workers: int) -> tuple[ShardIndex, LeakageReport]:
    """Write card and splits beside the tars and remove empty tars; return the index with the files' hashes."""
    kept = {shard.name for shard in index.shards}
    for path in folder.glob("*.tar"):
        if path.name not in kept:
            path.unlink()
    leak = write_card(folder, index, workers)
    (folder / SPLITS_NAME).write_text(splits_text(index), encoding="utf-8")
    files = tuple(_synced(folder / name) for name in (CARD_PAGE, CARD_JSON, SPLITS_NAME))
    return replace(index, files=files), leak


def _synced(path: Path) -> ShardFile:
    """Put a file on the disk for good and describe it."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return describe_file(path)


def _mixed(records: Sequence[SourceRecord]) -> tuple[str, ...]:
    first: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for record in records:
        if record.person is not None:
            first[record.person].setdefault(record.class_name, record.where)
    return tuple(
        " and ".join(f"{where} ({name})" for name, where in list(seen.items())[:2])
        for seen in first.values()
        if len(seen) > 1
    )
