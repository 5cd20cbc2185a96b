"""Settings of the input: which shards, which fold is held out, how samples are read and augmented."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from hsadml_dist.config.keys import setting


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the samples come from.

    Attributes:
        shards: Folder written by ``hsadml shards build``, or its address: ``http://``, ``https://`` or ``s3://``.
        stage: Folder on the node's own disk, to which shards are copied before they are read; environment variables
            are taken from the node, so ``$TMPDIR/shards`` may differ on each. None: shards at an address go to the
            user's cache, others are read where they are.
        label: What the network learns to tell apart: the shards' classes, or persons, each of them a class. Persons
            need shards that are split by slice or exam, so that training knows those of the test fold.
        fold: Held out for the verdict; never read in training.
        val_fold: Held out for choosing a model; none: the last weights are judged.
        workers: Loader processes per rank; 0 reads in the rank itself.
        prefetch: Batches that each worker prepares ahead.
        order: ``exact`` permutes all samples anew each epoch. ``window`` permutes the shards, takes ``window`` of them
            at a time and permutes the samples inside: one pass over the shards an epoch.
        window: Shards that are mixed at a time where the order is ``window``.
        image_size: Side to which images are resized, in pixels.
        transforms: Random augmentations of the training images, MONAI transforms by ``_target_``; none: the
            package's own affine set. An empty list: no augmentation.
        augmentation: ``monai`` applies the transforms one after another; ``fused`` does mirror, affine map, scale and
            shift of intensity in one resampling of the whole batch, with the same random numbers.
        cache: Folder on the node's own disk that keeps each image as it is before augmentation; environment variables
            are taken from the node. None: each image is read and resized anew each time.
    """

    shards: str = setting(on_resume="movable")
    stage: str | None = setting(None, on_resume="movable")
    label: Literal["class", "person"] = setting("class")
    fold: int = setting(0, ge=0)
    val_fold: int | None = setting(None, ge=0)
    workers: int = setting(0, on_resume="movable", ge=0)
    prefetch: int = setting(2, on_resume="movable", ge=1)
    order: Literal["exact", "window"] = setting("exact")
    window: int = setting(8, ge=1)
    image_size: int = setting(112, ge=8)
    transforms: tuple[dict[str, Any], ...] | None = setting(None)
    augmentation: Literal["monai", "fused"] = setting("monai")
    cache: str | None = setting(None, on_resume="movable")
