"""Results of an evaluation: ``predictions.json``, with every prediction, and ``result.json``, with the metrics.

Shapes: N test slices, C classes, K neighbours.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hsadml_dist.errors import DataError
from hsadml_dist.evaluation.geometry import Geometry
from hsadml_dist.evaluation.intervals import Caution, Interval
from hsadml_dist.evaluation.metrics import Calibration, ConfusionSummary, Floats, Ints
from hsadml_dist.evaluation.patient_metrics import PatientVote
from hsadml_dist.json_parsing import INVALID, parse_json

SCHEMA_VERSION = 2
PREDICTIONS_SCHEMA_VERSION = 1

KNN = "knn"
HEAD = "head"
RAW_PIXELS = "raw_pixels"
LOW_LEVEL = "low_level"
MAJORITY = "majority"
VOTES = (5, 11, 21)
"""Numbers of neighbours for majority votes, besides the nearest one: methods ``knn_5`` and so on."""

STORED_NEIGHBOURS = 5
"""Neighbours of each slice in ``predictions.json``."""
MAX_LISTED_CLASSES = 32
"""Largest number of classes for which ``predictions.json`` holds all probabilities."""
TOP_PROBABILITIES = 5
"""Above that number, only this many of the most probable classes of each slice are stored."""

PERMUTATION_SEED = 0
"""Fixed, so that runs with the same predictions have the same p-values whatever their training seeds."""


@dataclass(frozen=True, kw_only=True)
class JsonRecord:
    """Base of the classes that are stored as a JSON file: ``result.json`` and ``combined.json``."""

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the file as plain dictionaries, lists, numbers and strings."""
        return json.loads(self.to_json())

    def to_json(self) -> str:
        """Return the text of the file; floats keep all digits."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Predictions of every method, one entry per test slice in every column, in the order of the index.

    Attributes:
        classes: Class names in label order.
        persons: Keyed hashes of patients, None if unknown.
        exams: Keyed hashes of exams, None if unknown.
        label_N: True classes, int64.
        predicted: Method to its predicted classes (N,), int64.
        probability_NC: Probabilities of the loss without its margin, fp64. Read from a file with more than
            :data:`MAX_LISTED_CLASSES` classes, all but the :data:`TOP_PROBABILITIES` highest are 0.
        neighbour_keys: Sample keys of the nearest neighbours by cosine, nearest first.
        cosine_NK: Their cosines, fp64.
    """

    classes: tuple[str, ...]
    keys: tuple[str, ...]
    persons: tuple[str | None, ...]
    exams: tuple[str | None, ...]
    label_N: Ints
    predicted: Mapping[str, Ints]
    probability_NC: Floats
    neighbour_keys: tuple[tuple[str, ...], ...]
    cosine_NK: Floats

    def __len__(self) -> int:
        return len(self.keys)

    def correct(self, method: str) -> np.ndarray:
        """Return which slices (N,) a method classifies correctly, bool.

        Raises:
            KeyError: There is no such method.
        """
        return self.predicted[method] == self.label_N

    def to_json(self) -> str:
        """Return the text of ``predictions.json``; floats keep all digits.

        Above :data:`MAX_LISTED_CLASSES` classes a row of ``probabilities`` holds the highest ones in descending order,
        and the column ``probable`` their classes.
        """
        columns = {
            "schema_version": PREDICTIONS_SCHEMA_VERSION,
            "classes": self.classes,
            "keys": self.keys,
            "persons": self.persons,
            "exams": self.exams,
            "labels": self.label_N.tolist(),
            "said": {method: labels.tolist() for method, labels in self.predicted.items()},
            **self._probability_columns(),
            "neighbours": self.neighbour_keys,
            "cosines": self.cosine_NK.tolist(),
        }
        return json.dumps(columns, allow_nan=False) + "\n"

    def _probability_columns(self) -> dict[str, list]:
        if len(self.classes) <= MAX_LISTED_CLASSES:
            return {"probabilities": self.probability_NC.tolist()}
        probable_NK = np.argsort(-self.probability_NC, axis=1, kind="stable")[:, :TOP_PROBABILITIES]
        highest_NK = np.take_along_axis(self.probability_NC, probable_NK, axis=1)
        return {"probabilities": highest_NK.tolist(), "probable": probable_NK.tolist()}


def read_predictions(path: Path) -> Predictions:
    """Read a run's ``predictions.json``.

    Raises:
        DataError: It is missing, damaged, or has another schema version.
    """
    try:
        return parse_predictions(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; run hsadml evaluate again") from error
    except DataError as error:
        raise DataError(f"{path}: {error}; run hsadml evaluate again") from error


def parse_predictions(text: str | bytes) -> Predictions:
    """Parse the text of :meth:`Predictions.to_json`.

    Raises:
        DataError: It is not JSON, has another schema version, or columns are missing or of different lengths.
    """
    try:
        values = parse_json(text)
        version = values["schema_version"]
        if version != PREDICTIONS_SCHEMA_VERSION:
            raise DataError(f"schema_version: {version!r} is not supported; allowed: {PREDICTIONS_SCHEMA_VERSION}")
        found = _from_columns(values)
    except INVALID as error:
        raise DataError(f"damaged or truncated ({type(error).__name__})") from error
    columns = (found.persons, found.exams, found.label_N, *found.predicted.values(), found.probability_NC)
    if any(len(column) != len(found) for column in (*columns, found.neighbour_keys, found.cosine_NK)):
        raise DataError("damaged: the columns differ in length")
    return found


def _from_columns(values: Mapping[str, Any]) -> Predictions:
    return Predictions(
        classes=tuple(values["classes"]),
        keys=tuple(values["keys"]),
        persons=tuple(values["persons"]),
        exams=tuple(values["exams"]),
        label_N=np.array(values["labels"], dtype=np.int64),
        predicted={method: np.array(labels, dtype=np.int64) for method, labels in values["said"].items()},
        probability_NC=_dense_probabilities(values),
        neighbour_keys=tuple(tuple(keys) for keys in values["neighbours"]),
        cosine_NK=np.array(values["cosines"], dtype=np.float64),
    )


def _dense_probabilities(values: Mapping[str, Any]) -> Floats:
    rows = np.array(values["probabilities"], dtype=np.float64)
    if "probable" not in values:
        return rows
    dense_NC = np.zeros((len(rows), len(values["classes"])))
    np.put_along_axis(dense_NC, np.array(values["probable"], dtype=np.int64), rows, axis=1)
    return dense_NC


@dataclass(frozen=True, kw_only=True)
class CheckpointRef:
    """The checkpoint whose weights were evaluated: its folder name, its last step, and the attempt that wrote it."""

    name: str
    step: int
    attempt: int


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """Bootstrap intervals of the metrics of :class:`Result` by patient; None for fewer than two.

    The balanced accuracy has one up to ``MAX_CONFUSION_CLASSES`` classes.

    Attributes:
        interval_unit: The resampled unit: ``person``, otherwise ``exam``, otherwise ``slice``.
        units: Number of such units in the test fold.
        level: Share of such intervals that contain the true value, approximately.
        method: Name of the method.
        caution: ``too_few_units`` if there are no intervals because of that, ``few_units`` if they are rough.
    """

    knn_accuracy: Interval | None
    balanced_accuracy: Interval | None
    head_accuracy: Interval | None
    raw_pixel_knn: Interval | None
    low_level_knn: Interval | None
    interval_unit: str
    units: int
    level: float
    method: str
    caution: Caution | None


@dataclass(frozen=True, kw_only=True)
class MethodMetrics:
    """Metrics of one method; ``interval`` is that of the accuracy by patient, None for fewer than two."""

    accuracy: float
    balanced_accuracy: float
    interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class ResultContext(JsonRecord):
    """Origin of a result: data, checkpoint and settings.

    Attributes:
        split_unit: Unit that is never split between folds: person, exam or (a leaky control) slice.
        source: Name of the source of the images, such as ``figshare``; None in results of older versions.
        label: ``class``, or ``person`` if each patient is a class and ``classes`` are keyed hashes.
        classes: Class names in label order.
        fold: The held-out fold that was evaluated.
        majority_class: Most frequent class of the gallery, of equally frequent ones the lowest; None if unknown.
        classes_without_gallery: Classes with test slices but no gallery slice: their nearest neighbours are incorrect.
        left_out: Slices of the fold that were not evaluated, of patients without slices in training; 0 unless patients
            are the classes.
        trained_slices: Slices of the fold whose images the run was trained on; above 0 the figures are not of unseen
            slices. None if unknown, as in results of older versions.
        trained_persons: Patients of the fold whom the run was trained on; expected where the folds share patients. None
            if unknown.
        trained_unknown: Codes of why such a number is unknown or, if it is above 0, only a lower bound; see
            :class:`~hsadml_dist.evaluation.trained_overlap.UnknownReason`.
        checkpoint: The evaluated weights.
        chosen_by: ``last step``, with a remark if its running average of weights was evaluated; no fold chooses.
        seed: Seed of the training.
        model: Name of the backbone.
        world_size: Number of ranks of the evaluation; does not affect the metrics.
        data_digest: SHA-256 of the shards' samples table, in hex.
        recipe: Settings that define the weights, section to key to value; no paths.
    """

    split_unit: str
    source: str | None = None
    label: str = "class"
    classes: tuple[str, ...]
    fold: int
    majority_class: str | None = None
    classes_without_gallery: tuple[str, ...] = ()
    left_out: int = 0
    trained_slices: int | None = None
    trained_persons: int | None = None
    trained_unknown: tuple[str, ...] = ()
    checkpoint: CheckpointRef
    chosen_by: str
    seed: int
    loss: str
    model: str
    world_size: int
    data_digest: str
    recipe: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Result(ResultContext):
    """Result of an evaluation on slices that training has not read.

    Attributes:
        persons: Patients in the test fold; None if unknown.
        slices: Slices in the test fold.
        reference_slices: Slices of the training folds, without augmentation: the gallery.
        shared_persons: Patients on both sides; above 0 the metrics are too optimistic. None if unknown.
        knn_accuracy: Share of test slices whose nearest gallery slice by cosine is of their class (k = 1).
        balanced_accuracy: The same averaged over the classes that have test slices.
        balanced_classes: Number of these classes.
        classes_without_test: The other classes.
        head_accuracy: Share of test slices that are nearest to the centre of their class.
        raw_pixel_knn: As ``knn_accuracy``, on 64 x 64 pixels instead of embeddings: a baseline without training.
        low_level_knn: The same on brightness and edge statistics: a baseline of acquisition effects.
        majority_accuracy: Share of test slices of ``majority_class``: a baseline that looks at no image.
        controls_not_exceeded: Baselines whose accuracy ``knn_accuracy`` does not exceed: ``raw_pixels``, ``low_level``,
            ``majority``.
        methods: Metrics of every method, by name.
        person_vote: Accuracy of the majority vote of each patient's slices (k = 1); None if patients are unknown.
        calibration: Calibration of the probabilities of the loss.
        confusion: Confusion matrix of the nearest neighbour: rows are true classes, columns predicted ones. None above
            ``MAX_CONFUSION_CLASSES`` classes.
        schema_version: Version of these fields.
    """

    persons: int | None
    slices: int
    reference_slices: int
    shared_persons: int | None
    knn_accuracy: float
    balanced_accuracy: float
    balanced_classes: int
    classes_without_test: tuple[str, ...]
    head_accuracy: float
    raw_pixel_knn: float
    low_level_knn: float
    majority_accuracy: float | None
    controls_not_exceeded: tuple[str, ...]
    methods: Mapping[str, MethodMetrics]
    person_vote: PatientVote | None
    calibration: Calibration
    geometry: Geometry
    intervals: Intervals
    confusion: tuple[tuple[int, ...], ...] | None
    confusions: ConfusionSummary
    schema_version: int = SCHEMA_VERSION
