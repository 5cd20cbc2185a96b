from dataclasses import replace

import pytest
import safetensors.torch
import torch

from hsadml_dist.checkpoint.digest import run_digest
from hsadml_dist.checkpoint.layout import list_checkpoints
from hsadml_dist.errors import CheckpointError, ConfigError, ExitCode
from hsadml_dist.preemption.signals import StopSignal
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.history import merged_events
from hsadml_dist.trainer import train

pytestmark = pytest.mark.usefixtures("as_before")


def test_resume_rejects_checkpoint_of_other_settings(recipe, tmp_path):
    train(recipe, tmp_path / "run", StopSignal())
    other = replace(recipe, train=replace(recipe.train, seed=9))
    with pytest.raises(CheckpointError, match=r"other settings than config\.yaml"):
        train(other, tmp_path / "run", StopSignal())
    assert merged_events(tmp_path / "run")[-1]["event"] == "failed"


def test_resume_skips_damaged_checkpoint_and_repeats_its_steps(recipe, tmp_path):
    run = tmp_path / "run"
    train(recipe, run, StopSignal())
    expected = run_digest(run)
    newest = RunFolder(run).checkpoints / str(list_checkpoints(RunFolder(run))[-1])
    (newest / "COMMIT").unlink()
    assert train(recipe, run, StopSignal()) is ExitCode.SUCCESS
    [fall] = [row for row in merged_events(run) if row["event"] == "fell_back"]
    assert (fall["step"], fall["checkpoint"]) == (5, newest.name)
    assert "COMMIT" in fall["reason"]
    assert run_digest(run) == expected


@pytest.mark.parametrize(("length", "key"), [({"steps": 4}, "train.steps"), ({"steps": None, "epochs": 1}, "epochs")])
def test_resume_refuses_a_length_below_the_steps_done(recipe, tmp_path, length, key):
    """Also where nothing has compared config.yaml with the one before."""
    constant = replace(recipe, optim=replace(recipe.optim, schedule="constant"))
    long = replace(constant, train=replace(constant.train, steps=9, global_batch=30))
    train(long, tmp_path / "run", StopSignal())
    digest = run_digest(tmp_path / "run")
    with pytest.raises(ConfigError) as caught:
        train(replace(long, train=replace(long.train, **length)), tmp_path / "run", StopSignal())
    [fault] = caught.value.faults
    assert key in fault.key and "has done 9 steps" in fault.problem
    assert run_digest(tmp_path / "run") == digest
    assert merged_events(tmp_path / "run")[-1]["event"] == "failed"


def test_init_from_rejects_mismatching_weights(recipe, tmp_path):
    safetensors.torch.save_file({"neck.weight": torch.zeros(2, 2)}, tmp_path / "w.safetensors")
    other = replace(recipe, model=replace(recipe.model, init_from=str(tmp_path / "w.safetensors")))
    with pytest.raises(ConfigError, match=r"model\.init_from: .* does not match the network") as caught:
        train(other, tmp_path / "run", StopSignal())
    assert "\n" not in str(caught.value)
