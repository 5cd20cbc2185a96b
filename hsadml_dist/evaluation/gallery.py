"""Split slices into queries and gallery, and cache a run's embedded gallery as ``reference.npz``.

With the cached file, a run predicts without its shards. It holds keyed hashes, embeddings and 8 x 8 mean brightnesses.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hsadml_dist.checkpoint.layout import COMMIT
from hsadml_dist.data.index import ShardIndex
from hsadml_dist.data.shard_cache import ShardLocation
from hsadml_dist.errors import DataError
from hsadml_dist.evaluation import ood as nearness
from hsadml_dist.evaluation.metrics import Ints
from hsadml_dist.evaluation.model_loading import (
    EmbeddingTable,
    Inference,
    Progress,
    embed_slices,
    open_training_shards,
    save_columns,
)
from hsadml_dist.evaluation.result import PatientIds


@dataclass(frozen=True, kw_only=True)
class EvaluationSplit:
    """Which slices are judged and which serve as references.

    Attributes:
        shards: Where they are read.
        index: Its index.
        fold: The fold that is judged.
        test: Positions of its slices.
        references: Positions of the training folds' slices.
        left_out: Slices of the fold that are not judged, since training knows nothing of their class.
    """

    shards: ShardLocation
    index: ShardIndex
    fold: int
    test: tuple[int, ...]
    references: tuple[int, ...]
    left_out: int = 0

    def labels(self, positions: Sequence[int]) -> Ints:
        """Return the classes, int64, of the slices at ``positions``."""
        return np.array([self.index.samples[position].label for position in positions], dtype=np.int64)

    def people(self, positions: Sequence[int]) -> PatientIds:
        """Return whose slices those at ``positions`` are."""
        rows = [self.index.samples[position] for position in positions]
        return PatientIds(persons=[row.person for row in rows], exams=[row.exam for row in rows])


def make_split(
    shards: ShardLocation, index: ShardIndex, fold: int, held: Sequence[int], *, closed: bool = False
) -> EvaluationSplit:
    """Return the slices of ``fold`` as the test and those of the folds that are not ``held`` as references.

    Args:
        shards: Where they are read.
        index: Its index, with the labels that the network learns.
        fold: The fold to judge.
        held: The folds that training does not read.
        closed: Whether slices of classes without any reference are left out: a closed set. Persons need it, each of
            whom may have all slices in one fold.

    Raises:
        DataError: No such fold, no fold left to refer to, or a closed set without a slice.
    """
    references = index.outside_folds(held)
    if not references:
        names = ", ".join(map(str, sorted(held)))
        raise DataError(f"{shards}: all folds are held out ({names}): no training fold is left to find neighbours in")
    every = index.in_folds([fold])
    known = {index.samples[position].label for position in references}
    test = tuple(position for position in every if not closed or index.samples[position].label in known)
    if not test:
        raise DataError(f"{shards}: fold {fold} holds no slice of a class that the training folds know")
    return EvaluationSplit(
        shards=shards, index=index, fold=fold, test=test, references=references, left_out=len(every) - len(test)
    )


REFERENCE_NAME = "reference.npz"
VERSION = 1
Tell = Callable[[str], None]
"""Called with one line that a user should see."""


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """What images are compared with.

    Attributes:
        table: The slices of the folds that training read.
        looks: Their looks.
        embedding_threshold: Distance (1 - cosine) beyond which an embedding is far from all of them.
        look_threshold: The same for looks.
        size: Side in pixels to which the shards' images were scaled.
    """

    table: EmbeddingTable
    looks: nearness.ThumbnailStats
    embedding_threshold: float
    look_threshold: float
    size: int


def load_gallery(inference: Inference, shards: str | Path | None, tell: Tell, progress: Progress) -> Gallery:
    """Return a run's training cases: those kept in its folder if they are of these weights, else made and kept.

    Args:
        inference: The run.
        shards: Where its shards lie, if not where they were in training.
        tell: Told when they are made, and when they cannot be kept.
        progress: Called with the slices done and their total.

    Raises:
        DataError: The shards cannot be read, or are not those that the run was trained on.
    """
    if shards is not None:
        open_training_shards(inference, shards)
    path, identity = inference.run.path / REFERENCE_NAME, _identity(inference)
    kept = _read(path, identity)
    if kept is not None:
        return kept
    made = _made(inference, shards, tell, progress)
    try:
        save_columns(path, _columns(made) | identity)
    except OSError as error:
        tell(f"{path}: cannot be kept ({error.strerror}); the next call makes it again")
    return made


def _made(inference: Inference, shards: str | Path | None, tell: Tell, progress: Progress) -> Gallery:
    folder, index = open_training_shards(inference, shards)
    positions = index.outside_folds(inference.held_out_folds)
    if not positions:
        raise DataError(f"{folder}: all folds are held out: there are no training cases to compare with")
    tell(f"embedding {len(positions)} training cases; kept in {inference.run.path / REFERENCE_NAME}")
    table, thumbnail_NP = embed_slices(inference, folder, index, positions, progress)
    looks = nearness.looks(thumbnail_NP.numpy())
    return Gallery(
        table=table,
        looks=looks,
        embedding_threshold=nearness.embedding_threshold(table.emb_ND, table.persons),
        look_threshold=nearness.look_threshold(looks, table.persons),
        size=index.size,
    )


def _identity(inference: Inference) -> dict[str, np.ndarray]:
    """Return what the kept file must match: the weights themselves, not their name alone, and the samples."""
    name = inference.weights.checkpoint.name
    commit = (inference.run.checkpoints / name / COMMIT).read_text().strip()
    texts = {"version": str(VERSION), "checkpoint": name, "commit": commit, "data_digest": inference.trained_on}
    return {key: np.array(text) for key, text in texts.items()}


def _columns(made: Gallery) -> dict[str, np.ndarray]:
    return made.table.columns() | {
        "look": made.looks.look_NG,
        "look_mean": made.looks.mean_G,
        "look_spread": made.looks.spread_G,
        "embedding_threshold": np.array(made.embedding_threshold),
        "look_threshold": np.array(made.look_threshold),
        "size": np.array(made.size),
    }


def _read(path: Path, identity: Mapping[str, np.ndarray]) -> Gallery | None:
    """Return what is kept; None if there is nothing, if it is of other weights or samples, or damaged."""
    try:
        with np.load(path, allow_pickle=False) as columns:
            if any(str(columns[key]) != str(text) for key, text in identity.items()):
                return None
            looks = nearness.ThumbnailStats(
                look_NG=columns["look"], mean_G=columns["look_mean"], spread_G=columns["look_spread"]
            )
            return Gallery(
                table=EmbeddingTable.from_columns(columns),
                looks=looks,
                embedding_threshold=float(columns["embedding_threshold"]),
                look_threshold=float(columns["look_threshold"]),
                size=int(columns["size"]),
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
