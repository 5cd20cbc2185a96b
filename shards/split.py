"""Assign samples to folds, by patient, exam or slice and balanced by class, and the samples of each fold to tars.

Folds: greedy stratified group k-fold. Groups (patients, exams or slices) are taken from large to small, and each goes
to the fold that so far holds the smallest share of the group's classes. Ties are broken by a hash of seed and group, so
that the result depends neither on a random generator whose stream may change between versions nor on the order of the
input.

Tars: each holds samples of one fold, so that a run need not open the tars of its test fold. Within a fold, the samples
of all patients are shuffled by a hash of the seed: a reader of whole tars sees many patients, not forty slices of one.

All functions are pure.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise

from hsadml_dist.data.index import SPLIT_UNITS, ShardIndex
from hsadml_dist.errors import DataError, UsageError, did_you_mean
from hsadml_dist.shards.identical_images import join_copies
from hsadml_dist.shards.source import SourceRecord

MIN_FOLDS = 2
SPLITS_NAME = "splits.json"


def check_split(split_by: str | None, folds: int) -> None:
    """Raise UsageError if ``split_by`` is neither a split unit nor None, or ``folds`` is below 2."""
    if split_by is not None and split_by not in SPLIT_UNITS:
        allowed = ", ".join(SPLIT_UNITS)
        raise UsageError(
            f"--split-by {split_by!r}: unknown unit; allowed: {allowed}{did_you_mean(split_by, SPLIT_UNITS)}"
        )
    if folds < MIN_FOLDS:
        raise UsageError(f"--folds {folds}: out of range; allowed: {MIN_FOLDS} or more")


def unit_name(unit: str) -> str:
    """Return the name of a split unit in texts for users: ``patient`` for the column ``person``."""
    return "patient" if unit == "person" else unit


def choose_split_unit(records: Sequence[SourceRecord], split_by: str | None) -> str:
    """Return ``split_by``, or by default the largest unit that the source names for any record.

    A source that names the patients of some samples is split by patient, and :func:`split_groups` then refuses those
    that lack one.
    """
    named = (unit for unit in ("person", "exam") if any(getattr(record, unit) is not None for record in records))
    return split_by or next(named, "slice")


def split_groups(records: Sequence[SourceRecord], split_by: str) -> tuple[str, ...]:
    """Return the group of each record; a group must stay within one fold.

    Raises:
        DataError: A record lacks the identifier that the split needs.
    """
    for record in records if split_by != "slice" else ():
        if getattr(record, split_by) is None:
            others = ", ".join(unit for unit in SPLIT_UNITS if unit != split_by)
            raise DataError(
                f"--split-by {split_by}: {record.where} has no {unit_name(split_by)}, and every sample needs one; "
                f"name the table's column with --columns {split_by}=NAME, pass --persons for figshare, "
                f"or split by another unit ({others})"
            )
    fields = {"person": ("person",), "exam": ("person", "exam"), "slice": ("record_id",)}[split_by]
    return tuple(json.dumps([getattr(record, field) for field in fields]) for record in records)


def assign_folds(
    records: Sequence[SourceRecord], split_by: str, folds: int, seed: int, images: Sequence[str | None] | None = None
) -> tuple[int, ...]:
    """Return the fold of each record: the source's own if it prescribes folds, otherwise 0 ... folds - 1.

    Args:
        records: All records of the source.
        split_by: Unit that no two folds share.
        folds: Number of folds.
        seed: Seed of the folds.
        images: Hash of each record's image, to keep identical images in one fold; None does not.

    Raises:
        DataError: Fewer groups than folds, a missing identifier, or prescribed folds that split a group.
    """
    groups = split_groups(records, split_by)
    if images is not None:
        groups = join_copies(groups, images)
    if any(record.fold is not None for record in records):
        return _prescribed_folds(records, groups, split_by)
    count = len(set(groups))
    if folds > count:
        units = f"{count} {_unit_names(split_by, images)}"
        raise DataError(f"--folds {folds}: the source has only {units}; allowed: {MIN_FOLDS} ... {count}")
    return balance_folds(groups, [record.class_name for record in records], folds, seed)


def _unit_names(split_by: str, images: Sequence[str | None] | None) -> str:
    return f"{unit_name(split_by)}s" + ("" if images is None else " without a common image")


def balance_folds(groups: Sequence[str], classes: Sequence[str], folds: int, seed: int) -> tuple[int, ...]:
    """Return the fold of each sample, the same for all samples of a group.

    From the largest group to the smallest, each goes to the fold with the smallest share of its classes; ties go to the
    fold with the fewest samples, then by hash.
    """
    totals = Counter(classes)
    content: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for group, class_name in zip(groups, classes, strict=True):
        content[group][class_name] += 1
    assigned = [Counter[str]() for _ in range(folds)]
    fold_of: dict[str, int] = {}
    for group in sorted(content, key=lambda group: (-content[group].total(), seeded_hash(seed, "unit", group))):
        counts = content[group]

        def cost(fold: int, counts: Counter[str] = counts, group: str = group) -> tuple[float, int, str]:
            share = sum(assigned[fold][c] * n / totals[c] ** 2 for c, n in counts.items())
            return share, assigned[fold].total(), seeded_hash(seed, "fold", group, fold)

        fold = min(range(folds), key=cost)
        fold_of[group] = fold
        assigned[fold].update(counts)
    return tuple(fold_of[group] for group in groups)


def seeded_hash(seed: int, *parts: str | int) -> str:
    """Return a hash to sort or draw by: pseudo-random, and the same for the same seed and parts on every machine."""
    return hashlib.sha256(json.dumps([seed, *parts]).encode()).hexdigest()


def assign_shards(
    records: Sequence[SourceRecord], folds: Sequence[int], samples_per_shard: int, seed: int
) -> tuple[tuple[int, ...], ...]:
    """Return for each tar the positions in ``records`` of its samples, in order; folds ascend.

    The tars of a fold differ in length by at most one sample.
    """
    members: defaultdict[int, list[int]] = defaultdict(list)
    for position, fold in enumerate(folds):
        members[fold].append(position)
    shards: list[tuple[int, ...]] = []
    for fold in sorted(members):
        order = sorted(members[fold], key=lambda position: seeded_hash(seed, "order", records[position].record_id))
        count = -(-len(order) // samples_per_shard)
        bounds = [len(order) * part // count for part in range(count + 1)]
        shards.extend(tuple(order[low:high]) for low, high in pairwise(bounds))
    return tuple(shards)


def shard_name(number: int) -> str:
    """Return the file name of tar ``number``."""
    return f"shard-{number:05d}.tar"


def nnunet_splits(index: ShardIndex) -> list[dict[str, list[str]]]:
    """Return the folds in the form of nnU-Net's ``splits_final.json``, folds ascending, keys sorted.

    Source: Isensee et al. 2021, "nnU-Net: a self-configuring method for deep learning-based biomedical image
    segmentation".
    """
    keys = {fold: sorted(index.samples[at].key for at in index.in_folds([fold])) for fold in index.fold_numbers}
    return [
        {"train": sorted(key for other, own in keys.items() if other != fold for key in own), "val": keys[fold]}
        for fold in keys
    ]


def nnunet_splits_text(index: ShardIndex) -> str:
    """Return the text of ``splits.json``."""
    return json.dumps(nnunet_splits(index), indent=1) + "\n"


def _prescribed_folds(records: Sequence[SourceRecord], groups: Sequence[str], split_by: str) -> tuple[int, ...]:
    first: dict[str, SourceRecord] = {}
    folds: list[int] = []
    for record, group in zip(records, groups, strict=True):
        if record.fold is None:
            raise DataError(f"fold: {record.where} has no fold, but other samples have one; give all samples a fold")
        other = first.setdefault(group, record)
        if other.fold != record.fold:
            raise DataError(
                f"fold: one {unit_name(split_by)} is in two folds: {other.where} in {other.fold}, "
                f"{record.where} in {record.fold}; correct the folds or choose another --split-by"
            )
        folds.append(record.fold)
    if len(set(folds)) < MIN_FOLDS:
        raise DataError(f"fold: all samples are in fold {folds[0]}; at least {MIN_FOLDS} folds are needed")
    return tuple(folds)
