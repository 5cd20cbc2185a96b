"""From weights to ``result.json`` and ``report.html``: at the end of a training, and afterwards from its folder.

Shapes: N test slices of all ranks, D components, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hsadml_dist.checkpoint.layout import lineage, list_checkpoints, read_parents
from hsadml_dist.config import Recipe
from hsadml_dist.data.index import PERSON, ShardIndex
from hsadml_dist.data.loader import held_out_folds
from hsadml_dist.data.reader import ShardReader
from hsadml_dist.data.shard_cache import eval_shard_location
from hsadml_dist.distributed.comm import Comm, SoloComm
from hsadml_dist.engine.learner import Learner
from hsadml_dist.errors import CheckpointError, ConfigError, Fault
from hsadml_dist.evaluation.classifiers import MethodPredictions, MethodSettings, class_probabilities, predict_all
from hsadml_dist.evaluation.embed import Embeddings, embed, rank_positions, slice_batches
from hsadml_dist.evaluation.examples import cases
from hsadml_dist.evaluation.gallery import EvaluationSplit, make_split
from hsadml_dist.evaluation.geometry import geometry
from hsadml_dist.evaluation.model_loading import Weights, checkpoint_ref, chosen_by, open_inference, open_shards
from hsadml_dist.evaluation.predictions import NEIGHBOURS, Predictions
from hsadml_dist.evaluation.result import CheckpointRef, Result, ResultContext, judge
from hsadml_dist.model_factory import loss_scale
from hsadml_dist.run.folder import RunFolder, replace_text
from hsadml_dist.run.history import merged_metrics


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A judged run.

    Attributes:
        result: The figures.
        predictions: What they are counted from.
        emb_ND: The test slices' embeddings, fp64, not normalised.
    """

    result: Result
    predictions: Predictions
    emb_ND: np.ndarray


def evaluate_training(run: Path, recipe: Recipe, index: ShardIndex, learner: Learner, comm: Comm) -> Result:
    """Judge a training by its present weights and write ``result.json`` and ``report.html``; all ranks take part.

    Args:
        run: The run folder; its newest checkpoint holds the learner's weights.
        recipe: The run's settings.
        index: The index of the recipe's shards, with the labels that the learner learns.
        learner: Backbone and centres after the last step.
        comm: The ranks.

    Raises:
        CheckpointError: The run has no checkpoint yet.
        DataError: Shards that cannot be read, folds that leave nothing to compare with, or a diverged model.
    """
    weights = Weights(
        model=learner.engine.evaluation_model(),
        centre_CD=learner.head.gather_centres(),
        checkpoint=_newest(RunFolder(run), comm),
        chosen_by=chosen_by(recipe),
    )
    place = eval_shard_location(recipe.data.shards, recipe.data.stage)
    split = make_split(place, index, recipe.data.fold, held_out_folds(recipe.data), closed=recipe.data.label == PERSON)
    verdict = _judged(recipe, weights, split, comm)
    if comm.topology.is_rank_zero:
        _write(run, verdict, split, weights.centre_CD)
    return verdict.result


def evaluate_run(run: Path, shards: str | Path | None = None, fold: int | None = None) -> dict[str, Any]:
    """Judge the newest checkpoint of a run that verifies, in this process alone; returns ``result.json`` as a dict.

    The run's files are written only if this is the run's own verdict: the samples it was trained on, wherever their
    shards lie now, and its own test fold.

    Args:
        run: The run folder.
        shards: Other shards than the recipe's, or the same ones moved; none: the recipe's.
        fold: The fold to judge; none: the recipe's test fold.

    Raises:
        CheckpointError: No checkpoint verifies.
        ConfigError: A fold that the run has seen in training.
        DataError: Shards that cannot be read, or classes that are not the run's.
    """
    opened = open_inference(run)
    recipe, weights = opened.recipe, opened.weights
    folder, index = open_shards(opened, shards)
    fold = recipe.data.fold if fold is None else fold
    own = index.digest == opened.trained_on
    if own:
        _check_unseen(recipe, fold)
    split = make_split(
        folder, index, fold, held_out_folds(recipe.data) if own else [fold], closed=recipe.data.label == PERSON
    )
    verdict = _judged(recipe, weights, split, SoloComm(opened.device))
    if own and fold == recipe.data.fold:
        _write(run, verdict, split, weights.centre_CD)
    return verdict.result.to_dict()


def _newest(run: RunFolder, comm: Comm) -> CheckpointRef:
    """Return the newest checkpoint in the run's line, as rank 0 sees it."""
    line = comm.broadcast_object(lineage(list_checkpoints(run), read_parents(run)))
    if not line:
        raise CheckpointError(f"{run.path}: there is no checkpoint; a verdict names the weights that it is about")
    return checkpoint_ref(line[0])


def _check_unseen(recipe: Recipe, fold: int) -> None:
    if fold not in held_out_folds(recipe.data):
        allowed = ", ".join(map(str, held_out_folds(recipe.data)))
        problem = f"{fold} was read in training by this run, a verdict on it means nothing; allowed: {allowed}"
        raise ConfigError([Fault(where="command line", key="fold", problem=problem)])


def _judged(recipe: Recipe, weights: Weights, split: EvaluationSplit, comm: Comm) -> Evaluation:
    """Return the verdict, the same on all ranks."""
    test, references = (_embedded(recipe, weights, split, part, comm) for part in (split.test, split.references))
    asking = MethodSettings(
        block=recipe.evaluation.block, classifiers=recipe.evaluation.classifiers, seed=recipe.train.seed
    )
    answers = predict_all(test, references, split.labels(split.references), weights.centre_CD, comm, asking)
    predictions = _predictions(recipe, weights, split, answers)
    emb_ND, centre_CD = (rows.detach().cpu().double().numpy() for rows in (answers.emb_ND, weights.centre_CD))
    result = judge(
        _setting(recipe, weights, split, comm),
        predictions,
        geometry(emb_ND, predictions.label_N, centre_CD),
        references=split.people(split.references),
        resamples=recipe.evaluation.resamples,
    )
    return Evaluation(result=result, predictions=predictions, emb_ND=emb_ND)


def _predictions(recipe: Recipe, weights: Weights, split: EvaluationSplit, answers: MethodPredictions) -> Predictions:
    people, samples = split.people(split.test), split.index.samples
    scale = loss_scale(recipe.loss)
    return Predictions(
        classes=split.index.classes,
        keys=tuple(samples[position].key for position in split.test),
        persons=tuple(people.persons),
        exams=tuple(people.exams),
        label_N=split.labels(split.test),
        predicted=answers.predicted,
        probability_NC=class_probabilities(answers.emb_ND, weights.centre_CD, scale).cpu().numpy(),
        neighbour_keys=tuple(
            tuple(samples[split.references[place]].key for place in places[:NEIGHBOURS])
            for places in answers.neighbour_NK
        ),
        cosine_NK=answers.cosine_NK[:, :NEIGHBOURS],
    )


def _embedded(
    recipe: Recipe, weights: Weights, split: EvaluationSplit, positions: Sequence[int], comm: Comm
) -> Embeddings:
    batch = recipe.evaluation.batch
    mine = rank_positions(positions, batch, comm.topology)
    batches = slice_batches(split.shards, split.index, mine, image_size=recipe.data.image_size, batch=batch)
    return embed(weights.model, batches, embedding_dim=recipe.model.embedding_dim, device=comm.device)


def _setting(recipe: Recipe, weights: Weights, split: EvaluationSplit, comm: Comm) -> ResultContext:
    return ResultContext(
        split_unit=split.index.split_unit,
        label=recipe.data.label,
        classes=split.index.classes,
        fold=split.fold,
        left_out=split.left_out,
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


def _write(run: Path, verdict: Evaluation, split: EvaluationSplit, centre_CD: torch.Tensor) -> None:
    # Imported by the one rank that draws: matplotlib takes a second and 60 MB.
    from hsadml_dist.report.run_report import write_run_report
    from hsadml_dist.report.sphere import project_on_sphere

    folder = RunFolder(run)
    replace_text(folder.predictions, verdict.predictions.to_json())
    replace_text(folder.result, verdict.result.to_json())
    reader = ShardReader(split.shards, split.index)
    shown = cases(verdict.predictions, split.index, reader.image)
    sphere = project_on_sphere(verdict.emb_ND, verdict.predictions.label_N, centre_CD.detach().cpu().double().numpy())
    write_run_report(run, verdict.result.to_dict(), merged_metrics(run), sphere, shown)
