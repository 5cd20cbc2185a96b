"""The input of a training, opened: index, held-out folds, order, and the loader with its workers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hsadml_dist.config import Recipe
from hsadml_dist.data.ahead import ShardSchedule
from hsadml_dist.data.index import ShardIndex
from hsadml_dist.data.labels import apply_label_setting
from hsadml_dist.data.loader import Loader, build_loader
from hsadml_dist.data.order import ExactOrder, Order, WindowOrder
from hsadml_dist.data.remote import open_shard_index
from hsadml_dist.data.staging import ShardCache, train_shard_location
from hsadml_dist.errors import ConfigError, DataError, Fault
from hsadml_dist.topology import Topology, allowed_world_sizes


@dataclass(frozen=True, kw_only=True)
class TrainData:
    """What a training reads.

    Attributes:
        index: The shards' index, with the labels that the network learns.
        order: Which samples each step takes.
        loader: This rank's batches.
        total_steps: Steps of the whole training.
    """

    index: ShardIndex
    order: Order
    loader: Loader
    total_steps: int


def held_out_folds(recipe: Recipe) -> tuple[int, ...]:
    """Return the folds that training never reads."""
    folds = (recipe.data.fold, recipe.data.val_fold)
    return tuple(fold for fold in folds if fold is not None)


def build_train_data(recipe: Recipe, topology: Topology) -> TrainData:
    """Open the training input and fork the loader's workers.

    To be called before any thread, process group or device context exists.

    Raises:
        DataError: The shards are missing, hold no such fold, do not have the labels to learn, or find no room.
        ConfigError: The batch cannot be cut evenly, or a transform does not exist.
    """
    check_global_batch(recipe, topology.world_size)
    place = train_shard_location(recipe.data.shards, recipe.data.stage)
    index = apply_label_setting(open_shard_index(recipe.data.shards, fresh=False), recipe.data)
    positions = index.outside_folds(held_out_folds(recipe))
    if not positions:
        raise DataError(f"{place}: no training samples are left outside folds {held_out_folds(recipe)}")
    order = build_order(recipe, index, positions)
    steps = recipe.train.steps if recipe.train.steps is not None else order.steps_for(recipe.train.epochs or 0)
    if isinstance(place, ShardCache):
        place.require_free_space(
            ShardSchedule(index=index, positions=positions, order=order, topology=topology).training_shards(steps)
        )
    loader = build_loader(
        place,
        index,
        positions,
        order,
        topology,
        image_size=recipe.data.image_size,
        transforms=recipe.data.transforms,
        workers=recipe.data.workers,
        prefetch=recipe.data.prefetch,
        cache=None if recipe.data.cache is None else Path(os.path.expandvars(recipe.data.cache)),
        augmentation=recipe.data.augmentation,
    )
    return TrainData(index=index, order=order, loader=loader, total_steps=steps)


def build_order(recipe: Recipe, index: ShardIndex, positions: Sequence[int]) -> Order:
    """Return the order in which the recipe takes the training samples, which stand at ``positions`` of the index."""
    batch, seed = recipe.train.global_batch, recipe.train.seed
    if recipe.data.order == "exact":
        return ExactOrder(count=len(positions), global_batch=batch, seed=seed)
    shard_N = np.array([index.samples[position].shard for position in positions], dtype=np.int64)
    return WindowOrder(shard_N=shard_N, window=recipe.data.window, global_batch=batch, seed=seed)


def check_global_batch(recipe: Recipe, world_size: int) -> None:
    """Refuse a number of ranks that does not divide the global batch.

    Raises:
        ConfigError: It does not.
    """
    batch = recipe.train.global_batch
    if batch % world_size == 0:
        return
    allowed = ", ".join(map(str, allowed_world_sizes(batch, max(world_size, batch))))
    problem = f"{batch} samples cannot be shared evenly by {world_size} ranks; numbers of ranks that can: {allowed}"
    raise ConfigError([Fault(where="recipe", key="train.global_batch", problem=problem)])
