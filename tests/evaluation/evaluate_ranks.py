"""Evaluate a training on one rank; run as ``python evaluate_ranks.py RUN WORLD RANK``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from rank_meeting import meet

from hsadml_dist.checkpoint.load import load_inference_state
from hsadml_dist.config.yaml_loader import load_recipe
from hsadml_dist.data.index import load_index
from hsadml_dist.engine.learner import build_learner
from hsadml_dist.evaluation.evaluate import evaluate_training
from hsadml_dist.model_factory import build_network
from hsadml_dist.run.folder import RunFolder


def main(run: Path, world: int, rank: int) -> None:
    """Evaluate the run's checkpoint as a training of ``world`` ranks does."""
    torch.set_num_threads(1)
    comm = meet(run / "address.json", world, rank)
    recipe = load_recipe(RunFolder(run).config).recipe
    state = load_inference_state(RunFolder(run))
    network = build_network(recipe)
    network.load_state_dict(state.model)
    learner = build_learner(recipe, network, len(state.centres), comm, 2)
    learner.head.loss.centres.load_state_dict({"weight": state.centres})
    model, centre_CD = learner.engine.evaluation_model(), learner.head.gather_centres()
    evaluation = evaluate_training(run, recipe, load_index(Path(recipe.data.shards)), model, centre_CD, comm)
    (run / f"rank-{rank}.json").write_text(evaluation.result.to_json())
    comm.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    # gloo threads sometimes abort a normal interpreter exit.
    sys.stdout.flush()
    os._exit(0)
