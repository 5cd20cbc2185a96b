"""Load the weights of a trained run for inference, and embed images or slices of shards with them.

Shapes: N images, D components, C classes, P pixels of a thumbnail.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from hsadml_dist.atomic import atomic_path
from hsadml_dist.checkpoint.layout import CheckpointName
from hsadml_dist.checkpoint.load import load_inference_state
from hsadml_dist.config import Recipe
from hsadml_dist.config.yaml_loader import load_recipe
from hsadml_dist.data.index import PERSON, ShardIndex, apply_label_setting
from hsadml_dist.data.reader import ShardReader
from hsadml_dist.data.remote import open_shard_index
from hsadml_dist.data.shard_cache import ShardLocation, eval_shard_location
from hsadml_dist.distributed.device import configure_kernels, local_device
from hsadml_dist.distributed.topology import Topology
from hsadml_dist.errors import DataError
from hsadml_dist.evaluation.class_names import ClassMap, learnt_classes, map_classes, require_same_classes
from hsadml_dist.evaluation.embed import Embeddings, Image, embed, image_batches
from hsadml_dist.evaluation.metrics import Ints
from hsadml_dist.evaluation.result import CheckpointRef
from hsadml_dist.model_factory import build_network
from hsadml_dist.models.network import prepare_model
from hsadml_dist.run.folder import RunFolder

LAST_STEP = "last step"
AVERAGE = "last step, its running average of weights"

Progress = Callable[[int, int], None]
"""Called with (done, total)."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Trained network, without an engine, and all class centres, both on the device of the ranks.

    Attributes:
        bias: Bias of the loss on all logits; None for losses without one.
        chosen_by: Rule that chose these weights among all of the training.
    """

    model: nn.Module
    centre_CD: torch.Tensor
    checkpoint: CheckpointRef
    bias: float | None = None
    chosen_by: str = LAST_STEP


@dataclass(frozen=True, kw_only=True)
class Inference:
    """The newest valid weights of a run, its settings, and the digest of the shards it was trained on."""

    run: RunFolder
    recipe: Recipe
    weights: Weights
    trained_on: str
    device: torch.device

    @property
    def held_out_folds(self) -> tuple[int, ...]:
        """The folds that training has not read."""
        return self.recipe.data.held_out_folds

    def embed(self, images: Iterable[Image]) -> Embeddings:
        """Embed images (H, W), uint16, scaled as in shards."""
        size, batch = self.recipe.data.image_size, self.recipe.evaluation.batch
        batches = image_batches(images, image_size=size, batch=batch)
        return embed(self.weights.model, batches, embedding_dim=self.recipe.model.embedding_dim, device=self.device)


@dataclass(frozen=True, kw_only=True)
class EmbeddingTable:
    """Embeddings of slices of shards, fp32 and not normalised, one row per slice.

    Attributes:
        persons: Keyed hashes of patients; empty if unknown.
        classes: Class names in label order.
    """

    keys: tuple[str, ...]
    persons: tuple[str, ...]
    label_N: Ints
    fold_N: Ints
    emb_ND: npt.NDArray[np.float32]
    classes: tuple[str, ...]
    checkpoint: str
    data_digest: str

    def __len__(self) -> int:
        return len(self.keys)

    def columns(self) -> dict[str, np.ndarray]:
        """Return the arrays of the ``.npz``; strings as unicode arrays, so that reading needs no pickle."""
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
        """Create the table from the arrays of :meth:`columns`.

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


def chosen_by(ema_decay: float | None) -> str:
    """Return the rule that chooses the weights of a run, as stored in results."""
    return LAST_STEP if ema_decay is None else AVERAGE


def checkpoint_ref(name: CheckpointName) -> CheckpointRef:
    """Return the reference to a checkpoint that results store."""
    return CheckpointRef(name=str(name), step=name.step, attempt=name.attempt)


def load_weights(run: RunFolder, recipe: Recipe, device: torch.device) -> tuple[Weights, str]:
    """Load the newest valid weights of a run, and the digest of the samples they were trained on.

    Raises:
        CheckpointError: There is no valid checkpoint.
    """
    state = load_inference_state(run)
    network = build_network(recipe)
    network.load_state_dict(state.model)
    weights = Weights(
        model=prepare_model(network, device, recipe.engine.precision),
        centre_CD=state.centres.to(device),
        checkpoint=checkpoint_ref(state.name),
        bias=state.bias,
        chosen_by=chosen_by(recipe.optim.ema_decay),
    )
    return weights, state.data_digest


def open_inference(run: Path) -> Inference:
    """Load the newest valid weights of a run on the device of this process.

    Raises:
        CheckpointError: There is no valid checkpoint.
    """
    folder = RunFolder(run)
    recipe, device = load_recipe(folder.config, stored=True).recipe, local_device(Topology())
    configure_kernels(device, tf32=recipe.engine.tf32, deterministic=recipe.engine.deterministic)
    weights, trained_on = load_weights(folder, recipe, device)
    return Inference(run=folder, recipe=recipe, weights=weights, trained_on=trained_on, device=device)


def open_shards(
    inference: Inference, shards: str | Path | None, class_map: ClassMap | None = None
) -> tuple[ShardLocation, ShardIndex]:
    """Open the shards of the run, or others, with the labels that the run has learnt.

    Args:
        inference: The run.
        shards: Other shards; None means those of the recipe.
        class_map: Class names of the shards to those of the run; without it the names must be the same.

    Raises:
        DataError: They cannot be read or have other classes, or the classes of the run are patients and the shards are
            not those of the training.
    """
    data = inference.recipe.data
    where = str(shards or data.shards)
    location, index = eval_shard_location(where, data.stage), open_shard_index(where, fresh=True)
    if data.label == PERSON and index.digest != inference.trained_on:
        raise DataError(f"{location}: not the shards of the training; the run has learnt their patients and no others")
    if data.label == PERSON:
        if class_map:
            raise DataError("--map-class: the classes of this run are patients; there is nothing to map")
        return location, apply_label_setting(index, data)
    return location, _with_learnt_classes(inference, index, class_map or {}, str(location))


def _with_learnt_classes(inference: Inference, index: ShardIndex, class_map: ClassMap, where: str) -> ShardIndex:
    """Return the index with the classes of the run, which must be its own or be mapped to them."""
    names = learnt_classes(inference.run, inference.recipe, inference.trained_on)
    if names is not None and class_map:
        return map_classes(index, names, class_map, where)
    learnt = len(inference.weights.centre_CD)
    if len(index.classes) != learnt and names is None:
        raise DataError(f"{where}: has {len(index.classes)} classes; the run has learnt {learnt}")
    if names is not None:
        require_same_classes(index, names, where)
    elif class_map:
        raise DataError("--map-class: the run folder does not have the names of its classes; nothing can be mapped")
    else:
        log.warning("%s: only the number of classes was compared: the run folder does not have their names", where)
    return index


def open_training_shards(inference: Inference, shards: str | Path | None) -> tuple[ShardLocation, ShardIndex]:
    """Open the shards that the run was trained on, in their old location or a new one.

    Raises:
        DataError: They cannot be read, or are different shards.
    """
    location, index = open_shards(inference, shards)
    if index.digest != inference.trained_on:
        raise DataError(
            f"{location}: has digest {index.digest[:16]}; the run was trained on shards with digest "
            f"{inference.trained_on[:16]}; name their folder with --shards"
        )
    return location, index


def embed_slices(
    inference: Inference, shards: ShardLocation, index: ShardIndex, positions: Sequence[int], progress: Progress
) -> tuple[EmbeddingTable, torch.Tensor]:
    """Embed the slices at ``positions`` of the index; return also their thumbnails (N, P), uint8, on the CPU.

    Raises:
        DataError: A shard is missing or damaged.
    """
    reader, rows = ShardReader(shards, index), [index.samples[position] for position in positions]

    def images() -> Iterator[Image]:
        for done, position in enumerate(positions, start=1):
            yield reader.image(position)
            progress(done, len(positions))

    embeddings = inference.embed(images())
    table = EmbeddingTable(
        keys=tuple(row.key for row in rows),
        persons=tuple(row.person or "" for row in rows),
        label_N=np.array([row.label for row in rows], dtype=np.int64),
        fold_N=np.array([row.fold for row in rows], dtype=np.int64),
        emb_ND=embeddings.emb_ND.float().cpu().numpy(),
        classes=index.classes,
        checkpoint=inference.weights.checkpoint.name,
        data_digest=index.digest,
    )
    return table, embeddings.thumbnail_NP.cpu()


def save_columns(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Write or replace an ``.npz`` atomically.

    Raises:
        OSError: It cannot be written.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **columns)
