"""Where the record of a training comes from: its run folder, or the shards of its recipe, and the runs before it."""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import dataclass
from pathlib import Path

from hsadml_dist.checkpoint.layout import read_progress
from hsadml_dist.config import Recipe
from hsadml_dist.config.yaml_loader import load_recipe
from hsadml_dist.data.index import PERSON, ShardIndex
from hsadml_dist.data.remote import open_shard_contents, open_shard_index
from hsadml_dist.errors import ConfigError, DataError, Fault, HsadmlError, RunError, os_error_reason
from hsadml_dist.evaluation.training_record import (
    KEY_BYTES,
    TrainingRecord,
    build_record,
    identify,
    join_records,
    read_key,
    read_record,
    write_record,
)
from hsadml_dist.run.folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class OpenedShards:
    """Shards in a folder or at a URL, and their index."""

    where: str
    index: ShardIndex


def save_training_record(run: RunFolder, recipe: Recipe, index: ShardIndex) -> TrainingRecord:
    """Write the record at the start of a training, unless an earlier start has; only the run's holder may call this.

    Args:
        run: The run folder.
        recipe: The settings of the run.
        index: Index of the training's shards, with the labels that the network learns.

    Raises:
        ConfigError: The class names have changed since the run's first start.
        RunError: The run folder cannot be written.
    """
    stored = read_record(run)
    if stored is not None and stored.digest == index.digest:
        _require_same_classes(stored, recipe, index)
        return stored
    record = _record_of(run, recipe, OpenedShards(where=recipe.data.shards, index=index))
    try:
        write_record(run, record)
    except OSError as fault:
        raise RunError(f"{fault.filename or run.trained_on}: cannot be written: {os_error_reason(fault)}") from fault
    return record


def find_record(
    run: RunFolder, recipe: Recipe, trained_on: str, named: OpenedShards | None = None
) -> TrainingRecord | None:
    """Return the record of a run: that in its folder or, for a run of an older version, one of the training's shards.

    Args:
        run: The run folder.
        recipe: The settings of the run.
        trained_on: Digest of the shards that the weights were trained on.
        named: Shards that may be those of the training in a new location.

    Returns None if the run folder has no record of these shards, and they were moved or have changed.
    """
    stored = read_record(run)
    if stored is not None and stored.digest != trained_on:
        stored = None
    if stored is not None and stored.key is not None:
        return stored
    shards = training_shards(recipe, trained_on, named)
    return stored if shards is None else _record_of(run, recipe, shards)


def training_shards(recipe: Recipe, trained_on: str, named: OpenedShards | None = None) -> OpenedShards | None:
    """Return the shards of the training: those named or those of the recipe, whichever still have its digest."""
    if named is not None and named.index.digest == trained_on:
        return named
    with contextlib.suppress(DataError):
        index = open_shard_index(recipe.data.shards, fresh=False)
        return OpenedShards(where=recipe.data.shards, index=index) if index.digest == trained_on else None
    return None


def training_positions(recipe: Recipe, index: ShardIndex) -> tuple[int, ...]:
    """Return the positions of the samples that a training reads."""
    return index.outside_folds(recipe.data.held_out_folds)


def _record_of(run: RunFolder, recipe: Recipe, shards: OpenedShards) -> TrainingRecord:
    """Return the record of a training on these shards, joined with that of the run its initial weights come from."""
    index, contents = shards.index, open_shard_contents(shards.where, shards.index)
    samples = identify(index, contents, training_positions(recipe, index))
    weights = None if recipe.model.init_from is None else Path(recipe.model.init_from).resolve()
    source = None if weights is None else _run_of(weights)
    before = None if weights is None or source is None else _record_before(source, weights)
    key = (before and before.key) or read_key(run) or secrets.token_bytes(KEY_BYTES)
    record = build_record(samples, _class_names(recipe, index), key)
    return record if source is None else join_records(record, before)


def _run_of(weights: Path) -> RunFolder | None:
    """Return the run folder that holds the weights in one of its checkpoints, or None for other weights."""
    runs = map(RunFolder, weights.parents)
    return next((run for run in runs if run.config.is_file() and run.checkpoints in weights.parents), None)


def _record_before(run: RunFolder, weights: Path) -> TrainingRecord | None:
    """Return the record of the run that initial weights come from, or None if there is none."""
    with contextlib.suppress(HsadmlError, OSError, ValueError, TypeError):
        return find_record(run, load_recipe(run.config, stored=True).recipe, read_progress(weights.parent).data_digest)
    return None


def _require_same_classes(record: TrainingRecord, recipe: Recipe, index: ShardIndex) -> None:
    if record.classes != _class_names(recipe, index):
        problem = (
            f"{recipe.data.shards!r} has the classes {', '.join(index.classes)}, but the run was started with "
            f"{', '.join(record.classes or ())}; use the shards with these names"
        )
        raise ConfigError([Fault(where="recipe", key="data.shards", problem=problem)])


def _class_names(recipe: Recipe, index: ShardIndex) -> tuple[str, ...] | None:
    return None if recipe.data.label == PERSON else index.classes
