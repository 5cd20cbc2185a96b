import logging
import signal
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from hsadml_dist.checkpoint.digest import run_digest
from hsadml_dist.checkpoint.layout import committed
from hsadml_dist.config import Recipe
from hsadml_dist.config.checkpoint import CheckpointConfig
from hsadml_dist.config.data import DataConfig
from hsadml_dist.config.evaluation import EvaluationConfig
from hsadml_dist.config.model import ModelConfig
from hsadml_dist.config.run import RunConfig
from hsadml_dist.config.train import TrainConfig
from hsadml_dist.errors import CheckpointError, ConfigError, ExitCode
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.merged import merged_events, merged_metrics
from hsadml_dist.stop.signals import Notice
from hsadml_dist.train import STOP_AFTER, train


@pytest.fixture
def recipe(tiny_shards):
    return Recipe(
        data=DataConfig(shards=str(tiny_shards), fold=0, image_size=16, transforms=()),
        model=ModelConfig(name="resnet_gn_tiny", embedding_dim=8),
        train=TrainConfig(steps=5, global_batch=6),
        checkpoint=CheckpointConfig(every=2),
        run=RunConfig(tensorboard=False),
        evaluation=EvaluationConfig(at_end=False),
    )


@pytest.fixture(autouse=True)
def as_before():
    """Training sets this process's threads and log; both come back."""
    threads, handlers, level = torch.get_num_threads(), logging.root.handlers[:], logging.root.level
    yield
    torch.set_num_threads(threads)
    for handler in set(logging.root.handlers) - set(handlers):
        handler.close()
        logging.root.removeHandler(handler)
    logging.root.setLevel(level)


def steps(run):
    return [name.step for name in committed(RunFolder(run))]


def events(run):
    return [row["event"] for row in merged_events(run)]


def test_from_the_first_step_to_the_last(recipe, tmp_path):
    assert train(recipe, tmp_path / "run", Notice()) is ExitCode.DONE
    assert steps(tmp_path / "run") == [4, 5]
    assert events(tmp_path / "run") == ["started", "checkpoint", "checkpoint", "checkpoint", "finished"]
    assert [row["step"] for row in merged_metrics(tmp_path / "run")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_stop_at_any_step_is_saved_once_and_leaves_no_trace_in_the_end(recipe, tmp_path, monkeypatch, stop):
    """2 and 4: a periodic checkpoint has just been written."""
    monkeypatch.setenv(STOP_AFTER, str(stop))
    assert train(recipe, tmp_path / "run", Notice()) is ExitCode.STOPPED
    assert steps(tmp_path / "run")[-1] == stop
    assert events(tmp_path / "run")[-3:] == ["checkpoint", "signal", "stopped"]
    monkeypatch.delenv(STOP_AFTER)
    assert train(recipe, tmp_path / "run", Notice()) is ExitCode.DONE
    assert train(recipe, tmp_path / "calm", Notice()) is ExitCode.DONE
    assert run_digest(tmp_path / "run") == run_digest(tmp_path / "calm")
    assert [row["loss"] for row in merged_metrics(tmp_path / "run")] == [
        row["loss"] for row in merged_metrics(tmp_path / "calm")
    ]


def test_told_to_stop_before_the_first_step(recipe, tmp_path):
    notice = Notice()
    notice.deliver(signal.Signals.SIGTERM.name)
    assert train(recipe, tmp_path / "run", notice) is ExitCode.STOPPED
    assert steps(tmp_path / "run") == []
    assert merged_events(tmp_path / "run")[-2]["noticed"] == ["rank 0: SIGTERM"]


def test_a_finished_run_is_not_trained_further(recipe, tmp_path):
    for _ in range(2):
        assert train(recipe, tmp_path / "run", Notice()) is ExitCode.DONE
    assert len(merged_metrics(tmp_path / "run")) == 5
    assert events(tmp_path / "run")[-3:] == ["started", "resumed", "finished"]


def test_a_checkpoint_of_other_settings_is_not_gone_on_from(recipe, tmp_path):
    train(recipe, tmp_path / "run", Notice())
    other = replace(recipe, train=replace(recipe.train, seed=9))
    with pytest.raises(CheckpointError, match="written under other settings"):
        train(other, tmp_path / "run", Notice())
    assert events(tmp_path / "run")[-1] == "failed"


def test_a_damaged_checkpoint_is_passed_over_and_its_steps_done_again(recipe, tmp_path):
    run = tmp_path / "run"
    train(recipe, run, Notice())
    expected = run_digest(run)
    newest = RunFolder(run).checkpoints / str(committed(RunFolder(run))[-1])
    (newest / "COMMIT").unlink()
    assert train(recipe, run, Notice()) is ExitCode.DONE
    [fall] = [row for row in merged_events(run) if row["event"] == "fell_back"]
    assert (fall["step"], fall["checkpoint"]) == (5, newest.name)
    assert fall["reason"] == "rank 0: COMMIT: No such file or directory"
    assert run_digest(run) == expected


def test_weights_to_start_from_must_fit(recipe, tmp_path):
    safetensors.torch.save_file({"neck.weight": torch.zeros(2, 2)}, tmp_path / "w.safetensors")
    other = replace(recipe, model=replace(recipe.model, init_from=str(tmp_path / "w.safetensors")))
    with pytest.raises(ConfigError, match=r"model\.init_from: .* does not fit 'resnet_gn_tiny'") as caught:
        train(other, tmp_path / "run", Notice())
    assert "\n" not in str(caught.value)
