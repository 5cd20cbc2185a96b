import os
from dataclasses import replace

import pytest

from hsadml_dist.checkpoint.digest import run_digest
from hsadml_dist.checkpoint.layout import list_checkpoints
from hsadml_dist.config.recipe import CheckpointConfig
from hsadml_dist.errors import ExitCode, RunLockedError
from hsadml_dist.preemption import requests as requests_module
from hsadml_dist.preemption.requests import POLL_SECONDS, RequestFiles, StepDecision
from hsadml_dist.preemption.signals import StopSignal
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.history import StopReason, merged_events, merged_metrics, read_stop_reasons
from hsadml_dist.trainer import train

pytestmark = pytest.mark.usefixtures("as_before")


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.attempt(1).path.mkdir(parents=True)
    return folder


@pytest.fixture
def poll_always(monkeypatch):
    """Poll the files before every step."""
    monkeypatch.setattr(requests_module, "POLL_SECONDS", 0.0)


@pytest.fixture
def requests(run, poll_always):
    return RequestFiles(run, run.attempt(1))


def touch_again(path):
    """Touch a file some time after the first ``touch``."""
    path.touch()
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1_000_000))


def test_poll_without_files_continues(requests):
    assert [requests.poll(step) for step in range(3)] == [StepDecision.CONTINUE] * 3


def test_save_request_is_returned_once_and_removed_when_its_step_is_saved(run, requests):
    run.save_request.touch()
    assert [requests.poll(7), requests.poll(8)] == [StepDecision.SAVE, StepDecision.CONTINUE]
    requests.mark_saved(6)
    assert run.save_request.exists(), "a checkpoint from before the request does not fulfil it"
    requests.mark_saved(7)
    assert not run.save_request.exists()
    run.save_request.touch()
    assert requests.poll(9) is StepDecision.SAVE


def test_save_request_repeated_during_the_save_is_a_second_request(run, requests):
    run.save_request.touch()
    assert requests.poll(7) is StepDecision.SAVE
    touch_again(run.save_request)
    requests.mark_saved(7)
    assert run.save_request.exists()
    assert requests.poll(8) is StepDecision.SAVE
    requests.mark_saved(8)
    assert not run.save_request.exists()


def test_stop_request_takes_precedence_over_a_save_request(run, requests):
    run.save_request.touch()
    run.stop_request.touch()
    assert requests.poll(7) is StepDecision.STOP
    assert requests.stop_reason is StopReason.STOP_FILE
    requests.mark_saved(6)  # the state before step 7, at which the run stops
    assert not run.stop_request.exists()
    assert run.save_request.exists()


def test_stop_request_is_fulfilled_without_a_further_step(run, requests):
    run.stop_request.touch()
    assert requests.poll(1) is StepDecision.STOP
    requests.mark_saved(0)
    assert not run.stop_request.exists()


def test_save_request_is_no_stop_reason(run, requests):
    run.save_request.touch()
    requests.poll(7)
    assert requests.stop_reason is None


def test_request_file_that_cannot_be_removed_is_not_obeyed_twice(run, requests):
    run.save_request.mkdir()  # unlink refuses folders
    assert requests.poll(7) is StepDecision.SAVE
    requests.mark_saved(7)
    assert [requests.poll(8), requests.poll(9)] == [StepDecision.CONTINUE] * 2


def test_later_attempt_takes_precedence_over_requests(run, requests):
    run.stop_request.touch()
    run.attempt(2).path.mkdir()
    assert requests.poll(7) is StepDecision.SUPERSEDED


def test_poll_looks_at_the_files_at_intervals(run, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(requests_module.time, "monotonic", lambda: now[0])
    requests = RequestFiles(run, run.attempt(1))
    assert requests.poll(1) is StepDecision.CONTINUE
    run.stop_request.touch()
    now[0] += 0.9 * POLL_SECONDS
    assert requests.poll(2) is StepDecision.CONTINUE
    now[0] += 0.2 * POLL_SECONDS
    assert requests.poll(3) is StepDecision.STOP


@pytest.fixture
def recipe(recipe):
    """Settings of a training that saves only at its end, unless it is asked to."""
    return replace(recipe, checkpoint=CheckpointConfig(every=100, keep=9))


@pytest.fixture
def fresh(tmp_path):
    """A run folder without attempts."""
    folder = RunFolder(tmp_path / "fresh")
    folder.path.mkdir()
    return folder


def saved(run):
    return [name.step for name in list_checkpoints(run)]


@pytest.mark.parametrize("background", [True, False])
def test_training_saves_on_request(recipe, fresh, poll_always, background):
    """The file exists before the first step, so step 1 is saved."""
    fresh.save_request.touch()
    recipe = replace(recipe, checkpoint=replace(recipe.checkpoint, background=background))
    assert train(recipe, fresh.path, StopSignal()) is ExitCode.SUCCESS
    assert saved(fresh) == [1, 5]
    assert [row["step"] for row in merged_events(fresh.path) if row["event"] == "checkpoint"] == [1, 5]
    assert not fresh.save_request.exists()


def test_training_stops_on_request_and_the_next_start_resumes(recipe, fresh, tmp_path):
    fresh.stop_request.touch()
    assert train(recipe, fresh.path, StopSignal()) is ExitCode.STOPPED
    assert not fresh.stop_request.exists()
    assert merged_metrics(fresh.path) == []
    rows = {row["event"]: row for row in merged_events(fresh.path)}
    assert read_stop_reasons(rows["signal"]) == {0: StopReason.STOP_FILE}
    assert rows["stopped"]["final"] is True
    assert train(recipe, fresh.path, StopSignal()) is ExitCode.SUCCESS
    assert train(recipe, tmp_path / "undisturbed", StopSignal()) is ExitCode.SUCCESS
    assert run_digest(fresh.path) == run_digest(tmp_path / "undisturbed")


def test_training_that_saved_the_step_before_a_stop_does_not_save_it_again(recipe, fresh, monkeypatch):
    decisions = {1: StepDecision.CONTINUE, 2: StepDecision.SAVE, 3: StepDecision.STOP}
    monkeypatch.setattr(RequestFiles, "poll", lambda self, step: decisions[step])
    assert train(recipe, fresh.path, StopSignal()) is ExitCode.STOPPED
    assert saved(fresh) == [2]


def test_training_that_was_superseded_stops_writing(recipe, fresh, monkeypatch):
    """As after the whole job was suspended and another start has taken over."""
    decisions = {1: StepDecision.CONTINUE, 2: StepDecision.CONTINUE, 3: StepDecision.SUPERSEDED}
    monkeypatch.setattr(RequestFiles, "poll", lambda self, step: decisions[step])
    with pytest.raises(RunLockedError):
        train(recipe, fresh.path, StopSignal())
    assert saved(fresh) == []
    assert [row["step"] for row in merged_metrics(fresh.path)] == [1, 2]
