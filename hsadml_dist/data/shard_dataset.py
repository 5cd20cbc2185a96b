"""A PyTorch dataset over a folder of shards, for any ordinary DataLoader."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch.utils.data import Dataset

from hsadml_dist.data.index import ShardIndex
from hsadml_dist.data.reader import ShardReader
from hsadml_dist.data.remote import open_shard_index
from hsadml_dist.data.shard_cache import train_shard_location
from hsadml_dist.data.transforms import Preprocessing, metadata_tracking_off, single_threaded
from hsadml_dist.errors import DataError

Split = Literal["train", "test", "all"]
MIN_IMAGE_SIZE = 8


class ShardDataset(Dataset[tuple[Any, int]]):
    """The samples of a folder of shards, prepared exactly as in training: resized, zero mean and unit variance.

    A sample is ``(image, label)``: the image (1, image_size, image_size), fp32, or what ``transform`` makes of it, and
    the index of its class in ``classes``. The dataset can be pickled, so it works with forked and spawned workers.

    Attributes:
        classes: Class names in the order of their labels.
        keys: The key of each sample, in the order of the dataset.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        fold: int | None = None,
        split: Split = "train",
        image_size: int | None = None,
        transform: Callable[[torch.Tensor], Any] | None = None,
    ) -> None:
        """Open the index of the shards; images are read on access.

        Args:
            folder: Folder written by ``hsadml shards build``, or its URL.
            fold: The held-out fold; None means that none is held out.
            split: ``test``: the samples of ``fold``; ``train``: all others; ``all``: both.
            image_size: Side length of the images in pixels; None means as stored.
            transform: Applied to each prepared image.

        Raises:
            DataError: There are no shards in the folder, or they have no such fold; or a value is not allowed.
        """
        self._folder, self._transform = str(folder), transform
        self._index = open_shard_index(self._folder, fresh=False)
        self._image_size = self._index.size if image_size is None else image_size
        if self._image_size < MIN_IMAGE_SIZE:
            raise DataError(f"image_size: {self._image_size} is not allowed; it must be at least {MIN_IMAGE_SIZE}")
        self._positions = _positions(self._index, fold, split)
        self.classes = self._index.classes
        self.keys = tuple(self._index.samples[position].key for position in self._positions)

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, item: int) -> tuple[Any, int]:
        """Return (image, label); raise DataError if the image cannot be read, or does not match its hash."""
        position = self._positions[item]
        # One thread and no metadata, as in training; both are settings of the caller's process and are restored.
        with single_threaded(), metadata_tracking_off():
            image = self._preprocess(self._reader.image(position))
        label = self._index.samples[position].label
        return (image if self._transform is None else self._transform(image)), label

    def raw(self, item: int) -> np.ndarray:
        """Return the image as stored, (H, W), uint16; raises the same errors."""
        return self._reader.image(self._positions[item])

    def __getstate__(self) -> dict[str, Any]:
        # Open files and MONAI's objects belong to one process; another one makes its own.
        return {name: value for name, value in self.__dict__.items() if name not in ("_reader", "_preprocess")}

    @functools.cached_property
    def _reader(self) -> ShardReader:
        return ShardReader(train_shard_location(self._folder, None), self._index)

    @functools.cached_property
    def _preprocess(self) -> Preprocessing:
        return Preprocessing(self._image_size)


def _positions(index: ShardIndex, fold: int | None, split: str) -> tuple[int, ...]:
    if split not in get_args(Split):
        raise DataError(f"split: {split!r} is not allowed; allowed: {', '.join(get_args(Split))}")
    if fold is None and split == "test":
        allowed = ", ".join(map(str, index.fold_numbers))
        raise DataError(f"fold: None is not allowed with split 'test'; allowed: {allowed}")
    folds = () if fold is None else (fold,)
    test, train = index.in_folds(folds), index.outside_folds(folds)
    return {"train": train, "test": test, "all": tuple(range(len(index)))}[split]
