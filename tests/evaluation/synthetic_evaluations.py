"""Synthetic evaluations: patients of different difficulty, under several splits and losses."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hsadml_dist.evaluation.pooling import EvaluatedRun
from hsadml_dist.evaluation.result import SCHEMA_VERSION, Predictions

CLASSES = ("glioma", "meningioma", "pituitary")
METHODS = ("knn", "knn_5", "head", "svm", "logistic_regression", "random_forest", "raw_pixels", "low_level")
SHIFT = {"knn_5": 0.1, "head": 0.15, "svm": 0.1, "logistic_regression": 0.1, "random_forest": -0.05}
BASELINES = {"raw_pixels": -1.0, "low_level": -0.7}


@dataclass(frozen=True, kw_only=True)
class Study:
    """Patients with their slices, the same for every split.

    Attributes:
        persons: Number of patients.
        folds: Number of folds.
        lead: Gain of each loss in the probability of a correct prediction, in logits.
        leak: Gain of every method under a split by slice, in logits.
        seed: Seed of the study.
    """

    persons: int = 40
    folds: int = 5
    lead: Mapping[str, float]
    leak: float = 1.5
    seed: int = 0

    def person_N(self) -> np.ndarray:
        """Return the patient of each slice."""
        sizes = np.random.default_rng(self.seed).integers(2, 12, self.persons)
        return np.repeat(np.arange(self.persons), sizes)

    def digest(self, unit: str) -> str:
        """Return a digest in place of that of the shards."""
        return hashlib.sha256(f"{unit} {self.seed} {self.persons}".encode()).hexdigest()

    def run(self, unit: str, loss: str, fold: int, seed: int = 0) -> EvaluatedRun:
        """Return the evaluation of one training."""
        person = self.person_N()
        mine = np.flatnonzero((person if unit == "person" else np.arange(len(person))) % self.folds == fold)
        label = person % len(CLASSES)
        predicted = {method: self._predict(unit, loss, method, seed, label)[mine] for method in METHODS}
        names = [hashlib.sha256(f"p{number}".encode()).hexdigest()[:16] for number in person[mine]]
        predictions = Predictions(
            classes=CLASSES,
            keys=tuple(hashlib.sha256(f"s{self.seed} {row}".encode()).hexdigest()[:32] for row in mine),
            persons=tuple(names),
            exams=tuple(names),
            label_N=label[mine],
            predicted=predicted,
            probability_NC=np.full((len(mine), 3), 1 / 3),
            neighbour_keys=tuple(() for _ in mine),
            cosine_NK=np.zeros((len(mine), 0)),
        )
        return EvaluatedRun(
            name=f"{unit}/{loss}/fold-{fold}" + (f"-seed-{seed}" if seed else ""),
            result=self._result(unit, loss, fold, seed, predictions),
            predictions=predictions,
            folds=tuple(range(self.folds)),
            settings={"loss.name": loss, "optim.lr": 0.01, "data.fold": fold},
        )

    def all(self, units: Mapping[str, int], seeds: int = 1) -> Iterator[EvaluatedRun]:
        """Yield all runs; ``units`` maps split units to the number of trained folds."""
        for unit, folds in units.items():
            for loss in self.lead:
                for fold in range(folds):
                    yield from (self.run(unit, loss, fold, seed) for seed in range(seeds))

    def _predict(self, unit: str, loss: str, method: str, seed: int, label: np.ndarray) -> np.ndarray:
        """Return each slice's predicted class: patients differ in difficulty, methods and seeds agree in part."""
        person = self.person_N()
        lasting = np.random.default_rng(self.seed + 1)
        hard = (lasting.normal(1.3, 1.2, self.persons)[person]) + lasting.normal(0, 0.8, len(person))
        learnt = BASELINES.get(method, SHIFT.get(method, 0.0) + self.lead[loss])
        # A baseline without training predicts the same for every loss and seed.
        own = f"{method} {unit}" if method in BASELINES else f"{method} {unit} {loss} {seed}"
        generator = np.random.default_rng(int(hashlib.sha256(own.encode()).hexdigest()[:8], 16))
        ease = hard + learnt + (self.leak if unit == "slice" else 0.0) + generator.normal(0, 0.7, self.persons)[person]
        correct = ease + generator.logistic(0, 0.5, len(person)) > 0
        return np.where(correct, label, (label + 1 + generator.integers(0, 2, len(label))) % 3)

    def _result(self, unit: str, loss: str, fold: int, seed: int, predictions: Predictions) -> dict[str, Any]:
        return {
            "split_unit": unit,
            "classes": list(CLASSES),
            "fold": fold,
            "checkpoint": {"name": "step-00000600.attempt-0001", "step": 600, "attempt": 1},
            "chosen_by": "last step",
            "seed": seed,
            "loss": loss,
            "schema_version": SCHEMA_VERSION,
            "model": "resnet_gn_small",
            "data_digest": self.digest(unit),
            "slices": len(predictions),
            "trained_slices": 0,
            "trained_persons": 0,
            "shared_persons": 0 if unit == "person" else len(set(predictions.persons)),
            "knn_accuracy": float(np.mean(predictions.correct("knn"))),
        }
