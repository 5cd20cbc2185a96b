"""Predict the classes of new images with a trained run, and cache its embedded training cases as ``reference.npz``.

With the cached file, a run predicts without its shards. It holds keyed hashes, embeddings and 8 x 8 mean brightnesses.

Shapes: N images, C classes, K neighbours.
"""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hsadml_dist.checkpoint.layout import COMMIT
from hsadml_dist.data.sample import MAX_SIDE
from hsadml_dist.errors import DataError
from hsadml_dist.evaluation.classifiers import class_probabilities
from hsadml_dist.evaluation.embed import Image
from hsadml_dist.evaluation.knn import nearest
from hsadml_dist.evaluation.model_loading import (
    EmbeddingTable,
    Inference,
    Progress,
    embed_slices,
    open_training_shards,
    save_columns,
)
from hsadml_dist.evaluation.ood import ThumbnailStats, embedding_threshold, thumbnail_threshold
from hsadml_dist.model_factory import build_margin_loss

GALLERY_NAME = "reference.npz"
GALLERY_VERSION = 1
NEIGHBOURS = 3
DUPLICATE_DISTANCE = 1e-5
"""Distance, in embedding and thumbnail, below which an image is a training case: fp32 rounds a cosine to 1e-7."""

NPZ_ERRORS = (
    *(AttributeError, EOFError, KeyError, MemoryError, OSError, OverflowError, RuntimeError, SyntaxError),
    *(TypeError, ValueError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
"""Exceptions of NumPy and zipfile for damaged content."""

Notify = Callable[[str], None]
"""Called with one line for the user."""


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Training cases that new images are compared with.

    Attributes:
        embedding_threshold: Distance (1 - cosine) above which an embedding is far from all of them.
        thumbnail_threshold: The same for thumbnails.
        size: Side of the images in the shards, in pixels.
    """

    table: EmbeddingTable
    thumbnails: ThumbnailStats
    embedding_threshold: float
    thumbnail_threshold: float
    size: int


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A training case near an image: its sample key, its class, and the cosine between the two embeddings."""

    key: str
    class_name: str
    cosine: float


@dataclass(frozen=True, kw_only=True)
class ImagePrediction:
    """Prediction for one image.

    Attributes:
        class_name: Class of the nearest centre.
        probabilities: Probability of each class by the loss, in label order; see
            :func:`~hsadml_dist.evaluation.classifiers.class_probabilities`.
        neighbours: The nearest training cases, nearest first.
        far_by: Distances by which it is far from all training cases: ``embedding``, ``look`` (the thumbnail), or both.
        is_training_case: True if embedding and thumbnail equal those of a training case.
    """

    class_name: str
    probabilities: tuple[float, ...]
    neighbours: tuple[Neighbour, ...]
    far_by: tuple[str, ...]
    is_training_case: bool

    @property
    def probability(self) -> float:
        """Probability of the predicted class."""
        return max(self.probabilities)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings to show with the class."""
        found, first = [], self.neighbours[0].class_name
        if self.far_by:
            found.append(f"far from all training cases (by {' and '.join(self.far_by)}): the class is meaningless")
        elif first != self.class_name:
            found.append(f"its nearest training case is of class {first}")
        if self.is_training_case:
            found.append("it is one of the training cases, so the prediction says nothing about new images")
        return tuple(found)


def predict_images(inference: Inference, gallery: Gallery, images: Sequence[Image]) -> list[ImagePrediction]:
    """Predict the class of each image (gallery.size, gallery.size), uint16, scaled as the images of the shards.

    Raises:
        DataError: An embedding is not finite: the model has diverged.
    """
    found, block = inference.embed(images), inference.recipe.evaluation.block
    emb_ND, gallery_RD = found.emb_ND.float().cpu(), torch.from_numpy(gallery.table.emb_ND)
    cosine_NK, position_NK = nearest(emb_ND, gallery_RD, k=min(NEIGHBOURS, len(gallery_RD)), block=block)
    loss, weights = build_margin_loss(inference.recipe.loss), inference.weights
    probability_NC = class_probabilities(found.emb_ND, weights.centre_CD, loss, weights.bias).cpu()
    distance_N = gallery.thumbnails.distance(found.thumbnail_NP.cpu().numpy())
    rows = zip(probability_NC, position_NK.tolist(), cosine_NK.tolist(), distance_N.tolist(), strict=True)
    return [_prediction(gallery, *row) for row in rows]


def _prediction(
    gallery: Gallery, probability_C: torch.Tensor, position_K: list[int], cosine_K: list[float], distance: float
) -> ImagePrediction:
    table, cosine_distance = gallery.table, 1 - cosine_K[0]
    far = {
        "embedding": cosine_distance > gallery.embedding_threshold,
        "look": distance > gallery.thumbnail_threshold,
    }
    return ImagePrediction(
        class_name=table.classes[int(probability_C.argmax())],
        probabilities=tuple(probability_C.tolist()),
        neighbours=tuple(
            Neighbour(key=table.keys[row], class_name=table.classes[int(table.label_N[row])], cosine=cosine)
            for row, cosine in zip(position_K, cosine_K, strict=True)
        ),
        far_by=tuple(name for name, is_far in far.items() if is_far),
        is_training_case=max(cosine_distance, distance) < DUPLICATE_DISTANCE,
    )


def load_gallery(inference: Inference, shards: str | Path | None, notify: Notify, progress: Progress) -> Gallery:
    """Load the training cases of a run from its folder; embed and cache them if that file is not of these weights.

    Args:
        inference: The run.
        shards: New location of its shards; None means that of the recipe.
        notify: Called when the cases are embedded, and when they cannot be cached.
        progress: Called with the number of embedded slices and their total.

    Raises:
        DataError: The shards cannot be read, or are not those of the training.
    """
    if shards is not None:
        open_training_shards(inference, shards)
    path, identity = inference.run.path / GALLERY_NAME, _identity(inference)
    cached = _read_gallery(path, identity)
    if cached is not None:
        return cached
    gallery = _embed_gallery(inference, shards, notify, progress)
    try:
        save_columns(path, _columns(gallery) | identity)
    except OSError as error:
        notify(f"{path}: cannot be written ({error.strerror}); the next call embeds the training cases again")
    return gallery


def _embed_gallery(inference: Inference, shards: str | Path | None, notify: Notify, progress: Progress) -> Gallery:
    location, index = open_training_shards(inference, shards)
    positions = index.outside_folds(inference.held_out_folds)
    if not positions:
        raise DataError(f"{location}: all folds are held out; prediction needs training cases to compare with")
    notify(f"embedding {len(positions)} training cases; cached in {inference.run.path / GALLERY_NAME}")
    table, thumbnail_NP = embed_slices(inference, location, index, positions, progress)
    stats = ThumbnailStats.from_thumbnails(thumbnail_NP.numpy())
    return Gallery(
        table=table,
        thumbnails=stats,
        embedding_threshold=embedding_threshold(table.emb_ND, table.persons),
        thumbnail_threshold=thumbnail_threshold(stats, table.persons),
        size=index.size,
    )


def _identity(inference: Inference) -> dict[str, np.ndarray]:
    """Return what a cached file must match: the content of the weights, not just their name, and the samples."""
    name = inference.weights.checkpoint.name
    commit = (inference.run.checkpoints / name / COMMIT).read_text().strip()
    texts = {"version": str(GALLERY_VERSION), "checkpoint": name, "commit": commit, "data_digest": inference.trained_on}
    return {key: np.array(text) for key, text in texts.items()}


def _columns(gallery: Gallery) -> dict[str, np.ndarray]:
    return gallery.table.columns() | {
        "look": gallery.thumbnails.cells_NG,
        "look_mean": gallery.thumbnails.mean_G,
        "look_spread": gallery.thumbnails.std_G,
        "embedding_threshold": np.array(gallery.embedding_threshold),
        "look_threshold": np.array(gallery.thumbnail_threshold),
        "size": np.array(gallery.size),
    }


def _read_gallery(path: Path, identity: Mapping[str, np.ndarray]) -> Gallery | None:
    """Return the cached gallery; None if there is none, it is of other weights or samples, or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as columns:
            if any(str(columns[key]) != str(text) for key, text in identity.items()):
                return None
            if not 1 <= int(columns["size"]) <= MAX_SIDE:
                return None
            stats = ThumbnailStats(cells_NG=columns["look"], mean_G=columns["look_mean"], std_G=columns["look_spread"])
            return Gallery(
                table=EmbeddingTable.from_columns(columns),
                thumbnails=stats,
                embedding_threshold=float(columns["embedding_threshold"]),
                thumbnail_threshold=float(columns["look_threshold"]),
                size=int(columns["size"]),
            )
    except NPZ_ERRORS:
        return None
