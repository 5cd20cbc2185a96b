"""Evaluate a run's checkpoint as a training of several ranks does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rank_script import with_comm

from hsadml_dist.checkpoint.load import load_inference_state
from hsadml_dist.config.yaml_loader import load_recipe
from hsadml_dist.data.index import load_index
from hsadml_dist.distributed.comm import Comm
from hsadml_dist.engine.learner import build_learner
from hsadml_dist.evaluation.evaluate import evaluate_training
from hsadml_dist.model_factory import build_network
from hsadml_dist.run.folder import RunFolder


def evaluate(comm: Comm, run: str) -> dict[str, Any]:
    """Return the result, as this rank has it."""
    torch.set_num_threads(1)
    folder = RunFolder(Path(run))
    recipe, state = load_recipe(folder.config).recipe, load_inference_state(folder)
    network = build_network(recipe)
    network.load_state_dict(state.model)
    learner = build_learner(recipe, network, len(state.centres), comm, 2)
    learner.head.loss.centres.load_state_dict({"weight": state.centres})
    model, centre_CD = learner.engine.evaluation_model(), learner.head.gather_centres()
    index = load_index(Path(recipe.data.shards))
    return evaluate_training(folder.path, recipe, index, model, centre_CD, comm).result.to_dict()


if __name__ == "__main__":
    with_comm(evaluate)
