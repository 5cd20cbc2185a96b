"""Load a trained run for inference and embed images with it.

Shapes: N images, D components, C classes, P pixels of a thumbnail.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from hsadml_dist.checkpoint.layout import CheckpointName
from hsadml_dist.checkpoint.load import load_inference_state
from hsadml_dist.config import Recipe
from hsadml_dist.config.yaml_loader import load_recipe
from hsadml_dist.data.index import PERSON, ShardIndex, apply_label_setting
from hsadml_dist.data.loader import held_out_folds
from hsadml_dist.data.reader import ShardReader
from hsadml_dist.data.remote import open_shard_index
from hsadml_dist.data.shard_cache import ShardLocation, eval_shard_location
from hsadml_dist.distributed.comm import local_device
from hsadml_dist.distributed.topology import Topology
from hsadml_dist.errors import DataError
from hsadml_dist.evaluation.embed import Embeddings, embed, image_batches
from hsadml_dist.evaluation.metrics import Ints
from hsadml_dist.evaluation.result import CheckpointRef
from hsadml_dist.model_factory import build_network
from hsadml_dist.models.network import prepare_model
from hsadml_dist.run.folder import RunFolder

LAST_STEP = "last step"
AVERAGE = "last step, its running average of weights"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What is judged.

    Attributes:
        model: The bare network, on the ranks' device.
        centre_CD: All class centres, on the same device.
        checkpoint: Where they are kept.
        chosen_by: How these weights were chosen among all that the training went through.
    """

    model: nn.Module
    centre_CD: torch.Tensor
    checkpoint: CheckpointRef
    chosen_by: str = LAST_STEP


def chosen_by(recipe: Recipe) -> str:
    """Return in words which weights of a run are judged."""
    return LAST_STEP if recipe.optim.ema_decay is None else AVERAGE


def checkpoint_ref(name: CheckpointName) -> CheckpointRef:
    """Return a checkpoint as results name it."""
    return CheckpointRef(name=str(name), step=name.step, attempt=name.attempt)


def load_weights(run: RunFolder, recipe: Recipe, device: torch.device) -> tuple[Weights, str]:
    """Return the newest weights that verify, and the digest of the samples they were trained on.

    Raises:
        CheckpointError: No checkpoint verifies, or there is none.
    """
    state = load_inference_state(run)
    network = build_network(recipe)
    network.load_state_dict(state.model)
    model = prepare_model(network, device, recipe.engine.precision)
    weights = Weights(
        model=model,
        centre_CD=state.centres.to(device),
        checkpoint=checkpoint_ref(state.name),
        chosen_by=chosen_by(recipe),
    )
    return weights, state.data_digest


Image = npt.NDArray[np.uint16]
Singles = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]
"""Called with (done, total)."""


@dataclass(frozen=True, kw_only=True)
class Inference:
    """A run's newest good weights with all that is needed to use them.

    Attributes:
        run: Its folder.
        recipe: Its settings.
        weights: Network and centres.
        trained_on: Digest of the shards it was trained on.
        device: Where the network is.
    """

    run: RunFolder
    recipe: Recipe
    weights: Weights
    trained_on: str
    device: torch.device

    @property
    def held_out_folds(self) -> tuple[int, ...]:
        """The folds that training never read."""
        return held_out_folds(self.recipe.data)

    def embedded(self, images: Iterable[Image]) -> Embeddings:
        """Return embeddings (N, D) and thumbnails (N, P) of images as shards hold them, (H, W), uint16."""
        size, batch = self.recipe.data.image_size, self.recipe.evaluation.batch
        batches = image_batches(images, image_size=size, batch=batch)
        return embed(self.weights.model, batches, embedding_dim=self.recipe.model.embedding_dim, device=self.device)


@dataclass(frozen=True, kw_only=True)
class EmbeddingTable:
    """Embedded slices of shards; a row in each column.

    Attributes:
        keys: Sample keys.
        persons: Keyed hashes of persons; empty where a slice names none.
        label_N: Classes, int64.
        fold_N: Folds, int64.
        emb_ND: Embeddings, fp32, not normalised.
        classes: Class names in the order of their labels.
        checkpoint: The weights.
        data_digest: The shards' identity.
    """

    keys: tuple[str, ...]
    persons: tuple[str, ...]
    label_N: Ints
    fold_N: Ints
    emb_ND: Singles
    classes: tuple[str, ...]
    checkpoint: str
    data_digest: str

    def __len__(self) -> int:
        return len(self.keys)

    def columns(self) -> dict[str, np.ndarray]:
        """Return the arrays of the ``.npz``; texts as unicode arrays, so that no pickle is ever read."""
        return {
            "keys": np.array(self.keys, dtype=np.str_),
            "persons": np.array(self.persons, dtype=np.str_),
            "labels": self.label_N,
            "folds": self.fold_N,
            "emb": self.emb_ND,
            "classes": np.array(self.classes, dtype=np.str_),
            "checkpoint": np.array(self.checkpoint),
            "data_digest": np.array(self.data_digest),
        }

    @classmethod
    def from_columns(cls, columns: Mapping[str, np.ndarray]) -> EmbeddingTable:
        """Read what :meth:`columns` gave.

        Raises:
            KeyError: A column is missing.
        """
        return cls(
            keys=tuple(columns["keys"].tolist()),
            persons=tuple(columns["persons"].tolist()),
            label_N=columns["labels"],
            fold_N=columns["folds"],
            emb_ND=columns["emb"],
            classes=tuple(columns["classes"].tolist()),
            checkpoint=str(columns["checkpoint"]),
            data_digest=str(columns["data_digest"]),
        )


def open_inference(run: Path) -> Inference:
    """Return a run's newest weights that verify, on this process's device.

    Raises:
        CheckpointError: No checkpoint verifies, or there is none.
    """
    folder = RunFolder(run)
    recipe, device = load_recipe(folder.config).recipe, local_device(Topology())
    weights, trained_on = load_weights(folder, recipe, device)
    return Inference(run=folder, recipe=recipe, weights=weights, trained_on=trained_on, device=device)


def open_shards(inference: Inference, shards: str | Path | None) -> tuple[ShardLocation, ShardIndex]:
    """Return the place and the index of the run's shards, or of those given, with the labels that the run has learnt.

    Raises:
        DataError: They cannot be read, their classes are not as many as the run's, or the run has learnt persons and
            they are not the shards that it was trained on.
    """
    data = inference.recipe.data
    where = str(shards or data.shards)
    folder, index = eval_shard_location(where, data.stage), open_shard_index(where, fresh=True)
    learnt = len(inference.weights.centre_CD)
    if data.label == PERSON and index.digest != inference.trained_on:
        raise DataError(f"{folder}: other shards than the run's own; it has learnt the persons of those and no others")
    index = apply_label_setting(index, data)
    if len(index.classes) != learnt:
        raise DataError(f"{folder}: {len(index.classes)} classes, the run has learnt {learnt}: other classes than its")
    return folder, index


def open_training_shards(inference: Inference, shards: str | Path | None) -> tuple[ShardLocation, ShardIndex]:
    """As :func:`open_shards`, but none other than the shards that the run was trained on, wherever they lie now.

    Raises:
        DataError: They cannot be read, or are others.
    """
    folder, index = open_shards(inference, shards)
    if index.digest != inference.trained_on:
        raise DataError(
            f"{folder}: digest {index.digest[:16]}, the run was trained on {inference.trained_on[:16]}: other shards "
            "than its; name its own by --shards"
        )
    return folder, index


def embed_slices(
    inference: Inference, shards: ShardLocation, index: ShardIndex, positions: Sequence[int], progress: Progress
) -> tuple[EmbeddingTable, torch.Tensor]:
    """Return the embedded slices at ``positions`` of the index, and their thumbnails (N, P), uint8, on the CPU.

    Raises:
        DataError: A shard is missing or damaged.
    """
    reader, rows = ShardReader(shards, index), [index.samples[position] for position in positions]
    found = inference.embedded(_counted((reader.image(position) for position in positions), len(positions), progress))
    table = EmbeddingTable(
        keys=tuple(row.key for row in rows),
        persons=tuple(row.person or "" for row in rows),
        label_N=np.array([row.label for row in rows], dtype=np.int64),
        fold_N=np.array([row.fold for row in rows], dtype=np.int64),
        emb_ND=found.emb_ND.float().cpu().numpy(),
        classes=index.classes,
        checkpoint=inference.weights.checkpoint.name,
        data_digest=index.digest,
    )
    return table, found.thumbnail_NP.cpu()


def save_columns(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Write an ``.npz`` so that a reader sees the old file or the new one, never half of it.

    Raises:
        OSError: It cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **columns)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _counted(images: Iterable[Image], total: int, progress: Progress) -> Iterator[Image]:
    for done, image in enumerate(images, start=1):
        yield image
        progress(done, total)
