"""The verdict on a run as a value, and as ``result.json``.

Shapes: N test slices, C classes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hsadml_dist.errors import DataError
from hsadml_dist.evaluation import scores
from hsadml_dist.evaluation.scores import Interval, Ints

SCHEMA_VERSION = 1
RESULT_NAME = "result.json"
INTERVAL_SEED = 0
"""Fixed, so that two runs with the same predictions have the same intervals whatever their training seeds."""


MOST_CONFUSED = 256
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

    The balanced accuracy has one up to :data:`MOST_CONFUSED` classes.

    Attributes:
        knn_accuracy: See :class:`Result`.
        balanced_accuracy: See :class:`Result`.
        head_accuracy: See :class:`Result`.
        raw_pixel_knn: See :class:`Result`.
        interval_unit: What was drawn again as a whole: ``person``, else ``exam``, else ``slice``.
        units: How many of them the test fold holds.
        level: Share of the bootstrap distribution inside.
        resamples: Number of bootstrap samples.
    """

    knn_accuracy: Interval | None
    balanced_accuracy: Interval | None
    head_accuracy: Interval | None
    raw_pixel_knn: Interval | None
    interval_unit: str
    units: int
    level: float
    resamples: int


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a result says about where it comes from, beside the figures.

    Attributes:
        split_unit: What no two folds share: person, exam or (a leaky control) slice.
        classes: Class names in the order of their labels.
        fold: The fold that was held out and judged.
        checkpoint: The weights that were judged.
        chosen_by: ``last step``, or ``validation fold`` where the weights were chosen on one.
        seed: Seed of the training.
        loss: Name of the loss.
        model: Name of the backbone.
        world_size: Number of ranks that judged; the figures do not depend on it.
        data_digest: SHA-256 of the shards' samples table, in hex.
    """

    split_unit: str
    classes: tuple[str, ...]
    fold: int
    checkpoint: CheckpointRef
    chosen_by: str
    seed: int
    loss: str
    model: str
    world_size: int
    data_digest: str


@dataclass(frozen=True, kw_only=True)
class Result(Setting):
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
        intervals: See :class:`Intervals`.
        confusion: Counts of the nearest neighbour's classes: a row a true class, a column a predicted one. None
            above :data:`MOST_CONFUSED` classes.
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
    intervals: Intervals
    confusion: tuple[tuple[int, ...], ...] | None
    schema_version: int = SCHEMA_VERSION

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries, lists, numbers and texts, as they stand in ``result.json``."""
        return json.loads(self.to_json())

    def to_json(self) -> str:
        """Return the text of ``result.json``; floats keep all their digits."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Result:
        """Read what :meth:`to_json` wrote.

        Raises:
            DataError: Not JSON, or of another schema version.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise DataError(f"{RESULT_NAME} is damaged or cut short: {error}") from error
        version = values.get("schema_version") if isinstance(values, dict) else None
        if version != SCHEMA_VERSION:
            raise DataError(f"{RESULT_NAME} has schema_version {version!r}: this version reads {SCHEMA_VERSION}")
        values["classes"] = tuple(values["classes"])
        values["checkpoint"] = CheckpointRef(**values["checkpoint"])
        if values["confusion"] is not None:
            values["confusion"] = tuple(tuple(row) for row in values["confusion"])
        spans: dict[str, Any] = {
            name: tuple(span) if isinstance(span, list) else span for name, span in values["intervals"].items()
        }
        return cls(**{**values, "intervals": Intervals(**spans)})


@dataclass(frozen=True, kw_only=True)
class People:
    """Whose slices they are: one entry a slice, None where the data name nobody."""

    persons: Sequence[str | None]
    exams: Sequence[str | None]

    def distinct_persons(self) -> frozenset[str] | None:
        """Return the persons, or None where a slice names none."""
        if not self.persons or any(person is None for person in self.persons):
            return None
        return frozenset(person for person in self.persons if person is not None)


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The true class of each test slice and what each method says, int64 arrays (N,)."""

    label_N: Ints
    knn_N: Ints
    head_N: Ints
    pixel_N: Ints


def judge(setting: Setting, said: Predictions, *, test: People, references: People, resamples: int) -> Result:
    """Return the verdict: figures, confusion and intervals, from what each method says of each test slice."""
    persons, known = test.distinct_persons(), references.distinct_persons()
    return Result(
        **{field.name: getattr(setting, field.name) for field in dataclasses.fields(Setting)},
        persons=None if persons is None else len(persons),
        slices=len(said.label_N),
        reference_slices=len(references.persons),
        shared_persons=None if persons is None or known is None else len(persons & known),
        knn_accuracy=scores.accuracy(said.knn_N == said.label_N),
        balanced_accuracy=scores.balanced_accuracy(said.knn_N == said.label_N, said.label_N),
        head_accuracy=scores.accuracy(said.head_N == said.label_N),
        raw_pixel_knn=scores.accuracy(said.pixel_N == said.label_N),
        intervals=_intervals(said, test, len(setting.classes), resamples),
        confusion=_confusion(said, len(setting.classes)),
    )


def _confusion(said: Predictions, classes: int) -> tuple[tuple[int, ...], ...] | None:
    if classes > MOST_CONFUSED:
        return None
    return tuple(tuple(row) for row in scores.confusion(said.label_N, said.knn_N, classes).tolist())


def _intervals(said: Predictions, test: People, classes: int, resamples: int) -> Intervals:
    of = scores.clusters(test.persons, test.exams)

    def span(tally_NK: scores.Floats, statistic: scores.Statistic) -> Interval | None:
        return scores.person_interval(tally_NK, of, statistic, resamples=resamples, seed=INTERVAL_SEED)

    def plain(predicted_N: Ints) -> Interval | None:
        return span(scores.accuracy_tally(predicted_N == said.label_N), scores.share)

    def balanced(predicted_N: Ints) -> Interval | None:
        if classes > MOST_CONFUSED:
            return None
        return span(scores.class_tally(predicted_N == said.label_N, said.label_N, classes), scores.mean_share)

    return Intervals(
        knn_accuracy=plain(said.knn_N),
        balanced_accuracy=balanced(said.knn_N),
        head_accuracy=plain(said.head_N),
        raw_pixel_knn=plain(said.pixel_N),
        interval_unit=of.unit,
        units=of.count,
        level=scores.LEVEL,
        resamples=resamples,
    )
