import torch

from hsadml_dist.checkpoint.load import load_inference_state
from hsadml_dist.config.io import load_recipe
from hsadml_dist.data.index import load_index
from hsadml_dist.evaluation.weights import load_weights
from hsadml_dist.run.folder import RunFolder


def test_weights_are_those_of_the_checkpoint_and_know_their_samples(run, shards):
    folder = RunFolder(run)
    weights, trained_on = load_weights(folder, load_recipe(folder.config).recipe, torch.device("cpu"))
    state = load_inference_state(folder)
    assert trained_on == load_index(shards).digest
    assert (weights.checkpoint.name, weights.checkpoint.step) == ("step-00000002.attempt-0001", 2)
    torch.testing.assert_close(dict(weights.model.state_dict()), state.model, rtol=0, atol=0)
    torch.testing.assert_close(weights.centre_CD, state.centres, rtol=0, atol=0)
