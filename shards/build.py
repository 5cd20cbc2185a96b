"""Build a folder of shards: list the source, split it, write the tars, describe them, move the folder into place."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

from hsadml_dist import atomic
from hsadml_dist.data.contents import CONTENTS_NAME, write_contents
from hsadml_dist.data.index import ShardIndex, SkippedSample, samples_table, table_digest, write_index
from hsadml_dist.data.sample import MAX_SIDE, SCHEMA_VERSION, SampleMeta
from hsadml_dist.errors import DataError, UsageError
from hsadml_dist.shards.build_folder import BuildFolder, open_build_folder, require_empty_folder
from hsadml_dist.shards.card import CARD_JSON, CARD_PAGE, write_card
from hsadml_dist.shards.identical_images import find_identical_images
from hsadml_dist.shards.image_codec import CONVERSION_VERSION
from hsadml_dist.shards.leakage import LeakageReport
from hsadml_dist.shards.pseudonyms import IdKey
from hsadml_dist.shards.similar_names import identifier_hints
from hsadml_dist.shards.source import ImageSource, SourceRecord
from hsadml_dist.shards.split import (
    SPLITS_NAME,
    assign_folds,
    assign_shards,
    check_split,
    choose_split_unit,
    nnunet_splits_text,
    shard_name,
)
from hsadml_dist.shards.writer import EncodeTask, ShardResult, ShardTask, describe_file, hash_images, write_shards

MIN_SIZE = 8
MAX_SIZE = MAX_SIDE


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Options of a build that do not depend on the source.

    Attributes:
        split_by: ``person``, ``exam`` or ``slice``. None means the largest unit that the source names.
        folds: Number of folds, unless the source prescribes them.
        keep_copies_together: Keep identical images in one fold; reads every image twice.
        size: Side of the stored square images in pixels.
    """

    split_by: str | None = None
    folds: int = 5
    seed: int = 0
    samples_per_shard: int = 256
    size: int = 256
    keep_copies_together: bool = False


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """Result of a finished build.

    Attributes:
        reused: Number of samples reused from an interrupted build.
        mixed_class_patients: For each patient with slices of two classes, two such slices.
        lossy_masks: Number of masks that were JPEGs.
        label_conflicts: For images in more than one class, two such slices; as many as the card lists.
        name_hints: Patients and exams whose names differ only in spelling.
    """

    index: ShardIndex
    reused: int
    mixed_class_patients: tuple[str, ...]
    label_conflicts: tuple[str, ...]
    name_hints: tuple[str, ...]
    leakage: LeakageReport
    lossy_masks: int = 0


def build_shards(
    source: ImageSource,
    out: Path,
    options: BuildOptions,
    key: IdKey,
    workers: int,
    progress: Callable[[int, int], None],
) -> BuildReport:
    """Write the shards of ``source`` to ``out``, which appears complete or not at all.

    The bytes depend on source, options and key alone, never on ``workers``. Samples that cannot be used are skipped
    and listed in the index.

    Args:
        out: The folder to create; absent or empty.
        key: Key under which identifiers are hashed.
        workers: Number of processes that read and encode samples.
        progress: Called with the number of samples done so far and their total.

    Raises:
        UsageError: An option is out of its range.
        DataError: The source, the split or the target cannot be used; one line.
    """
    _check_options(options, workers)
    out = out.absolute()
    require_empty_folder(out)
    listing = source.list_records()
    records = listing.records
    if not records:
        raise DataError(f"INPUT: nothing to build: {_first_reason(listing.skipped)}")
    unit = choose_split_unit(records, options.split_by)
    classes = sort_classes(record.class_name for record in records)
    images = _image_hashes(source, classes, options, key, records, workers) if options.keep_copies_together else None
    folds = assign_folds(records, unit, options.folds, options.seed, images)
    tasks = _encode_tasks(source, folds, classes, options.size, key, records)
    shards = assign_shards(records, folds, options.samples_per_shard, options.seed)
    with open_build_folder(out, _fingerprint(source, options, key)) as folder:
        results, reused = _write(_shard_tasks(tasks, shards, folder.path), workers, folder, progress)
        index = _make_index(source, results, classes, unit, options, listing.skipped)
        _check_classes_and_folds(index, set(folds))
        write_contents(folder.path, key.fingerprint(), [one for result in results for one in result.contents])
        index, leakage = _describe(folder.path, index, workers)
        write_index(folder.path, index)
        folder.publish()
    return BuildReport(
        index=index,
        reused=reused,
        mixed_class_patients=_mixed_class_patients(records),
        label_conflicts=_label_conflicts(index, tasks),
        name_hints=identifier_hints(records),
        leakage=leakage,
        lossy_masks=sum(result.lossy_masks for result in results),
    )


def sort_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Return the unique class names in label order: by value if all are whole numbers, otherwise alphabetically."""
    unique = set(names)
    numeric = all(name.isascii() and name.isdigit() for name in unique)
    return tuple(sorted(unique, key=(lambda name: (int(name), name)) if numeric else None))


def _check_options(options: BuildOptions, workers: int) -> None:
    if not MIN_SIZE <= options.size <= MAX_SIZE:
        raise UsageError(f"--size {options.size}: out of range; allowed: {MIN_SIZE} ... {MAX_SIZE} pixels")
    if options.samples_per_shard < 1:
        raise UsageError(f"--samples-per-shard {options.samples_per_shard}: out of range; allowed: 1 or more")
    if workers < 1:
        raise UsageError(f"--workers {workers}: out of range; allowed: 1 or more")
    check_split(options.split_by, options.folds)


def _image_hashes(
    source: ImageSource,
    classes: Sequence[str],
    options: BuildOptions,
    key: IdKey,
    records: Sequence[SourceRecord],
    workers: int,
) -> list[str | None]:
    """Return the hash of each record's stored image, None for a damaged one."""
    if any(record.fold is not None for record in records):
        raise UsageError(
            "--keep-copies-together: the source prescribes the folds; omit the option, or the prescribed folds "
            "(--author-folds, or the table's fold column)"
        )
    return hash_images(_encode_tasks(source, [0] * len(records), classes, options.size, key, records), workers)


def _encode_tasks(
    source: ImageSource,
    folds: Sequence[int],
    classes: Sequence[str],
    size: int,
    key: IdKey,
    records: Sequence[SourceRecord],
) -> list[EncodeTask]:
    tasks = []
    for record, fold in zip(records, folds, strict=True):
        meta = SampleMeta(
            key=key.sample_key(record.record_id, record.person, record.exam),
            class_name=record.class_name,
            label=classes.index(record.class_name),
            person=None if record.person is None else key.hash_person(record.person),
            exam=None if record.exam is None else key.hash_exam(record.person, record.exam),
            fold=fold,
            author_fold=record.author_fold,
            plane=record.plane,
            spacing_mm=record.spacing_mm,
            shape=(size, size),
            volume=(size, size),
            origin=(0, 0),
        )
        tasks.append(EncodeTask(source=source, record=record, meta=meta))
    return tasks


def _shard_tasks(samples: Sequence[EncodeTask], shards: Sequence[Sequence[int]], folder: Path) -> list[ShardTask]:
    return [
        ShardTask(number=number, path=folder / shard_name(number), samples=tuple(samples[at] for at in positions))
        for number, positions in enumerate(shards)
    ]


def _fingerprint(source: ImageSource, options: BuildOptions, key: IdKey) -> str:
    """Return a text that two builds share only if they write the same bytes; hashed, because it holds identifiers."""
    versions = {name: version(name) for name in ("pillow", "webdataset", "numpy")}
    content = [SCHEMA_VERSION, CONVERSION_VERSION, asdict(options), versions, source.fingerprint()]
    return key.hash_text(json.dumps(content, sort_keys=True))


def _write(
    tasks: Sequence[ShardTask], workers: int, folder: BuildFolder, progress: Callable[[int, int], None]
) -> tuple[list[ShardResult], int]:
    """Write the tars that no earlier build finished; return all results in order, and the number of reused samples."""
    results = {task.number: result for task in tasks if (result := folder.finished_shard(task.number))}
    remaining = [task for task in tasks if task.number not in results]
    reused = sum(len(result.rows) for result in results.values())
    total = sum(len(task.samples) for task in tasks)
    done = total - sum(len(task.samples) for task in remaining)
    progress(done, total)

    def on_sample() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    def on_shard(result: ShardResult) -> None:
        folder.record_shard(result)
        results[result.number] = result

    write_shards(remaining, workers, on_sample, on_shard)
    return [results[task.number] for task in tasks], reused


def _make_index(
    source: ImageSource,
    results: Sequence[ShardResult],
    classes: tuple[str, ...],
    unit: str,
    options: BuildOptions,
    skipped: Sequence[SkippedSample],
) -> ShardIndex:
    """Return the index of all tars that hold a sample."""
    filled = [result for result in results if result.rows]
    rows = tuple(replace(row, shard=shard) for shard, result in enumerate(filled) for row in result.rows)
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


def _check_classes_and_folds(index: ShardIndex, folds: set[int]) -> None:
    """Raise if a class or a fold lost all its samples to damage."""
    reason = _first_reason(index.skipped)
    for label, name in enumerate(index.classes):
        if all(row.label != label for row in index.samples):
            raise DataError(f"class {name}: none of its samples can be used: {reason}")
    if missing := sorted(folds - set(index.fold_numbers)):
        raise DataError(f"fold {missing[0]}: none of its samples can be used: {reason}; try fewer --folds")


def _first_reason(skipped: Sequence[SkippedSample]) -> str:
    if not skipped:
        return "the source lists no sample"
    more = f", and {len(skipped) - 1} more" if len(skipped) > 1 else ""
    return f"{skipped[0].where}: {skipped[0].reason}{more}"


def _describe(folder: Path, index: ShardIndex, workers: int) -> tuple[ShardIndex, LeakageReport]:
    """Write the card and the splits, remove tars without samples; return the index with the hashes of these files."""
    kept = {shard.name for shard in index.shards}
    for path in folder.glob("*.tar"):
        if path.name not in kept:
            path.unlink()
    leakage = write_card(folder, index, workers)
    atomic.write_text(folder / SPLITS_NAME, nnunet_splits_text(index))
    files = tuple(describe_file(folder / name) for name in (CARD_PAGE, CARD_JSON, SPLITS_NAME, CONTENTS_NAME))
    return replace(index, files=files), leakage


def _label_conflicts(index: ShardIndex, tasks: Sequence[EncodeTask]) -> tuple[str, ...]:
    """Return, for identical images in more than one class, where two of them were in the source."""
    where = {task.meta.key: task.record.where for task in tasks}
    return tuple(
        f"{where[one.first_key]} ({one.first_class}) and {where[one.second_key]} ({one.second_class})"
        for one in find_identical_images(index.samples, index.classes).conflict_examples
    )


def _mixed_class_patients(records: Sequence[SourceRecord]) -> tuple[str, ...]:
    """Return, for each patient with slices of several classes, the first slices of two of them."""
    first: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for record in records:
        if record.person is not None:
            first[record.person].setdefault(record.class_name, record.where)
    return tuple(
        " and ".join(f"{where} ({name})" for name, where in list(classes.items())[:2])
        for classes in first.values()
        if len(classes) > 1
    )
