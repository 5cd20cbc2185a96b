"""Which test slices a report shows beside their nearest training slices."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from hsadml_dist.data.index import ShardIndex
from hsadml_dist.evaluation.predictions import KNN, Predictions

if TYPE_CHECKING:
    from hsadml_dist.report.neighbour_examples import ExampleImage, NeighbourExample

MAX_CORRECT = 3
MAX_INCORRECT = 5


def choose_examples(
    predictions: Predictions, *, most_right: int = MAX_CORRECT, most_wrong: int = MAX_INCORRECT
) -> tuple[int, ...]:
    """Return the places of some slices that the nearest neighbour has right, then of some that it has wrong.

    Right ones: of each class the slice in the middle by cosine to its nearest reference: neither the best nor the
    worst. Wrong ones: those nearest to a reference of another class, the plainest errors first, one a person.
    """
    right = predictions.correct(KNN)
    middles = [_middle(predictions, label, right) for label in range(len(predictions.classes))]
    shown = [place for place in middles if place is not None][:most_right]
    nearest_first = sorted(np.flatnonzero(~right).tolist(), key=lambda place: (-predictions.cosine_NK[place, 0], place))
    seen: set[str | None] = set()
    wrong: list[int] = []
    for place in nearest_first:
        person = predictions.persons[place]
        if person is None or person not in seen:
            wrong.append(place)
        seen.add(person)
    return (*shown, *wrong[:most_wrong])


def _middle(predictions: Predictions, label: int, right: np.ndarray) -> int | None:
    places = np.flatnonzero(right & (predictions.label_N == label)).tolist()
    places.sort(key=lambda place: (predictions.cosine_NK[place, 0], place))
    return places[len(places) // 2] if places else None


def cases(predictions: Predictions, index: ShardIndex, image_at: Callable[[int], np.ndarray]) -> list[NeighbourExample]:
    """Return the chosen slices with pictures and words.

    Args:
        predictions: What is said of the test slices.
        index: Where they and their neighbours are.
        image_at: Reads the image (height, width) at a position of the index.
    """
    from hsadml_dist.report.neighbour_examples import ExampleImage, NeighbourExample

    position = {row.key: place for place, row in enumerate(index.samples)}

    def shot(key: str, said: str, label: int | None) -> ExampleImage:
        place = position[key]
        own = index.samples[place].label
        alike = None if label is None else own == label
        return ExampleImage(image_HW=image_at(place), caption=index.classes[own] + said, same_class=alike)

    def case(place: int) -> NeighbourExample:
        label, said = int(predictions.label_N[place]), int(predictions.predicted[KNN][place])
        near = zip(predictions.neighbour_keys[place], predictions.cosine_NK[place], strict=True)
        name, taken = index.classes[label], index.classes[said]
        return NeighbourExample(
            title=f"{name}, found right" if said == label else f"{name}, taken for {taken}",
            query=shot(predictions.keys[place], "", None),
            neighbours=[shot(key, f", cosine {cosine:.3f}", label) for key, cosine in near],
            is_correct=said == label,
        )

    return [case(place) for place in choose_examples(predictions)]
