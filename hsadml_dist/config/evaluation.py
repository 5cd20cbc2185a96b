"""Settings of the verdict."""

from __future__ import annotations

from dataclasses import dataclass

from hsadml_dist.config.keys import setting


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How embeddings are judged.

    Attributes:
        at_end: Whether the run judges itself after its last step.
        batch: Images embedded at a time.
        block: References compared at a time.
        classifiers: Whether scikit-learn's classifiers are fitted on the embeddings too.
        resamples: Bootstrap samples of persons behind each interval.
    """

    at_end: bool = setting(True, on_resume="movable")
    batch: int = setting(64, on_resume="movable", ge=1)
    block: int = setting(8192, on_resume="movable", ge=1)
    classifiers: bool = setting(True, on_resume="movable")
    resamples: int = setting(2000, on_resume="movable", ge=100)
