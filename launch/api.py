"""Public functions on whole runs: train, evaluate, and load a trained model."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsadml_dist.errors import DataError, ExitCode, RunError, UsageError
from hsadml_dist.jobs.prepare import prepare_run, require_run_folder
from hsadml_dist.launch.local import run_ranks
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.history import merged_events, merged_metrics

if TYPE_CHECKING:
    import numpy as np

    from hsadml_dist.evaluation.model_loading import Inference
    from hsadml_dist.evaluation.predict import Gallery, ImagePrediction


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A training that ended without an error.

    Attributes:
        stopped: True if a signal stopped it before its last step; training again with the same ``run`` resumes it.
    """

    run: Path
    stopped: bool

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One row per step: ``step``, ``attempt``, ``epoch``, ``loss``, ``lr``, ``grad_norm``, ``step_seconds``, ..."""
        return merged_metrics(self.run)

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """The contents of ``result.json``, None if the run has not been evaluated."""
        result = RunFolder(self.run).result
        return json.loads(result.read_text(encoding="utf-8")) if result.is_file() else None


def train(
    recipe: str | Path,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    run: str | Path | None = None,
    nproc: int = 1,
) -> TrainResult:
    """Train in processes of their own on this machine, or resume from the newest valid checkpoint of ``run``.

    Called from the main thread, it passes SIGTERM, SIGUSR2, SIGHUP and Ctrl-C on to the ranks, which save and stop.

    Args:
        recipe: A YAML file or the name of a shipped recipe, such as ``demo``.
        overrides: Settings that replace the recipe's: ``{"train.steps": 100}`` or ``["train.steps=100"]``.
        run: The run folder, new or existing; None means ``runs/RECIPE-FINGERPRINT``.
        nproc: Number of ranks; it must divide ``train.global_batch``.

    Raises:
        ConfigError: A setting is wrong, or would change an existing run.
        DataError: The shards are missing or damaged.
        UsageError: ``run`` is not a run folder, or ``nproc`` is below 1.
        RunError: A rank failed.
    """
    if nproc < 1:
        raise UsageError(f"nproc: {nproc} is not allowed; it must be at least 1")
    if isinstance(overrides, Mapping):
        overrides = [f"{key}={json.dumps(value, default=str)}" for key, value in overrides.items()]
    folder = prepare_run(str(recipe), overrides, None if run is None else Path(run), False, nproc)
    code = run_ranks(folder, nproc)
    if code not in (ExitCode.SUCCESS, ExitCode.STOPPED):
        reasons = [row["reason"] for row in merged_events(folder) if row["event"] == "failed"]
        reason = reasons[-1] if reasons else f"see {RunFolder(folder).attempts_root}/*/logs"
        raise RunError(f"{folder}: training failed with exit code {int(code)}: {reason}")
    return TrainResult(run=folder, stopped=code == ExitCode.STOPPED)


def evaluate(
    run: str | Path,
    *,
    shards: str | Path | None = None,
    fold: int | None = None,
    allow_trained: bool = False,
    class_map: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Evaluate a run on the fold that training has not read; return the contents of ``result.json``.

    Args:
        run: The run folder.
        shards: The shards, if they were moved since training, or other shards with the same classes.
        fold: Another held-out fold; None means the test fold of the run.
        allow_trained: Evaluate even slices and patients that the run was trained on; ``trained_slices`` and
            ``trained_persons`` count them.
        class_map: Class names of other shards to those of the run; without it they must be the same.

    Raises:
        CheckpointError: No checkpoint is valid.
        ConfigError: Training has read the fold.
        DataError: The shards cannot be read, or have other classes.
        TrainedDataError: The run was trained on slices or patients of the fold.
        UsageError: ``run`` is not a run folder.
    """
    folder = require_run_folder(Path(run))
    from hsadml_dist.report.run_report import evaluate_and_report

    return evaluate_and_report(folder, shards, fold, allow_trained=allow_trained, class_map=class_map).result


def load(run: str | Path, *, shards: str | Path | None = None) -> Model:
    """Load the newest valid checkpoint of a run for inference.

    Args:
        run: The run folder.
        shards: The shards of the run, if they were moved since training.

    Raises:
        CheckpointError: No checkpoint is valid.
        DataError: The shards cannot be read, or are not those of the training.
        UsageError: ``run`` is not a run folder.
    """
    folder = require_run_folder(Path(run))
    from hsadml_dist.evaluation.model_loading import open_inference

    return Model(open_inference(folder), None if shards is None else str(shards))


class Model:
    """A trained network with its class centres and its gallery of training slices.

    Images are paths of PNG, JPEG or TIFF files, or arrays (H, W) of an integer or float dtype; both are scaled to what
    a build of the run's shards would store.
    """

    def __init__(self, inference: Inference, shards: str | None) -> None:
        self._inference, self._shards = inference, shards

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of their labels."""
        return self._index.classes

    def embed(self, images: Iterable[str | Path | np.ndarray]) -> np.ndarray:
        """Return embeddings (N, D), fp32, not normalised.

        Raises:
            DataError: An image cannot be read.
        """
        return self._inference.embed(self._scale(images)).emb_ND.float().cpu().numpy()

    def predict(self, images: Iterable[str | Path | np.ndarray]) -> list[ImagePrediction]:
        """Return class, probabilities, nearest training slices and warnings of each image.

        The first call embeds the training slices and stores them in the run folder.

        Raises:
            DataError: An image cannot be read, or the shards of the run cannot.
        """
        from hsadml_dist.evaluation.predict import predict_images

        return predict_images(self._inference, self._gallery, self._scale(images))

    @functools.cached_property
    def _index(self) -> Any:
        from hsadml_dist.evaluation.model_loading import open_training_shards

        return open_training_shards(self._inference, self._shards)[1]

    @functools.cached_property
    def _gallery(self) -> Gallery:
        from hsadml_dist.evaluation.predict import load_gallery

        return load_gallery(self._inference, self._shards, lambda line: None, lambda done, total: None)

    def _scale(self, images: Iterable[str | Path | np.ndarray]) -> list[np.ndarray]:
        from hsadml_dist.launch.input_images import read_input_image, scale_input_array

        size = self._index.size

        def scale(image: str | Path | np.ndarray) -> np.ndarray:
            if not isinstance(image, (str, Path)):
                return scale_input_array(image, size)
            try:
                return read_input_image(Path(image), size).pixels
            except DataError as error:
                raise DataError(f"{image}: {error}") from error

        return [scale(image) for image in images]
