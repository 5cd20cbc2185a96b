import os
from dataclasses import replace

import pytest
import torch

from hsadml_dist.checkpoint.digest import run_digest, state_digest
from hsadml_dist.checkpoint.save import save_checkpoint
from hsadml_dist.errors import CheckpointError, UsageError


def digest_of(run, state, number):
    """Save the state as another attempt and return its digest."""
    attempt = run.folder.attempt(number)
    attempt.path.mkdir(exist_ok=True)
    return state_digest(run.folder.checkpoints / str(save_checkpoint(run.folder, attempt, state)))


def test_digest_is_equal_for_equal_states(run, state):
    digests = {
        digest_of(run, state(10), 1),
        digest_of(run, state(10, world_size=4), 2),
        digest_of(run, replace(state(10), groups=dict(reversed(state(10).groups.items()))), 3),
    }
    assert len(digests) == 1
    assert len(digests.pop()) == 64


def one_bit(tensor):
    changed = tensor.clone().contiguous()
    changed.view(torch.uint8).flatten()[0] ^= 1
    return changed


@pytest.mark.parametrize(
    ("group", "name"),
    [
        ("model", "conv.weight"),
        ("model", "neck.bias"),
        ("model_moments", "neck.bias:exp_avg"),
        ("centres", "weight"),
    ],
)
def test_digest_changes_with_one_bit_of_any_tensor(run, state, group, name):
    changed = state(10)
    changed.groups[group][name] = one_bit(changed.groups[group][name])
    assert digest_of(run, changed, 2) != digest_of(run, state(10), 3)


@pytest.mark.parametrize("change", [{"step": 11}, {"consumed": 121}, {"seed": 1}])
def test_digest_changes_with_the_position(run, state, change):
    moved = replace(state(10), progress=replace(state(10).progress, **change))
    assert digest_of(run, moved, 2) != digest_of(run, state(10), 3)


def test_digest_changes_with_names_and_shapes(run, state):
    renamed, reshaped = state(10), state(10)
    renamed.groups["model"]["neck.weight"] = renamed.groups["model"].pop("neck.bias")
    reshaped.groups["model"]["neck.bias"] = reshaped.groups["model"]["neck.bias"].reshape(2, 2)
    assert len({digest_of(run, renamed, 2), digest_of(run, reshaped, 3), digest_of(run, state(10), 4)}) == 3


def test_run_digest_is_that_of_the_newest_or_of_the_given_step(run):
    names = [run.save(1, step) for step in (10, 20)]
    assert run_digest(run.folder.path) == state_digest(run.path(names[1]))
    assert run_digest(run.folder.path, 10) == state_digest(run.path(names[0]))
    assert run_digest(run.folder.path, 10) != run_digest(run.folder.path, 20)


def test_run_digest_of_a_missing_step_lists_the_available_ones(run):
    run.save(1, 10)
    run.save(1, 20)
    with pytest.raises(UsageError, match=r"--step 15: .*10, 20"):
        run_digest(run.folder.path, 15)


def test_run_digest_without_an_intact_checkpoint_raises(run):
    with pytest.raises(CheckpointError, match=str(run.folder.path)):
        run_digest(run.folder.path)
    name = run.save(1, 10)
    os.truncate(run.path(name) / "model.safetensors", 3)
    with pytest.raises(CheckpointError, match=r"model\.safetensors.* 3 "):
        run_digest(run.folder.path)
