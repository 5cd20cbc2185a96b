"""Evaluate a run on slices that training has not read, at the end of a training or later from the run folder.

Shapes: N test slices of all ranks, D components, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hsadml_dist import atomic
from hsadml_dist.checkpoint.layout import CheckpointName, lineage, list_checkpoints, read_parents
from hsadml_dist.config import Recipe
from hsadml_dist.data.index import PERSON, ShardIndex
from hsadml_dist.data.shard_cache import eval_shard_location
from hsadml_dist.distributed.comm import Comm, SoloComm
from hsadml_dist.errors import CheckpointError, ConfigError, Fault
from hsadml_dist.evaluation import metrics
from hsadml_dist.evaluation.class_names import ClassMap
from hsadml_dist.evaluation.classifiers import MethodPredictions, class_probabilities, predict_all
from hsadml_dist.evaluation.embed import Embeddings, EvaluationSplit, embed, make_split, rank_positions, slice_batches
from hsadml_dist.evaluation.geometry import Geometry, geometry
from hsadml_dist.evaluation.intervals import (
    LEVEL,
    MAX_CONFUSION_CLASSES,
    METHOD,
    accuracy_interval,
    balanced_interval,
    interval_caution,
)
from hsadml_dist.evaluation.metrics import Floats, Ints
from hsadml_dist.evaluation.model_loading import Weights, checkpoint_ref, chosen_by, open_inference, open_shards
from hsadml_dist.evaluation.patient_metrics import Clusters, PatientIds, clusters, patient_vote
from hsadml_dist.evaluation.result import (
    HEAD,
    KNN,
    LOW_LEVEL,
    MAJORITY,
    RAW_PIXELS,
    STORED_NEIGHBOURS,
    CheckpointRef,
    Intervals,
    MethodMetrics,
    Predictions,
    Result,
    ResultContext,
)
from hsadml_dist.evaluation.trained_overlap import (
    Progress,
    TrainedOverlap,
    find_overlap,
    find_own_overlap,
    refuse_trained,
)
from hsadml_dist.evaluation.training_lineage import OpenedShards
from hsadml_dist.losses.margins import MarginLoss
from hsadml_dist.model_factory import build_margin_loss
from hsadml_dist.run.folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """An evaluated run.

    Attributes:
        emb_ND: Embeddings of the test slices, fp64, not normalised.
        centre_CD: Class centres, fp64, not normalised.
        stored: True if ``result.json`` and ``predictions.json`` in the run folder hold this evaluation.
    """

    result: Result
    predictions: Predictions
    split: EvaluationSplit
    emb_ND: Floats
    centre_CD: Floats
    stored: bool = False


def evaluate_training(
    run: Path,
    recipe: Recipe,
    index: ShardIndex,
    model: nn.Module,
    centre_CD: torch.Tensor,
    comm: Comm,
    bias: float | None = None,
) -> Evaluation:
    """Evaluate a training after its last step and store the result. Collective: every rank must call it.

    Args:
        run: The run folder; its newest checkpoint holds the same weights.
        recipe: The settings of the run.
        index: Index of the recipe's shards, with the labels that the network learns.
        model: The network, without an engine.
        centre_CD: All class centres.
        comm: The ranks.
        bias: Bias of the loss; None for losses without one.

    Returns:
        The evaluation, the same on every rank; only rank 0 writes it to the run folder.

    Raises:
        CheckpointError: The run has no checkpoint yet.
        DataError: The shards cannot be read, no training fold is left as gallery, or the model has diverged.
        TrainedDataError: Images of the test fold are in the training folds, too, and the recipe does not allow it.
    """
    weights = Weights(
        model=model,
        centre_CD=centre_CD,
        bias=bias,
        checkpoint=_newest_checkpoint(RunFolder(run), comm),
        chosen_by=chosen_by(recipe.optim.ema_decay),
    )
    data = recipe.data
    location = eval_shard_location(data.shards, data.stage)
    split = make_split(location, index, data.fold, recipe.data.held_out_folds, closed_set=data.label == PERSON)
    overlap = find_own_overlap(RunFolder(run), recipe, split, comm)
    refuse_trained(overlap, recipe, split, data.shards, is_own=True)
    evaluation = _evaluate(recipe, weights, split, overlap, comm)
    if comm.topology.is_rank_zero:
        _store(run, evaluation)
    return dataclasses.replace(evaluation, stored=True)


def evaluate_run(
    run: Path,
    shards: str | Path | None = None,
    fold: int | None = None,
    *,
    allow_trained: bool = False,
    class_map: ClassMap | None = None,
    progress: Progress = lambda done, total: None,
) -> Evaluation:
    """Evaluate the newest valid checkpoint of a run in this process.

    The result is stored in the run folder only if it is the run's own: on the samples of its training, in their old
    location or a new one, and on its own test fold.

    Args:
        run: The run folder.
        shards: Other shards, or the new location of the run's; None means those of the recipe.
        fold: The fold to evaluate; None means the test fold of the recipe.
        allow_trained: Evaluate even slices and patients that the run was trained on; the result then says so.
        class_map: Class names of the shards to those of the run; without it the names must be the same.
        progress: Called with the number of images read to compare them with the training, and their total; only for
            shards without content hashes.

    Raises:
        CheckpointError: There is no valid checkpoint.
        ConfigError: Training has read the fold.
        DataError: The shards cannot be read, or have other classes than the run.
        TrainedDataError: The run was trained on slices or patients of the fold.
    """
    inference = open_inference(run)
    recipe = inference.recipe
    location, index = open_shards(inference, shards, class_map)
    fold = recipe.data.fold if fold is None else fold
    own_shards = index.digest == inference.trained_on
    held_out = recipe.data.held_out_folds if own_shards else (fold,)
    if fold not in held_out:
        allowed = ", ".join(map(str, held_out))
        problem = f"{fold} was read in training by this run, so its evaluation means nothing; allowed: {allowed}"
        raise ConfigError([Fault(where="command line", key="fold", problem=problem)])
    split = make_split(location, index, fold, held_out, closed_set=recipe.data.label == PERSON)
    opened = OpenedShards(where=str(shards or recipe.data.shards), index=index)
    overlap = find_overlap(inference.run, recipe, inference.trained_on, opened, split.queries, progress)
    if not allow_trained:
        refuse_trained(overlap, recipe, split, opened.where, is_own=own_shards)
    evaluation = _evaluate(recipe, inference.weights, split, overlap, SoloComm(inference.device))
    if not own_shards or class_map or fold != recipe.data.fold:
        return evaluation
    _store(run, evaluation)
    return dataclasses.replace(evaluation, stored=True)


def _newest_checkpoint(run: RunFolder, comm: Comm) -> CheckpointRef:
    """Return the newest checkpoint in the run's lineage, as seen by rank 0."""
    newest = comm.broadcast_json([str(name) for name in lineage(list_checkpoints(run), read_parents(run))[:1]])
    if not newest:
        raise CheckpointError(f"{run.path}: has no checkpoint; an evaluation needs one to name its weights")
    name = CheckpointName.parse(newest[0])
    assert name is not None, "rank 0 has parsed it"
    return checkpoint_ref(name)


def _evaluate(
    recipe: Recipe, weights: Weights, split: EvaluationSplit, overlap: TrainedOverlap, comm: Comm
) -> Evaluation:
    queries, gallery = (_embed(recipe, weights, split, part, comm) for part in (split.queries, split.gallery))
    settings = recipe.evaluation
    methods = predict_all(
        queries,
        gallery,
        split.labels(split.gallery),
        weights.centre_CD,
        comm,
        block=settings.block,
        classifiers=settings.classifiers,
        seed=recipe.train.seed,
    )
    predictions = _predictions(weights, split, methods, build_margin_loss(recipe.loss))
    emb_ND, centre_CD = (rows.detach().cpu().double().numpy() for rows in (methods.emb_ND, weights.centre_CD))
    result = evaluate_predictions(
        _context(recipe, weights, split, overlap, comm),
        predictions,
        geometry(emb_ND, predictions.label_N, centre_CD),
        gallery=split.patient_ids(split.gallery),
    )
    return Evaluation(result=result, predictions=predictions, split=split, emb_ND=emb_ND, centre_CD=centre_CD)


def _embed(
    recipe: Recipe, weights: Weights, split: EvaluationSplit, positions: Sequence[int], comm: Comm
) -> Embeddings:
    batch = recipe.evaluation.batch
    mine = rank_positions(positions, batch, comm.topology)
    batches = slice_batches(split.shards, split.index, mine, image_size=recipe.data.image_size, batch=batch)
    return embed(weights.model, batches, embedding_dim=recipe.model.embedding_dim, device=comm.device)


def _predictions(weights: Weights, split: EvaluationSplit, methods: MethodPredictions, loss: MarginLoss) -> Predictions:
    ids, samples = split.patient_ids(split.queries), split.index.samples
    return Predictions(
        classes=split.index.classes,
        keys=tuple(samples[position].key for position in split.queries),
        persons=tuple(ids.persons),
        exams=tuple(ids.exams),
        label_N=split.labels(split.queries),
        predicted=methods.predicted,
        probability_NC=class_probabilities(methods.emb_ND, weights.centre_CD, loss, weights.bias).cpu().numpy(),
        neighbour_keys=tuple(
            tuple(samples[split.gallery[row]].key for row in rows[:STORED_NEIGHBOURS]) for rows in methods.neighbour_NK
        ),
        cosine_NK=methods.cosine_NK[:, :STORED_NEIGHBOURS],
    )


def _context(
    recipe: Recipe, weights: Weights, split: EvaluationSplit, overlap: TrainedOverlap, comm: Comm
) -> ResultContext:
    classes = split.index.classes
    gallery_C, queries_C = (
        np.bincount(split.labels(part), minlength=len(classes)) for part in (split.gallery, split.queries)
    )
    return ResultContext(
        split_unit=split.index.split_unit,
        source=split.index.source,
        label=recipe.data.label,
        classes=classes,
        fold=split.fold,
        majority_class=classes[int(gallery_C.argmax())],
        classes_without_gallery=tuple(
            name for name, known, tested in zip(classes, gallery_C, queries_C, strict=True) if tested and not known
        ),
        left_out=split.left_out,
        **overlap.to_dict(),
        checkpoint=weights.checkpoint,
        chosen_by=weights.chosen_by,
        seed=recipe.train.seed,
        loss=recipe.loss.name,
        model=recipe.model.name,
        world_size=comm.topology.world_size,
        data_digest=split.index.digest,
        recipe={
            "image_size": recipe.data.image_size,
            "embedding_dim": recipe.model.embedding_dim,
            "loss": asdict(recipe.loss),
            "optim": asdict(recipe.optim),
            "train": asdict(recipe.train),
            "precision": recipe.engine.precision,
        },
    )


def _store(run: Path, evaluation: Evaluation) -> None:
    folder = RunFolder(run)
    atomic.write_text(folder.predictions, evaluation.predictions.to_json())
    atomic.write_text(folder.result, evaluation.result.to_json())


def evaluate_predictions(
    context: ResultContext, predictions: Predictions, geometry: Geometry, *, gallery: PatientIds
) -> Result:
    """Compute all metrics and intervals from the predictions on the test slices.

    Args:
        context: Origin of the result.
        predictions: Predictions of every method.
        geometry: Geometry of the classes.
        gallery: Patients of the gallery slices.
    """
    test = PatientIds(persons=predictions.persons, exams=predictions.exams)
    patients, known = test.distinct_patients(), gallery.distinct_patients()
    groups = clusters(test.persons, test.exams)
    methods = {name: _method_metrics(predictions, name, groups) for name in predictions.predicted}
    predicted_N, label_N, classes = predictions.predicted[KNN], predictions.label_N, len(predictions.classes)
    tested = np.bincount(label_N, minlength=classes) > 0
    majority = _majority_accuracy(context, label_N)
    listed = classes <= MAX_CONFUSION_CLASSES
    matrix = metrics.confusion_matrix(label_N, predicted_N, classes).tolist() if listed else None
    return Result(
        **{field.name: getattr(context, field.name) for field in dataclasses.fields(ResultContext)},
        persons=None if patients is None else len(patients),
        slices=len(predictions),
        reference_slices=len(gallery.persons),
        shared_persons=None if patients is None or known is None else len(patients & known),
        knn_accuracy=methods[KNN].accuracy,
        balanced_accuracy=methods[KNN].balanced_accuracy,
        balanced_classes=int(tested.sum()),
        classes_without_test=tuple(
            name for name, present in zip(predictions.classes, tested, strict=True) if not present
        ),
        head_accuracy=methods[HEAD].accuracy,
        raw_pixel_knn=methods[RAW_PIXELS].accuracy,
        low_level_knn=methods[LOW_LEVEL].accuracy,
        majority_accuracy=majority,
        controls_not_exceeded=_controls_not_exceeded(methods, majority),
        methods=methods,
        person_vote=patient_vote(predicted_N, label_N, predictions.persons),
        calibration=metrics.calibration(predictions.probability_NC, label_N),
        geometry=geometry,
        intervals=_intervals(predictions, methods, groups),
        confusion=matrix and tuple(map(tuple, matrix)),
        confusions=metrics.summarise_confusions(label_N, predicted_N),
    )


def _majority_accuracy(context: ResultContext, label_N: Ints) -> float | None:
    if context.majority_class is None:
        return None
    return metrics.accuracy(label_N == context.classes.index(context.majority_class))


def _controls_not_exceeded(methods: Mapping[str, MethodMetrics], majority: float | None) -> tuple[str, ...]:
    controls = {name: methods[name].accuracy for name in (RAW_PIXELS, LOW_LEVEL)}
    if majority is not None:
        controls[MAJORITY] = majority
    return tuple(name for name, accuracy in controls.items() if methods[KNN].accuracy <= accuracy)


def _method_metrics(predictions: Predictions, method: str, groups: Clusters) -> MethodMetrics:
    correct_N = predictions.correct(method)
    return MethodMetrics(
        accuracy=metrics.accuracy(correct_N),
        balanced_accuracy=metrics.balanced_accuracy(correct_N, predictions.label_N),
        interval=accuracy_interval(correct_N, groups),
    )


def _intervals(predictions: Predictions, methods: Mapping[str, MethodMetrics], groups: Clusters) -> Intervals:
    correct_N, label_N, classes = predictions.correct(KNN), predictions.label_N, len(predictions.classes)
    return Intervals(
        knn_accuracy=methods[KNN].interval,
        balanced_accuracy=balanced_interval(correct_N, label_N, classes, groups),
        head_accuracy=methods[HEAD].interval,
        raw_pixel_knn=methods[RAW_PIXELS].interval,
        low_level_knn=methods[LOW_LEVEL].interval,
        interval_unit=groups.unit,
        units=groups.count,
        level=LEVEL,
        method=METHOD,
        caution=interval_caution(groups.count),
    )
