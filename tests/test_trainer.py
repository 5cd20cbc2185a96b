import json
import math
import os
import shutil
from dataclasses import replace

import pytest

from hsadml_dist.checkpoint.digest import run_digest
from hsadml_dist.checkpoint.layout import list_checkpoints
from hsadml_dist.engine.learner import Learner
from hsadml_dist.errors import CheckpointError, ConfigError, ExitCode, NumericalError, RunError
from hsadml_dist.preemption.signals import STOP_AFTER, StopSignal
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.history import StopReason, merged_events, merged_metrics
from hsadml_dist.trainer import train
from tests.checkpoint.test_save import small_disk

pytestmark = pytest.mark.usefixtures("as_before")


def steps(run):
    return [name.step for name in list_checkpoints(RunFolder(run))]


def events(run):
    return [row["event"] for row in merged_events(run)]


def test_train_from_first_to_last_step(recipe, tmp_path):
    assert train(recipe, tmp_path / "run", StopSignal()) is ExitCode.SUCCESS
    assert steps(tmp_path / "run") == [4, 5]
    assert events(tmp_path / "run") == ["started", "checkpoint", "checkpoint", "checkpoint", "finished"]
    assert [row["step"] for row in merged_metrics(tmp_path / "run")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_stop_and_resume_at_any_step_is_bit_identical(recipe, tmp_path, monkeypatch, stop):
    """After steps 2 and 4 a periodic checkpoint has just been written."""
    monkeypatch.setenv(STOP_AFTER, str(stop))
    assert train(recipe, tmp_path / "run", StopSignal()) is ExitCode.STOPPED
    assert steps(tmp_path / "run")[-1] == stop
    assert events(tmp_path / "run")[-3:] == ["checkpoint", "signal", "stopped"]
    monkeypatch.delenv(STOP_AFTER)
    assert train(recipe, tmp_path / "run", StopSignal()) is ExitCode.SUCCESS
    assert train(recipe, tmp_path / "reference", StopSignal()) is ExitCode.SUCCESS
    assert run_digest(tmp_path / "run") == run_digest(tmp_path / "reference")
    assert [row["loss"] for row in merged_metrics(tmp_path / "run")] == [
        row["loss"] for row in merged_metrics(tmp_path / "reference")
    ]


def test_stop_request_before_the_first_step(recipe, tmp_path):
    notice = StopSignal()
    notice.trigger(StopReason.SIGTERM)
    assert train(recipe, tmp_path / "run", notice) is ExitCode.STOPPED
    assert steps(tmp_path / "run") == []
    assert merged_events(tmp_path / "run")[-2]["noticed"] == ["rank 0: SIGTERM"]


def test_any_exception_leaves_an_event_with_its_reason(recipe, tmp_path, monkeypatch):
    def fail(learner, step, batch):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(Learner, "step", fail)
    with pytest.raises(ZeroDivisionError):
        train(recipe, tmp_path / "run", StopSignal())
    last = merged_events(tmp_path / "run")[-1]
    assert (last["event"], last["exit_code"]) == ("failed", ExitCode.INTERNAL_ERROR)
    assert "ZeroDivisionError" in last["reason"] and "a defect" in last["reason"]


def test_report_that_cannot_be_drawn_does_not_undo_a_training(recipe, tmp_path, monkeypatch):
    def fail(run, evaluation):
        raise RuntimeError("no font")

    monkeypatch.setattr("hsadml_dist.report.run_report.write_evaluation_report", fail)
    evaluated = replace(recipe, evaluation=replace(recipe.evaluation, at_end=True))
    assert train(evaluated, tmp_path / "run", StopSignal()) is ExitCode.SUCCESS
    assert events(tmp_path / "run")[-2:] == ["report_failed", "finished"]
    assert RunFolder(tmp_path / "run").result.exists()


def test_finished_run_is_not_trained_again(recipe, tmp_path):
    for _ in range(2):
        assert train(recipe, tmp_path / "run", StopSignal()) is ExitCode.SUCCESS
    assert len(merged_metrics(tmp_path / "run")) == 5
    assert events(tmp_path / "run")[-3:] == ["started", "resumed", "finished"]


@pytest.fixture
def corrupt(monkeypatch):
    """Set all samples of the given steps to NaN from now on."""
    plain = Learner.step

    def corrupt(*steps):
        def step(self, step, batch):
            return plain(self, step, replace(batch, image=batch.image * math.nan) if step in steps else batch)

        monkeypatch.setattr(Learner, "step", step)

    return corrupt


def skipping(recipe, **changes):
    return replace(recipe, train=replace(recipe.train, on_nonfinite="skip", **changes))


@pytest.mark.parametrize("stop", [1, 3])
def test_resume_amid_skipped_steps_is_bit_identical(recipe, tmp_path, monkeypatch, corrupt, stop):
    """Includes the first step, whose checkpoint has no moments."""
    corrupt(1, 2, 4)
    monkeypatch.setenv(STOP_AFTER, str(stop))
    assert train(skipping(recipe), tmp_path / "run", StopSignal()) is ExitCode.STOPPED
    monkeypatch.delenv(STOP_AFTER)
    for run in ("run", "reference"):
        assert train(skipping(recipe), tmp_path / run, StopSignal()) is ExitCode.SUCCESS
        rows = [row for row in merged_events(tmp_path / run) if row["event"] == "skipped"]
        assert [row["step"] for row in rows] == [1, 2, 4]
        assert all(len(row["keys"]) == len(row["suspects"]) == 6 for row in rows)
        losses = [row["loss"] for row in merged_metrics(tmp_path / run)]
        assert [math.isnan(loss) for loss in losses] == [True, True, False, True, False]
    assert run_digest(tmp_path / "run") == run_digest(tmp_path / "reference")


def test_skip_limit_counts_skipped_steps_before_a_resume(recipe, tmp_path, monkeypatch, corrupt):
    corrupt(2, 3, 4, 5)
    limited = skipping(recipe, skip_limit=2)
    monkeypatch.setenv(STOP_AFTER, "3")
    assert train(limited, tmp_path / "run", StopSignal()) is ExitCode.STOPPED
    monkeypatch.delenv(STOP_AFTER)
    messages = []
    for run in ("run", "reference"):
        with pytest.raises(NumericalError, match=r"train\.skip_limit is 2") as caught:
            train(limited, tmp_path / run, StopSignal())
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert messages[0].startswith("step 4: ")
    assert run_digest(tmp_path / "run") == run_digest(tmp_path / "reference")


def test_run_ended_by_nonfinite_step_keeps_all_good_steps(recipe, tmp_path, corrupt):
    corrupt(4)
    with pytest.raises(NumericalError, match="step 4: "):
        train(recipe, tmp_path / "run", StopSignal())
    assert steps(tmp_path / "run")[-1] == 3
    assert events(tmp_path / "run")[-2:] == ["checkpoint", "failed"]
    for run in ("run", "reference"):
        assert train(skipping(recipe), tmp_path / run, StopSignal()) is ExitCode.SUCCESS
    assert run_digest(tmp_path / "run") == run_digest(tmp_path / "reference")


def test_full_disk_ends_the_run_and_free_space_lets_it_resume(recipe, tmp_path):
    assert train(recipe, tmp_path / "reference", StopSignal()) is ExitCode.SUCCESS
    newest = RunFolder(tmp_path / "reference").checkpoints / str(
        list_checkpoints(RunFolder(tmp_path / "reference"))[-1]
    )
    size = sum(path.stat().st_size for path in newest.iterdir()) >> 10
    run = RunFolder(tmp_path / "run")
    with small_disk(run.checkpoints, kibibytes=size * 3 // 2 + 1100):
        with pytest.raises(CheckpointError, match=r"\d MiB .*\d MiB") as caught:
            train(recipe, run.path, StopSignal())
        assert "\n" not in str(caught.value)
        assert steps(run.path) == [2]
        failed = merged_events(run.path)[-1]
        assert (failed["event"], failed["exit_code"], failed["reason"]) == ("failed", 1, str(caught.value))
        shutil.copytree(run.checkpoints, tmp_path / "copy")
    shutil.copytree(tmp_path / "copy", run.checkpoints, dirs_exist_ok=True)
    assert train(recipe, run.path, StopSignal()) is ExitCode.SUCCESS
    assert run_digest(run.path) == run_digest(tmp_path / "reference")


def test_crash_loop_ends_the_run_until_started_by_hand(recipe, tmp_path):
    run = RunFolder(tmp_path / "run")
    for number in (1, 2, 3):  # as attempts that were killed at once
        run.attempt(number).path.mkdir(parents=True)
        os.utime(run.attempt(number).path, (1, 1))
    with pytest.raises(RunError, match=r"\b1\b.*\b2\b.*\b3\b"):
        train(recipe, run.path, StopSignal())
    assert [(row["event"], row["attempt"]) for row in merged_events(run.path)] == [("started", 4), ("failed", 4)]
    assert train(recipe, run.path, StopSignal()) is ExitCode.SUCCESS


def test_changed_code_is_reported_or_refused(recipe, tmp_path):
    run = RunFolder(tmp_path / "run")
    notice = StopSignal()
    notice.trigger(StopReason.REQUESTED)
    train(recipe, run.path, notice)
    assert "code_changed" not in events(run.path)
    record = json.loads((run.code / "code.json").read_text())
    changed = record | {"digest": "0" * 12, "files": record["files"] | {"optim.py": "0" * 64}}
    (run.code / "code.json").write_text(json.dumps(changed))
    refusing = replace(recipe, run=replace(recipe.run, code_change="refuse"))
    with pytest.raises(ConfigError, match=r"run\.code_change: .*optim\.py"):
        train(refusing, run.path, StopSignal())
    assert train(recipe, run.path, StopSignal()) is ExitCode.SUCCESS
    [row] = [row for row in merged_events(run.path) if row["event"] == "code_changed"]
    assert (row["before"], row["now"], row["files"]) == ("0" * 12, record["digest"], ["optim.py"])
