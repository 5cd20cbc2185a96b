from dataclasses import replace

import torch
from hsadml_dist.model_factory import build_network

from hsadml_dist.checkpoint.layout import read_progress
from hsadml_dist.checkpoint.load import load_inference_state
from hsadml_dist.checkpoint.save import save_checkpoint
from hsadml_dist.checkpoint.state import TrainingState
from hsadml_dist.comm import SoloComm
from hsadml_dist.config.io import load_recipe
from hsadml_dist.data.index import load_index
from hsadml_dist.data.loader import Batch
from hsadml_dist.engine.learner import build_learner
from hsadml_dist.evaluation.weights import chosen_by, load_weights
from hsadml_dist.run.folder import RunFolder


def test_weights_are_those_of_the_checkpoint_and_know_their_samples(run, shards):
    folder = RunFolder(run)
    weights, trained_on = load_weights(folder, load_recipe(folder.config).recipe, torch.device("cpu"))
    state = load_inference_state(folder)
    assert trained_on == load_index(shards).digest
    assert (weights.checkpoint.name, weights.checkpoint.step) == ("step-00000002.attempt-0001", 2)
    torch.testing.assert_close(dict(weights.model.state_dict()), state.model, rtol=0, atol=0)
    torch.testing.assert_close(weights.centre_CD, state.centres, rtol=0, atol=0)


def test_where_weights_are_averaged_the_averages_are_judged_after_the_run_as_at_its_end(tmp_path, run, shards):
    plain = load_recipe(RunFolder(run).config).recipe
    recipe = replace(plain, optim=replace(plain.optim, ema_decay=0.5))
    learner = build_learner(recipe, build_network(recipe), 3, SoloComm(), 2)
    for step in (1, 2):
        image = torch.randn(12, 1, 16, 16, generator=torch.Generator().manual_seed(step))
        learner.step(step, Batch(image=image, label=torch.arange(12) % 3, keys=("",) * 12))
    folder = RunFolder(tmp_path / "averaged")
    folder.attempt(1).path.mkdir(parents=True)
    progress = replace(read_progress(RunFolder(run).checkpoints / "step-00000002.attempt-0001"), fingerprint="")
    save_checkpoint(folder, folder.attempt(1), TrainingState(groups=learner.state(), progress=progress))
    weights, _ = load_weights(folder, recipe, torch.device("cpu"))
    judged, trained = dict(learner.engine.evaluation_model().state_dict()), dict(learner.engine.model.state_dict())
    torch.testing.assert_close(dict(weights.model.state_dict()), judged, rtol=0, atol=0)
    assert not any(torch.equal(value, trained[name]) for name, value in judged.items())
    assert (chosen_by(plain), weights.chosen_by) == ("last step", "last step, its running average of weights")
