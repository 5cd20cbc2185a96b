"""What a run says of images that it has never seen.

Shapes: N images, C classes, K neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hsadml_dist.evaluation.classifiers import class_probabilities
from hsadml_dist.evaluation.gallery import Gallery
from hsadml_dist.evaluation.knn import nearest
from hsadml_dist.evaluation.model_loading import Image, Inference
from hsadml_dist.model_factory import loss_scale

NEIGHBOURS = 3
FAR = "far from all training cases"
SAME = 1e-5
"""Distance, of both kinds, below which an image is a training case itself: fp32 rounds a cosine to 1e-7."""


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A training case near an image: its sample key, its class, and the cosine between the two embeddings."""

    key: str
    class_name: str
    cosine: float


@dataclass(frozen=True, kw_only=True)
class ImagePrediction:
    """What is said of one image.

    Attributes:
        class_name: The class whose centre is nearest.
        probabilities: Each class's, in the order of the labels: the softmax of the scaled cosines to the centres.
        neighbours: The nearest training cases, nearest first.
        far_by: By what it is far from all training cases: ``embedding``, ``look``, both or nothing.
        is_training_case: Whether embedding and look are those of a training case.
    """

    class_name: str
    probabilities: tuple[float, ...]
    neighbours: tuple[Neighbour, ...]
    far_by: tuple[str, ...]
    is_training_case: bool

    @property
    def probability(self) -> float:
        """The probability of the class that is said."""
        return max(self.probabilities)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader should know before the class."""
        found = [f"{FAR} (by {' and '.join(self.far_by)}): the class means nothing"] if self.far_by else []
        first = self.neighbours[0].class_name
        if not self.far_by and first != self.class_name:
            found.append(f"its nearest training case is of class {first}")
        if self.is_training_case:
            found.append("it is one of the training cases: this says nothing of how well new images are told")
        return tuple(found)


def predict_images(inference: Inference, references: Gallery, images: Sequence[Image]) -> list[ImagePrediction]:
    """Return what the run says of each image.

    Args:
        inference: The run.
        references: Its training cases.
        images: (references.size, references.size), uint16: scaled as the shards' images were.

    Raises:
        DataError: An embedding is not finite: the model has diverged.
    """
    found, block = inference.embedded(images), inference.recipe.evaluation.block
    classes = references.table.classes
    emb_ND = found.emb_ND.float().cpu()
    known_ND = torch.from_numpy(references.table.emb_ND)
    cosine_NK, place_NK = nearest(emb_ND, known_ND, k=min(NEIGHBOURS, len(known_ND)), block=block)
    scale = loss_scale(inference.recipe.loss)
    probability_NC = class_probabilities(found.emb_ND, inference.weights.centre_CD, scale).cpu()
    look_N = references.looks.distance(found.thumbnail_NP.cpu().numpy())
    return [
        ImagePrediction(
            class_name=classes[int(probability_C.argmax())],
            probabilities=tuple(probability_C.tolist()),
            neighbours=tuple(_neighbour(references, *pair) for pair in zip(places, cosines, strict=True)),
            far_by=_far_by(references, 1 - cosines[0], float(look)),
            is_training_case=max(1 - cosines[0], float(look)) < SAME,
        )
        for probability_C, places, cosines, look in zip(
            probability_NC, place_NK.tolist(), cosine_NK.tolist(), look_N, strict=True
        )
    ]


def _neighbour(references: Gallery, place: int, cosine: float) -> Neighbour:
    table = references.table
    return Neighbour(key=table.keys[place], class_name=table.classes[int(table.label_N[place])], cosine=cosine)


def _far_by(references: Gallery, distance: float, look: float) -> tuple[str, ...]:
    pairs = (
        ("embedding", distance, references.embedding_threshold),
        ("look", look, references.look_threshold),
    )
    return tuple(name for name, found, most in pairs if found > most)
