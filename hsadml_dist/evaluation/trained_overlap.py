"""How many slices and patients of an evaluation a run was trained on, and the refusal to evaluate on them."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hsadml_dist.addresses import display_address
from hsadml_dist.config import Recipe
from hsadml_dist.data.contents import hash_image
from hsadml_dist.data.index import PERSON, ShardIndex
from hsadml_dist.data.reader import ShardReader
from hsadml_dist.data.remote import open_shard_contents
from hsadml_dist.data.shard_cache import ShardLocation, eval_shard_location
from hsadml_dist.distributed.comm import Comm
from hsadml_dist.errors import DataError, TrainedDataError
from hsadml_dist.evaluation.embed import EvaluationSplit
from hsadml_dist.evaluation.training_lineage import OpenedShards, find_record, training_positions, training_shards
from hsadml_dist.evaluation.training_record import (
    FILES,
    IMAGE_KINDS,
    PERSONS,
    PIXELS,
    SOURCES,
    SampleIdentities,
    TrainingRecord,
    add_pixels,
    identify,
    read_record,
    write_record,
)
from hsadml_dist.run.folder import RunFolder

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


class UnknownReason(enum.StrEnum):
    """Why a number of trained slices or patients cannot be told, or is only a lower bound."""

    NO_RECORD = "no_record"  # the run has no record, and the shards of its training were moved or have changed
    NO_KEY = "no_key"  # the key of the record is missing or belongs to another user
    PARTIAL_RECORD = "partial_record"  # the initial weights come from a run without a record
    NO_CONTENT_HASHES = "no_content_hashes"  # the record was made from shards without content hashes
    OTHER_SIZE = "other_size"  # the images are stored at another size than those of the training
    OTHER_ID_KEY = "other_id_key"  # the patients are hashed under another id key, or under an unknown one
    NO_PATIENT_IDS = "no_patient_ids"  # slices here or in the training have no patient


@dataclass(frozen=True, kw_only=True)
class TrainedOverlap:
    """Slices and patients of an evaluation that the run was trained on.

    Attributes:
        slices: Number of slices whose image was in the training; None if unknown.
        persons: Number of patients who were in the training; None if unknown.
        unknown: Why a number is unknown, or a number above 0 only a lower bound.
    """

    slices: int | None
    persons: int | None
    unknown: tuple[UnknownReason, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of ``result.json``."""
        unknown = tuple(str(reason) for reason in self.unknown)
        return {"trained_slices": self.slices, "trained_persons": self.persons, "trained_unknown": unknown}


def find_overlap(
    run: RunFolder,
    recipe: Recipe,
    trained_on: str,
    shards: OpenedShards,
    positions: Sequence[int],
    progress: Progress,
) -> TrainedOverlap:
    """Compare slices with the record of the run; read images only where their shards have no content hashes.

    Args:
        run: The run folder. The record is stored there if it had to be made from the shards of the training.
        recipe: The settings of the run.
        trained_on: Digest of the shards of the training.
        shards: The shards of the slices.
        positions: Positions of the slices in their index.
        progress: Called with the number of images read and their total.

    Raises:
        DataError: An image cannot be read.
    """
    record = find_record(run, recipe, trained_on, shards)
    if record is None:
        return TrainedOverlap(slices=None, persons=None, unknown=(UnknownReason.NO_RECORD,))
    index = shards.index
    samples = identify(index, open_shard_contents(shards.where, index), positions)
    if not _can_compare_images(record, samples) and record.sizes == {index.size}:
        record = _with_pixels(record, recipe, training_shards(recipe, trained_on, shards), progress)
        if record.is_complete(PIXELS) and PIXELS not in samples.values:
            pixels = hash_pixels(eval_shard_location(shards.where, recipe.data.stage), index, positions, progress)
            samples = dataclasses.replace(samples, values={**samples.values, PIXELS: pixels})
    _keep(run, record)
    return measure_overlap(record, samples)


def measure_overlap(record: TrainingRecord, samples: SampleIdentities) -> TrainedOverlap:
    """Count the samples and patients that the record holds."""
    if record.key is None:
        return TrainedOverlap(slices=None, persons=None, unknown=(UnknownReason.NO_KEY,))
    persons = samples.values[PERSONS]
    is_trained = [
        any(record.matches(kind, samples.values[kind][row]) for kind in IMAGE_KINDS if kind in samples.values)
        for row in range(len(persons))
    ]
    named = {person for person in persons if record.matches(PERSONS, person)}
    seen = {person for person, trained in zip(persons, is_trained, strict=True) if trained and person is not None}
    # Two keys never give the same pseudonym, so a single match shows that it is the same key.
    reasons = _image_reason(record, samples), _person_reason(record, samples, same_key=bool(named))
    return TrainedOverlap(
        slices=sum(is_trained) or (None if reasons[0] else 0),
        persons=len(named | seen) or (None if reasons[1] else 0),
        unknown=tuple(dict.fromkeys(reason for reason in reasons if reason is not None)),
    )


def hash_pixels(location: ShardLocation, index: ShardIndex, positions: Sequence[int], progress: Progress) -> list[str]:
    """Read images and return the hashes of their pixels.

    Raises:
        DataError: A shard is missing or damaged.
    """
    reader, hashes = ShardReader(location, index), []
    for done, position in enumerate(positions, start=1):
        hashes.append(hash_image(reader.image(position)))
        progress(done, len(positions))
    return hashes


def count_repeated_images(recipe: Recipe, index: ShardIndex) -> int:
    """Return how many slices of the test fold have the image of a slice in the training folds, by the index alone."""
    trained = {index.samples[position].sha256 for position in training_positions(recipe, index)}
    return sum(row.fold == recipe.data.fold and row.sha256 in trained for row in index.samples)


def find_own_overlap(run: RunFolder, recipe: Recipe, split: EvaluationSplit, comm: Comm) -> TrainedOverlap:
    """Compare a training's own test fold with its training folds. Collective: every rank must call it.

    Args:
        run: The run folder.
        recipe: The settings of the run.
        split: The test fold of the training's shards.
        comm: The ranks; rank 0 compares.
    """
    facts = None
    if comm.topology.is_rank_zero:
        shards = OpenedShards(where=recipe.data.shards, index=split.index)
        found = find_overlap(run, recipe, split.index.digest, shards, split.queries, lambda done, total: None)
        facts = (found.slices, found.persons, [str(reason) for reason in found.unknown])
    slices, persons, unknown = comm.broadcast_json(facts)
    return TrainedOverlap(slices=slices, persons=persons, unknown=tuple(map(UnknownReason, unknown)))


def add_overlap(run: RunFolder, recipe: Recipe, result: Mapping[str, Any], keys: Sequence[str]) -> Mapping[str, Any]:
    """Return the stored result of an older version with the numbers of trained slices and patients.

    Args:
        run: The run folder.
        recipe: The settings of the run.
        result: ``result.json``, on the shards of the training.
        keys: Sample keys of the evaluated slices.

    Returns the result as it is if the shards were moved or have changed.
    """
    shards = training_shards(recipe, result["data_digest"])
    if shards is None:
        return result
    evaluated = frozenset(keys)
    positions = [position for position, row in enumerate(shards.index.samples) if row.key in evaluated]
    found = find_overlap(run, recipe, result["data_digest"], shards, positions, lambda done, total: None)
    return {**result, **found.to_dict()}


def refuse_trained(
    overlap: TrainedOverlap, recipe: Recipe, split: EvaluationSplit, shards: str, *, is_own: bool
) -> None:
    """Raise if an evaluation would be on slices or patients of the training.

    Args:
        overlap: The slices and patients that the run was trained on.
        recipe: The settings of the run.
        split: The slices to evaluate.
        shards: Folder or URL of the slices.
        is_own: They are the shards of the training. If its folds share patients by their split unit, those are expected
            and reported, and only images of the training are a reason; the recipe may allow these.

    Raises:
        TrainedDataError: There are such slices or patients.
    """
    shares_patients = is_own and (split.index.split_unit != PERSON or recipe.data.label == PERSON)
    if is_own and recipe.evaluation.allow_trained:
        return
    if not overlap.slices and (shares_patients or not overlap.persons):
        return
    patients = split.patient_ids(split.queries).distinct_patients()
    seen = [f"{overlap.slices} of {len(split.queries)} slices"] if overlap.slices else []
    if overlap.persons:
        seen.append(f"{overlap.persons} of {'unknown' if patients is None else len(patients)} patients")
    raise TrainedDataError(
        f"{display_address(shards)}: fold {split.fold}: the run was trained on "
        f"{' and '.join(seen)}, so the figures would not be of unseen data; evaluate other images, or allow it with "
        "--allow-trained (Python: allow_trained=True; at the end of a training: evaluation.allow_trained=true), which "
        "marks every figure"
    )


def _with_pixels(
    record: TrainingRecord, recipe: Recipe, shards: OpenedShards | None, progress: Progress
) -> TrainingRecord:
    """Return the record with the pixels of the training's images if its shards are still there and had no hashes."""
    if shards is None or PIXELS in record.hashes:
        return record
    location, positions = eval_shard_location(shards.where, recipe.data.stage), training_positions(recipe, shards.index)
    with contextlib.suppress(DataError):  # if a shard of the training is missing, the answer is unknown
        return add_pixels(record, hash_pixels(location, shards.index, positions, progress))
    return record


def _keep(run: RunFolder, record: TrainingRecord) -> None:
    """Store a record that was made or completed now; not if its key was taken away, which is a user's decision."""
    stored = read_record(run)
    if stored == record or (stored is not None and stored.key is None):
        return
    with contextlib.suppress(OSError):  # a run folder that cannot be written can still be evaluated
        write_record(run, record)


def _can_compare_images(record: TrainingRecord, samples: SampleIdentities) -> bool:
    """Return whether an image without a match was certainly not in the training.

    The PNG files identify images only within one folder of shards, where one encoder has written all of them.
    """
    same_folder, same_size = record.digests == {samples.digest}, record.sizes == {samples.size}
    comparable = {PIXELS: same_size, SOURCES: True, FILES: same_folder}
    return any(comparable[kind] and record.is_complete(kind) and kind in samples.values for kind in comparable)


def _image_reason(record: TrainingRecord, samples: SampleIdentities) -> UnknownReason | None:
    if _can_compare_images(record, samples):
        return None
    if record.partial.issuperset(IMAGE_KINDS):
        return UnknownReason.PARTIAL_RECORD
    return UnknownReason.NO_CONTENT_HASHES if record.sizes == {samples.size} else UnknownReason.OTHER_SIZE


def _person_reason(record: TrainingRecord, samples: SampleIdentities, *, same_key: bool) -> UnknownReason | None:
    if None in samples.values[PERSONS]:
        return UnknownReason.NO_PATIENT_IDS
    if not record.is_complete(PERSONS):
        everything = record.partial.issuperset(IMAGE_KINDS)
        return UnknownReason.PARTIAL_RECORD if everything else UnknownReason.NO_PATIENT_IDS
    is_known = same_key or record.has_id_key(samples.id_key) or record.digests == {samples.digest}
    return None if is_known else UnknownReason.OTHER_ID_KEY
