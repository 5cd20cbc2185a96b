"""The verdict on a run as a value, and as ``result.json``.

Shapes: N test slices, C classes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hsadml_dist.evaluation import metrics as scores
from hsadml_dist.evaluation.calibration import Calibration, calibration
from hsadml_dist.evaluation.geometry import Geometry
from hsadml_dist.evaluation.metrics import Clusters, ConfusionSummary, Interval, confusions
from hsadml_dist.evaluation.patient_metrics import PatientVote, person_vote
from hsadml_dist.evaluation.predictions import HEAD, KNN, LOW_LEVEL, RAW_PIXELS, Predictions

SCHEMA_VERSION = 2
RESULT_NAME = "result.json"
BOOTSTRAP_SEED = 0
"""Fixed, so that two runs with the same predictions have the same intervals whatever their training seeds."""


MAX_CONFUSION_CLASSES = 256
"""Classes up to which a result holds what grows with their square: 256 are half a megabyte of ``result.json``."""


@dataclass(frozen=True, kw_only=True)
class CheckpointRef:
    """The weights that were judged.

    Attributes:
        name: The checkpoint's folder name.
        step: The training step after which they were taken.
        attempt: The attempt that wrote them.
    """

    name: str
    step: int
    attempt: int


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """Intervals of the figures by whole persons; None where there are fewer than two.

    The balanced accuracy has one up to :data:`MAX_CONFUSION_CLASSES` classes.

    Attributes:
        knn_accuracy: See :class:`Result`.
        balanced_accuracy: See :class:`Result`.
        head_accuracy: See :class:`Result`.
        raw_pixel_knn: See :class:`Result`.
        low_level_knn: See :class:`Result`.
        interval_unit: What was drawn again as a whole: ``person``, else ``exam``, else ``slice``.
        units: How many of them the test fold holds.
        level: Share of the bootstrap distribution inside.
        resamples: Number of bootstrap samples.
    """

    knn_accuracy: Interval | None
    balanced_accuracy: Interval | None
    head_accuracy: Interval | None
    raw_pixel_knn: Interval | None
    low_level_knn: Interval | None
    interval_unit: str
    units: int
    level: float
    resamples: int


@dataclass(frozen=True, kw_only=True)
class MethodMetrics:
    """How well one method does.

    Attributes:
        accuracy: Share of test slices that it has right.
        balanced_accuracy: The same, averaged over classes in place of slices.
        interval: Of the accuracy, by whole persons; None where there are fewer than two.
    """

    accuracy: float
    balanced_accuracy: float
    interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class ResultContext:
    """What a result says about where it comes from, beside the figures.

    Attributes:
        split_unit: What no two folds share: person, exam or (a leaky control) slice.
        label: What a class is: ``class``, or ``person``, where each person is one and ``classes`` are keyed hashes.
        classes: Class names in the order of their labels.
        fold: The fold that was held out and judged.
        left_out: Slices of the fold that were not judged, of persons whom training does not know; 0 where a class is
            no person.
        checkpoint: The weights that were judged.
        chosen_by: ``last step``, with a word on the running average where it is judged in their place; or
            ``validation fold`` where the weights were chosen on one.
        seed: Seed of the training.
        loss: Name of the loss.
        model: Name of the backbone.
        world_size: Number of ranks that judged; the figures do not depend on it.
        data_digest: SHA-256 of the shards' samples table, in hex.
        recipe: The settings that made the weights, section to key to value; no paths.
    """

    split_unit: str
    label: str = "class"
    classes: tuple[str, ...]
    fold: int
    left_out: int = 0
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
    """How well a run's embeddings separate the classes of slices that it has not seen.

    Attributes:
        persons: Persons in the test fold; None where the data name none.
        slices: Slices in the test fold.
        reference_slices: Slices of the training folds, without augmentation: where neighbours are looked for.
        shared_persons: Persons on both sides; above 0 the figures are flattered. None where the data name none.
        knn_accuracy: Share of test slices whose nearest reference by cosine is of their class (k = 1).
        balanced_accuracy: The same, averaged over classes in place of slices.
        head_accuracy: Share of test slices that lie nearest to their own class's centre.
        raw_pixel_knn: As ``knn_accuracy`` on 64 x 64 pixels in place of embeddings: the control, without learning.
        low_level_knn: The same on brightness and edge statistics: what the scanner's habits alone tell.
        methods: The figures of every method, by its name.
        person_vote: How many persons the majority of their slices has right (k = 1); None where persons are unknown.
        calibration: Whether the loss's own probabilities mean what they say.
        geometry: How the classes lie on the sphere.
        intervals: See :class:`Intervals`.
        confusion: Counts of the nearest neighbour's classes: a row a true class, a column a predicted one. None
            above :data:`MAX_CONFUSION_CLASSES` classes.
        confusions: The same in a few figures: how many classes come out well, and the pairs mixed up most.
        schema_version: Version of these fields.
    """

    persons: int | None
    slices: int
    reference_slices: int
    shared_persons: int | None
    knn_accuracy: float
    balanced_accuracy: float
    head_accuracy: float
    raw_pixel_knn: float
    low_level_knn: float
    methods: Mapping[str, MethodMetrics]
    person_vote: PatientVote | None
    calibration: Calibration
    geometry: Geometry
    intervals: Intervals
    confusion: tuple[tuple[int, ...], ...] | None
    confusions: ConfusionSummary
    schema_version: int = SCHEMA_VERSION

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries, lists, numbers and texts, as they stand in ``result.json``."""
        return json.loads(self.to_json())

    def to_json(self) -> str:
        """Return the text of ``result.json``; floats keep all their digits."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"


@dataclass(frozen=True, kw_only=True)
class PatientIds:
    """Whose slices they are: one entry a slice, None where the data name nobody."""

    persons: Sequence[str | None]
    exams: Sequence[str | None]

    def distinct_persons(self) -> frozenset[str] | None:
        """Return the persons, or None where a slice names none."""
        if not self.persons or any(person is None for person in self.persons):
            return None
        return frozenset(person for person in self.persons if person is not None)


def judge(
    setting: ResultContext, predictions: Predictions, geometry: Geometry, *, references: PatientIds, resamples: int
) -> Result:
    """Return the verdict: figures, confusion and intervals, from what each method says of each test slice."""
    test = PatientIds(persons=predictions.persons, exams=predictions.exams)
    persons, known = test.distinct_persons(), references.distinct_persons()
    of = scores.clusters(test.persons, test.exams)
    methods = {name: _figures(predictions, name, of, resamples) for name in predictions.predicted}
    return Result(
        **{field.name: getattr(setting, field.name) for field in dataclasses.fields(ResultContext)},
        persons=None if persons is None else len(persons),
        slices=len(predictions),
        reference_slices=len(references.persons),
        shared_persons=None if persons is None or known is None else len(persons & known),
        knn_accuracy=methods[KNN].accuracy,
        balanced_accuracy=methods[KNN].balanced_accuracy,
        head_accuracy=methods[HEAD].accuracy,
        raw_pixel_knn=methods[RAW_PIXELS].accuracy,
        low_level_knn=methods[LOW_LEVEL].accuracy,
        methods=methods,
        person_vote=person_vote(predictions.predicted[KNN], predictions.label_N, predictions.persons),
        calibration=calibration(predictions.probability_NC, predictions.label_N),
        geometry=geometry,
        intervals=_intervals(predictions, methods, of, resamples),
        confusion=_confusion(predictions),
        confusions=confusions(predictions.label_N, predictions.predicted[KNN]),
    )


def _confusion(predictions: Predictions) -> tuple[tuple[int, ...], ...] | None:
    classes = len(predictions.classes)
    if classes > MAX_CONFUSION_CLASSES:
        return None
    return tuple(
        tuple(row) for row in scores.confusion(predictions.label_N, predictions.predicted[KNN], classes).tolist()
    )


def _figures(predictions: Predictions, method: str, of: Clusters, resamples: int) -> MethodMetrics:
    correct = predictions.correct(method)
    tally = scores.accuracy_tally(correct)
    return MethodMetrics(
        accuracy=scores.accuracy(correct),
        balanced_accuracy=scores.balanced_accuracy(correct, predictions.label_N),
        interval=scores.bootstrap_interval(tally, of, scores.share, resamples=resamples, seed=BOOTSTRAP_SEED),
    )


def _intervals(
    predictions: Predictions, methods: Mapping[str, MethodMetrics], of: Clusters, resamples: int
) -> Intervals:
    return Intervals(
        knn_accuracy=methods[KNN].interval,
        balanced_accuracy=_balanced_interval(predictions, of, resamples),
        head_accuracy=methods[HEAD].interval,
        raw_pixel_knn=methods[RAW_PIXELS].interval,
        low_level_knn=methods[LOW_LEVEL].interval,
        interval_unit=of.unit,
        units=of.count,
        level=scores.LEVEL,
        resamples=resamples,
    )


def _balanced_interval(predictions: Predictions, of: Clusters, resamples: int) -> Interval | None:
    classes = len(predictions.classes)
    if classes > MAX_CONFUSION_CLASSES:
        return None
    tally = scores.class_tally(predictions.correct(KNN), predictions.label_N, classes)
    return scores.bootstrap_interval(tally, of, scores.mean_share, resamples=resamples, seed=BOOTSTRAP_SEED)
