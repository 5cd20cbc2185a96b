"""Synthetic results and examples for the tests of the report, and a parser of pages."""

from __future__ import annotations

import math
from html.parser import HTMLParser
from typing import Any

import numpy as np

from hsadml_dist.report.neighbour_examples import ExampleImage, NeighbourExample
from hsadml_dist.report.sphere import SphereProjection, project_on_sphere

VOID = {"meta", "img", "br", "input", "hr"}
RECIPE = {"image_size": 112, "embedding_dim": 64, "loss": {"margin": 4, "scale": None}, "optimiser": "<adamw>"}
VERSIONS = {"Python": "3.11.7", "torch": "2.13.0"}

PLAIN = {
    "split_unit": "person",
    "fold": 2,
    "checkpoint": {"name": "step-00000600.attempt-0001", "step": 600, "attempt": 1},
    "chosen_by": "last step",
    "seed": 0,
    "loss": "sphereface",
    "model": "resnet_gn_small",
    "world_size": 2,
    "data_digest": "ab" * 32,
    "persons": 40,
    "reference_slices": 1633,
    "shared_persons": 0,
    "knn_accuracy": 0.8125,
    "balanced_accuracy": 0.7975,
    "head_accuracy": 0.8241,
    "raw_pixel_knn": 0.6882,
}
SPANS = {
    "knn_accuracy": [0.7311, 0.8833],
    "balanced_accuracy": [0.7012, 0.8714],
    "head_accuracy": [0.7402, 0.8912],
    "raw_pixel_knn": None,
    "interval_unit": "person",
    "units": 40,
    "level": 0.95,
    "method": "jackknife_t",
    "caution": None,
}


def result_of(classes: int = 3) -> dict[str, Any]:
    """Return a result of the first schema, without optional parts; class names need escaping."""
    return {
        **PLAIN,
        "classes": [f"<class {label}>" for label in range(classes)],
        "slices": 10 * classes,
        "intervals": dict(SPANS),
        "confusion": (8 * np.eye(classes, dtype=int) + 2 * np.eye(classes, k=1, dtype=int)).tolist(),
        "schema_version": 1,
    }


def full_result_of(classes: int = 3) -> dict[str, Any]:
    """Return a result with all optional parts."""
    return {
        **result_of(classes),
        "low_level_knn": 0.6517,
        "intervals": {**SPANS, "low_level_knn": [0.5512, 0.7231]},
        "methods": methods(),
        "person_vote": {"accuracy": 0.875, "persons": 40, "cases": 40, "ties": 2},
        "calibration": calibration(),
        "geometry": geometry(classes),
        "label": "class",
        "left_out": 0,
        "confusions": confusions(classes),
        "recipe": {
            "image_size": 112,
            "embedding_dim": 64,
            "loss": {"margin": 4, "scale": None},
            "optimiser": "<adamw>",
        },
        "schema_version": 2,
    }


def methods() -> dict[str, Any]:
    names = ("knn", "knn_5", "head", "svm", "random_forest", "naive_bayes", "new_method", "low_level", "raw_pixels")
    return {
        name: {"accuracy": 0.9 - place / 50, "balanced_accuracy": 0.89 - place / 50, "interval": [0.7, 0.95]}
        for place, name in enumerate(names)
    }


def calibration() -> dict[str, Any]:
    table = [
        {"low": 0.4, "high": 0.6, "count": 10, "confidence": 0.55, "accuracy": 0.6},
        {"low": 0.8, "high": 1.0, "count": 20, "confidence": 0.93, "accuracy": 0.9},
    ]
    return {
        "expected_calibration_error": 0.0367,
        "brier_score": 0.1234,
        "negative_log_likelihood": 0.4321,
        "bins": 5,
        "reliability": table,
    }


def confusions(classes: int) -> dict[str, Any]:
    worst = [{"label": label, "said": label + 1, "slices": 2} for label in range(classes - 1)][:20]
    return {"classes": classes, "all_right": 1, "none_right": 0, "pairs": classes - 1, "worst": worst}


def patients_result_of(patients: int = 300) -> dict[str, Any]:
    """Return a result whose classes are patients."""
    names = [f"{number:016x}" for number in range(patients)]
    changes = {"label": "person", "left_out": 2, "split_unit": "slice", "shared_persons": 40, "classes": names}
    return full_result_of(patients) | changes | {"confusion": None}


def geometry(classes: int) -> dict[str, Any]:
    one = {"slices": 10, "own_centre": 31.26, "other_centre": 84.47, "within": 40.18, "between": None}
    apart = np.full((classes, classes), 118.53) * (1 - np.eye(classes))
    own, other = np.zeros(90, dtype=int), np.zeros(90, dtype=int)
    own[12:18], other[40:46] = 5, 5
    return {
        "overall": one | {"slices": 10 * classes, "between": 86.33},
        "per_class": [dict(one) for _ in range(classes)],
        "paired": 10 * classes,
        "centre_angles": apart.tolist() if classes <= 256 else None,
        "spread": {
            "mean": 118.53,
            "most": 121.25,
            "neighbour": 117.75,
            "nearest": [{"first": 0, "second": place, "angle": 101.25 + place} for place in range(1, min(classes, 11))],
        },
        "energy": {"s0": -0.7265, "s1": 0.4834, "s2": 0.2337},
        "histogram": {"bin_degrees": 2, "own_centre": own.tolist(), "other_centre": other.tolist()},
    }


def sphere_of(classes: int = 3, slices: int = 60, dim: int = 8) -> SphereProjection:
    generator = np.random.default_rng(0)
    label_N = np.arange(slices) % classes
    return project_on_sphere(generator.normal(size=(slices, dim)), label_N, generator.normal(size=(classes, dim)))


def metrics_of(steps: int = 300) -> list[dict[str, Any]]:
    return [{"step": step, "attempt": 1 + (step > 100), "loss": 9 / step, "lr": 1e-3} for step in range(1, steps + 1)]


def cases_of(number: int = 3, side: int = 150) -> list[NeighbourExample]:
    generator = np.random.default_rng(1)

    def shot(caption: str, same_class: bool | None = None) -> ExampleImage:
        image_HW = generator.integers(0, 4000, (side, side)).astype(np.uint16)
        return ExampleImage(image_HW=image_HW, caption=caption, same_class=same_class)

    return [
        NeighbourExample(
            title=f"<glioma {at}>",
            query=shot("<query>"),
            neighbours=[shot(f"cosine {place / 10}", bool((at + place) % 2)) for place in range(4)],
            is_correct=at % 2 == 1,
        )
        for at in range(number)
    ]


def wilson(share: float, number: int, z: float = 1.959964) -> tuple[float, float]:
    """Return Wilson's interval by its definition: all shares within z standard errors of ``share``."""
    inside = [
        p / 100000 for p in range(100001) if abs(share - p / 1e5) <= z * math.sqrt(p / 1e5 * (1 - p / 1e5) / number)
    ]
    return inside[0], inside[-1]


class ParsedPage(HTMLParser):
    """The tags, words and table rows of a page; a tag that is closed in the wrong place fails."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> at line {self.getpos()[0]}"

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += " ".join(data.split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def row(self, *start: str) -> list[str]:
        """Return the one table row that begins with ``start``."""
        (found,) = [row for row in self.rows if tuple(row[: len(start)]) == start]
        return found

    @property
    def prose(self) -> str:
        """All text with single spaces."""
        return " ".join(" ".join(self.words).split())
