"""What each method says of each test slice: ``predictions.json``, from which runs are compared and pooled.

Shapes: N test slices, C classes, K neighbours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hsadml_dist.errors import DataError
from hsadml_dist.evaluation.metrics import Floats, Ints

SCHEMA_VERSION = 1
PREDICTIONS_NAME = "predictions.json"
NEIGHBOURS = 5
"""Neighbours that are kept by name."""

MAX_LISTED_CLASSES = 32
"""Classes up to which the file holds every probability; of more, those of each slice's most probable classes."""
TOP_PROBABILITIES = 5

KNN = "knn"
HEAD = "head"
RAW_PIXELS = "raw_pixels"
LOW_LEVEL = "low_level"
VOTES = (5, 11, 21)
"""Numbers of neighbours that vote, beside the one nearest: method ``knn_5`` and so on."""
CONTROLS = (RAW_PIXELS, LOW_LEVEL)
"""Methods that learn nothing: every other figure stands beside them."""


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """One entry a test slice in every column, in the order of the index.

    Attributes:
        classes: Class names in the order of their labels.
        keys: Sample keys.
        persons: Keyed hashes of persons, None where a slice names none.
        exams: Keyed hashes of exams, None where a slice names none.
        label_N: True classes, int64.
        predicted: Method to its predicted classes (N,), int64.
        probability_NC: Softmax over the scaled cosines to the class centres, fp64. Read from a file on more than
            :data:`MAX_LISTED_CLASSES` classes, it is 0 but for each slice's :data:`TOP_PROBABILITIES` most probable ones.
        neighbour_keys: Keys of the nearest references by cosine, nearest first.
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
        """Return which slices (N,) a method has right, bool.

        Raises:
            KeyError: No such method.
        """
        return self.predicted[method] == self.label_N

    def to_json(self) -> str:
        """Return the text of ``predictions.json``; floats keep all their digits.

        Above :data:`MAX_LISTED_CLASSES` classes a row of ``probabilities`` holds the highest ones, the highest first, and the
        column ``probable`` their classes.
        """
        columns = {
            "schema_version": SCHEMA_VERSION,
            "classes": self.classes,
            "keys": self.keys,
            "persons": self.persons,
            "exams": self.exams,
            "labels": self.label_N.tolist(),
            "said": {method: labels.tolist() for method, labels in self.predicted.items()},
            **self._probabilities(),
            "neighbours": self.neighbour_keys,
            "cosines": self.cosine_NK.tolist(),
        }
        return json.dumps(columns, allow_nan=False) + "\n"

    def _probabilities(self) -> dict[str, list]:
        if len(self.classes) <= MAX_LISTED_CLASSES:
            return {"probabilities": self.probability_NC.tolist()}
        probable_NK = np.argsort(-self.probability_NC, axis=1, kind="stable")[:, :TOP_PROBABILITIES]
        highest_NK = np.take_along_axis(self.probability_NC, probable_NK, axis=1)
        return {"probabilities": highest_NK.tolist(), "probable": probable_NK.tolist()}


def read(path: Path) -> Predictions:
    """Read a run's ``predictions.json``.

    Raises:
        DataError: It is missing, damaged, or of another schema version.
    """
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; judge the run anew by hsadml evaluate") from error
    except DataError as error:
        raise DataError(f"{path}: {error}; judge the run anew by hsadml evaluate") from error


def parse(text: str | bytes) -> Predictions:
    """Read what :meth:`Predictions.to_json` wrote.

    Raises:
        DataError: Not JSON, of another schema version, or columns that are missing or of different lengths.
    """
    try:
        values = json.loads(text)
        version = values["schema_version"]
        if version != SCHEMA_VERSION:
            raise DataError(f"{PREDICTIONS_NAME} has schema_version {version!r}: this version reads {SCHEMA_VERSION}")
        found = _parsed(values)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise DataError(f"{PREDICTIONS_NAME} is damaged or cut short ({type(error).__name__})") from error
    columns = (found.persons, found.exams, found.label_N, *found.predicted.values(), found.probability_NC)
    if any(len(column) != len(found) for column in (*columns, found.neighbour_keys, found.cosine_NK)):
        raise DataError(f"{PREDICTIONS_NAME} is damaged: its columns differ in length")
    return found


def _parsed(values: Mapping[str, list]) -> Predictions:
    said: Mapping[str, list[int]] = values["said"]  # type: ignore[assignment]
    return Predictions(
        classes=tuple(values["classes"]),
        keys=tuple(values["keys"]),
        persons=tuple(values["persons"]),
        exams=tuple(values["exams"]),
        label_N=np.array(values["labels"], dtype=np.int64),
        predicted={method: np.array(labels, dtype=np.int64) for method, labels in said.items()},
        probability_NC=_whole_rows(values),
        neighbour_keys=tuple(tuple(keys) for keys in values["neighbours"]),
        cosine_NK=np.array(values["cosines"], dtype=np.float64),
    )


def _whole_rows(values: Mapping[str, list]) -> Floats:
    rows = np.array(values["probabilities"], dtype=np.float64)
    if "probable" not in values:
        return rows
    whole_NC = np.zeros((len(rows), len(values["classes"])))
    np.put_along_axis(whole_NC, np.array(values["probable"], dtype=np.int64), rows, axis=1)
    return whole_NC
