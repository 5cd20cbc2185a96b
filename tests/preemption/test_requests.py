import logging
import os
import time
from dataclasses import replace

import pytest
import torch

from hsadml_dist.checkpoint.digest import run_digest
from hsadml_dist.checkpoint.layout import list_checkpoints
from hsadml_dist.config import Recipe
from hsadml_dist.config.recipe import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
)
from hsadml_dist.errors import ExitCode, RunLockedError
from hsadml_dist.preemption import requests as module
from hsadml_dist.preemption.requests import RequestFiles, StepDecision
from hsadml_dist.preemption.signals import StopSignal
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.history import merged_events, merged_metrics
from hsadml_dist.train import train


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.attempt(1).path.mkdir(parents=True)
    return folder


@pytest.fixture
def requests(run, monkeypatch):
    """Looks each time it is asked."""
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)
    return RequestFiles(run, run.attempt(1))


def touch_again(path):
    """As a second ``touch`` some time later."""
    path.touch()
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1_000_000))


def test_no_file_no_wish(requests):
    assert [requests.wish(step) for step in range(3)] == [StepDecision.CONTINUE] * 3


def test_a_request_to_save_is_returned_once_and_its_file_goes_when_that_step_is_saved(run, requests):
    run.save_request.touch()
    assert [requests.wish(7), requests.wish(8)] == [StepDecision.SAVE, StepDecision.CONTINUE]
    requests.fulfil(6)
    assert run.save_request.exists(), "a save begun before the request is no answer to it"
    requests.fulfil(7)
    assert not run.save_request.exists()
    run.save_request.touch()
    assert requests.wish(9) is StepDecision.SAVE


def test_a_request_repeated_while_the_first_is_being_saved_is_a_second_one(run, requests):
    run.save_request.touch()
    assert requests.wish(7) is StepDecision.SAVE
    touch_again(run.save_request)
    requests.fulfil(7)
    assert run.save_request.exists()
    assert requests.wish(8) is StepDecision.SAVE
    requests.fulfil(8)
    assert not run.save_request.exists()


def test_a_stop_wins_over_a_save_and_its_checkpoint_answers_neither_too_early(run, requests):
    run.save_request.touch()
    run.stop_request.touch()
    assert requests.wish(7) is StepDecision.STOP
    assert requests.stop_reason == "STOP file"
    requests.fulfil(6)  # the state before step 7, in which the run stops
    assert not run.stop_request.exists()


def test_a_stop_needs_no_step_to_be_done(run, requests):
    run.stop_request.touch()
    assert requests.wish(1) is StepDecision.STOP
    requests.fulfil(0)
    assert not run.stop_request.exists()


def test_nobody_told_to_stop(run, requests):
    run.save_request.touch()
    requests.wish(7)
    assert requests.stop_reason is None


def test_a_file_that_cannot_be_removed_is_not_obeyed_twice(run, requests):
    run.save_request.mkdir()  # unlink refuses folders
    assert requests.wish(7) is StepDecision.SAVE
    requests.fulfil(7)
    assert [requests.wish(8), requests.wish(9)] == [StepDecision.CONTINUE] * 2


def test_a_later_attempt_is_seen_before_anything_else(run, requests):
    run.stop_request.touch()
    run.attempt(2).path.mkdir()
    assert requests.wish(7) is StepDecision.SUPERSEDED


def test_looks_are_rare(run, monkeypatch):
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.2)
    requests = RequestFiles(run, run.attempt(1))
    assert requests.wish(1) is StepDecision.CONTINUE
    run.stop_request.touch()
    assert requests.wish(2) is StepDecision.CONTINUE
    time.sleep(0.25)
    assert requests.wish(3) is StepDecision.STOP


@pytest.fixture
def recipe(tiny_shards):
    return Recipe(
        data=DataConfig(shards=str(tiny_shards), fold=0, image_size=16, transforms=()),
        model=ModelConfig(name="resnet_gn_tiny", embedding_dim=8),
        train=TrainConfig(steps=5, global_batch=6),
        checkpoint=CheckpointConfig(every=100, keep=9),
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


@pytest.fixture
def fresh(tmp_path):
    """A run folder in which nothing has been started."""
    folder = RunFolder(tmp_path / "fresh")
    folder.path.mkdir()
    return folder


def saved(run):
    return [name.step for name in list_checkpoints(run)]


@pytest.mark.parametrize("background", [True, False])
def test_a_training_saves_when_a_file_asks_for_it(recipe, fresh, monkeypatch, background):
    """The file is there before the first step, so step 1 is saved."""
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)
    fresh.save_request.touch()
    recipe = replace(recipe, checkpoint=replace(recipe.checkpoint, background=background))
    assert train(recipe, fresh.path, StopSignal()) is ExitCode.SUCCESS
    assert saved(fresh) == [1, 5]
    assert [row["step"] for row in merged_events(fresh.path) if row["event"] == "checkpoint"] == [1, 5]
    assert not fresh.save_request.exists()


def test_a_training_stops_when_a_file_asks_for_it_and_the_next_start_goes_on(recipe, fresh, tmp_path):
    fresh.stop_request.touch()
    assert train(recipe, fresh.path, StopSignal()) is ExitCode.STOPPED
    assert not fresh.stop_request.exists()
    assert merged_metrics(fresh.path) == []
    [signal] = [row for row in merged_events(fresh.path) if row["event"] == "signal"]
    assert signal["noticed"] == ["rank 0: STOP file"]
    assert train(recipe, fresh.path, StopSignal()) is ExitCode.SUCCESS
    assert train(recipe, tmp_path / "calm", StopSignal()) is ExitCode.SUCCESS
    assert run_digest(fresh.path) == run_digest(tmp_path / "calm")


def test_a_save_in_the_step_before_a_stop_is_not_written_twice(recipe, fresh, monkeypatch):
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)
    looks = {1: StepDecision.CONTINUE, 2: StepDecision.SAVE, 3: StepDecision.STOP}
    monkeypatch.setattr(RequestFiles, "wish", lambda self, step: looks[step])
    assert train(recipe, fresh.path, StopSignal()) is ExitCode.STOPPED
    assert saved(fresh) == [2]


def test_a_training_that_was_left_behind_writes_nothing_more(recipe, fresh, monkeypatch):
    """As after the whole job was suspended, and another start has taken over."""
    wishes = {1: StepDecision.CONTINUE, 2: StepDecision.CONTINUE, 3: StepDecision.SUPERSEDED}
    monkeypatch.setattr(RequestFiles, "wish", lambda self, step: wishes[step])
    with pytest.raises(RunLockedError, match="a later attempt of this run has started"):
        train(recipe, fresh.path, StopSignal())
    assert saved(fresh) == []
    assert [row["step"] for row in merged_metrics(fresh.path)] == [1, 2]
