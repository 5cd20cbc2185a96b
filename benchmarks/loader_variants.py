"""Implementations of reading shards, from bytes to a batch: ours and webdataset's, each as a timed round."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from monai.data import set_track_meta
from monai.transforms import Compose

from hsadml_dist.config.recipe import DataConfig
from hsadml_dist.data.fused_augmentation import FusedAugmentation
from hsadml_dist.data.index import load_index
from hsadml_dist.data.loader import Loader, build_loader
from hsadml_dist.data.order import ExactOrder, ShardSchedule, epoch_order
from hsadml_dist.data.reader import PreparedImages, ShardReader, decode_image, open_prepared_cache
from hsadml_dist.data.sample import IMAGE
from hsadml_dist.data.transforms import Augmentation, Preprocessing, build_transforms
from hsadml_dist.distributed.topology import Topology

SEED = 0
IMAGE_SIZE = 112


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Input of a round.

    Attributes:
        shards: Folder of the shards.
        count: Samples of a round, a multiple of ``batch``.
        batch: Samples of a batch.
        cache: Folder for prepared images.
        rows: Rows of the made-up index from which a resumed run reads.
    """

    shards: Path
    count: int
    batch: int
    cache: Path
    rows: int

    def tars(self) -> list[str]:
        """Return the paths of the shards."""
        return [str(self.shards / shard.name) for shard in load_index(self.shards).shards]


Round = Callable[[], object]


def indexed(setting: Setting, checked: bool) -> Round:
    """Read the bytes of the images at the offsets of the index, with or without comparing their SHA-256."""
    index = load_index(setting.shards)
    reader = ShardReader(setting.shards, index)
    order = epoch_order(len(index), SEED, 0)[: setting.count].tolist()

    def take() -> int:
        if checked:
            return sum(len(reader.png_bytes(position)) for position in order)
        return sum(len(reader.raw(index.samples[position])) for position in order)

    return take


def sequential(setting: Setting) -> Round:
    """Read the bytes of all members, tar by tar."""
    pipeline = webdataset.WebDataset(setting.tars(), shardshuffle=False)
    return lambda: sum(len(sample["png"]) for sample in itertools.islice(pipeline, setting.count))


def ours(setting: Setting, augmentation: str, cached: bool) -> Round:
    """Take an epoch's batches from the loader of a training."""
    loader = own_loader(setting, setting.count, augmentation, cached)
    steps = setting.count // setting.batch
    starts = itertools.count(1, steps)

    def take() -> None:
        first = next(starts)
        loader.start(first, first + steps - 1)
        for _ in range(steps):
            loader.next(lambda: False)

    if cached:
        take()
    return take


def own_loader(setting: Setting, rows: int, augmentation: str = "monai", cached: bool = False) -> Loader:
    """Return a training loader over ``rows`` rows that repeat those of the shards."""
    index = load_index(setting.shards)
    index = replace(index, samples=tuple(itertools.islice(itertools.cycle(index.samples), rows)))
    order = ExactOrder(count=rows, global_batch=setting.batch, seed=SEED)
    schedule = ShardSchedule(index=index, positions=range(rows), order=order, topology=Topology())
    cache = str(setting.cache) if cached else None
    shards = str(setting.shards)
    data = DataConfig(shards=shards, image_size=IMAGE_SIZE, workers=0, cache=cache, augmentation=augmentation)
    return build_loader(setting.shards, schedule, data)


def rival(setting: Setting, track_meta: bool, lazy: bool) -> Round:
    """Take an epoch's batches from webdataset's pipeline with MONAI's transforms, the same objects."""
    transform = composed(track_meta, lazy)
    pipeline = (
        webdataset.WebDataset(setting.tars(), shardshuffle=False)
        .decode(decode_image)
        .to_tuple("png", "json")
        .map_tuple(transform, lambda meta: meta["label"])
        .batched(setting.batch)
    )
    batches = setting.count // setting.batch

    def take() -> None:
        taken = list(itertools.islice(pipeline, batches))
        assert len(taken) == batches
        assert taken[0][0].shape == (setting.batch, 1, IMAGE_SIZE, IMAGE_SIZE)

    return take


def composed(track_meta: bool, lazy: bool) -> Callable[[np.ndarray], torch.Tensor]:
    """Return the transforms composed by MONAI.

    Lazy are the random ones alone: MONAI's lazy resampling knows no resizing by area.
    """
    prepare, augment = Preprocessing(IMAGE_SIZE).transforms, build_transforms(None)
    steps = Compose([*prepare, Compose(augment, lazy=True)] if lazy else [*prepare, *augment])
    set_track_meta(track_meta)
    return lambda image: steps(torch.from_numpy(image.astype(np.float32) / 65535)[None])


def resumed(setting: Setting, share: float) -> Round:
    """Take the first batch after a resume at a share of an epoch over many rows."""
    loader = own_loader(setting, setting.rows)
    step = 1 + int(share * setting.rows) // setting.batch

    def take() -> None:
        epoch_order.cache_clear()
        loader.start(step, step + 10)
        loader.next(lambda: False)

    return take


READING: dict[str, Callable[[Setting], Round]] = {
    "ours": lambda setting: indexed(setting, checked=False),
    "ours-sha256": lambda setting: indexed(setting, checked=True),
    "webdataset": sequential,
}
PATH: dict[str, Callable[[Setting], Round]] = {
    "webdataset-monai": lambda setting: rival(setting, track_meta=True, lazy=False),
    "webdataset-monai-no-meta": lambda setting: rival(setting, track_meta=False, lazy=False),
    "webdataset-monai-lazy": lambda setting: rival(setting, track_meta=True, lazy=True),
    "ours": lambda setting: ours(setting, "monai", cached=False),
    "ours-fused": lambda setting: ours(setting, "fused", cached=False),
    "ours-cached": lambda setting: ours(setting, "monai", cached=True),
    "ours-fused-cached": lambda setting: ours(setting, "fused", cached=True),
}
RESUME: dict[str, Callable[[Setting], Round]] = {
    "at 10 %": lambda setting: resumed(setting, 0.1),
    "at 90 %": lambda setting: resumed(setting, 0.9),
}
WAYS = {"reading": READING, "path": PATH, "resume": RESUME}


def distances(setting: Setting) -> dict[str, float]:
    """Return each implementation's largest pixel difference from ours, as a share of the image's range."""
    index = load_index(setting.shards)
    reader, prepare = ShardReader(setting.shards, index), Preprocessing(IMAGE_SIZE)
    stored = [reader.image(position) for position in range(min(8, len(index)))]
    prepared = [prepare(image) for image in stored]
    expected = Augmentation(None).batch(prepared, range(len(stored)))
    fused = FusedAugmentation(None).batch(prepared, range(len(stored)))
    store = open_prepared_cache(setting.cache, index, prepare)
    kept = [[PreparedImages(reader, prepare, store).image(place) for place in range(len(stored))] for _ in range(2)]
    found = {
        "ours-fused": fused,
        "ours-cached": Augmentation(None).batch(kept[1], range(len(stored))),
    }
    for name, track_meta, lazy in (("", True, False), ("-no-meta", False, False), ("-lazy", True, True)):
        found[f"webdataset-monai{name}"] = _seeded(stored, track_meta, lazy)
    return {
        name: max(_distance(one, other) for one, other in zip(images, expected, strict=True))
        for name, images in found.items()
    }


def _seeded(stored: Sequence[np.ndarray], track_meta: bool, lazy: bool) -> list[torch.Tensor]:
    prepare, augment = Compose(Preprocessing(IMAGE_SIZE).transforms), Compose(build_transforms(None), lazy=lazy)
    set_track_meta(track_meta)
    images = []
    for seed, image in enumerate(stored):
        augment.set_random_state(seed=seed)
        images.append(torch.as_tensor(augment(prepare(torch.from_numpy(image.astype(np.float32) / 65535)[None]))))
    set_track_meta(False)
    return images


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((torch.as_tensor(one) - other).abs().max() / (other.max() - other.min()))


def stages(setting: Setting) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """Yield the stages: a name and the function from one state of a sample to the next."""
    index = load_index(setting.shards)
    reader, prepare = ShardReader(setting.shards, index), Preprocessing(IMAGE_SIZE)
    augment, seeds = Augmentation(None), itertools.count()
    yield "read", lambda place: reader.raw(index.samples[place])
    yield "SHA-256", lambda data: (hashlib.sha256(data).hexdigest(), data)[1]
    yield "decode", lambda data: decode_image(f".{IMAGE}", data, index.size)
    yield "resize, normalise", prepare
    yield "augment", lambda image: augment(image, next(seeds))


def batch_stages(setting: Setting) -> dict[str, Callable[[list[torch.Tensor]], Any]]:
    """Return the stages on batches of prepared images, and reading such images from the cache."""
    index = load_index(setting.shards)
    store = open_prepared_cache(setting.cache, index, Preprocessing(IMAGE_SIZE))
    fused, sources = FusedAugmentation(None), [row.sha256 for row in index.samples]

    def read(images: list[torch.Tensor]) -> None:
        for position, image in enumerate(images):
            if store.get(position, sources[position]) is None:
                store.put(position, sources[position], image)

    return {
        "augment, fused": lambda images: fused.batch(images, range(len(images))),
        "put a batch together": torch.stack,
        "read from the cache": read,
    }


def parsed(order: str) -> tuple[dict[str, Any], Setting]:
    """Parse a request; return it and its input."""
    words = json.loads(order)
    setting = words.pop("setting")
    return words, Setting(**setting | {name: Path(setting[name]) for name in ("shards", "cache")})
