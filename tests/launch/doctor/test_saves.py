import json

import pytest

from hsadml_dist.launch.doctor.disk import WRITTEN, DiskSpeed
from hsadml_dist.launch.doctor.saves import SaveCost, read_save_cost
from hsadml_dist.run.folder import RunFolder

SPEED = DiskSpeed(write_seconds=1.0, hash_seconds=0.5)


@pytest.fixture
def run(tmp_path):
    """A run of three steps and two checkpoints, one that was cut while it was written, and one that was torn later."""
    folder = RunFolder(tmp_path / "run")
    attempt = folder.attempt(1)
    attempt.path.mkdir(parents=True)
    rows = [{"step": step, "attempt": 1, "step_seconds": seconds} for step, seconds in ((1, 9.0), (2, 0.5), (3, 0.5))]
    attempt.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, size in (("step-00000001.attempt-0001", 100), ("step-00000002.attempt-0001", 1000)):
        path = folder.checkpoints / name
        path.mkdir(parents=True)
        (path / "model.safetensors").write_bytes(b"x" * size)
        (path / "COMMIT").write_text("")
    cut = folder.checkpoints / ".step-00000003.attempt-0001.tmp"
    cut.mkdir()
    (cut / "model.safetensors").write_bytes(b"x" * 9999)
    torn = folder.checkpoints / "step-00000003.attempt-0001"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"x" * 99)
    return folder


def test_what_a_runs_folder_shows(run):
    assert read_save_cost(run) == SaveCost(size=1000, kept=1100, step_seconds=0.5)


def test_a_run_without_a_checkpoint_shows_nothing(run, tmp_path):
    assert read_save_cost(RunFolder(tmp_path / "none")) is None
    run.attempt(1).metrics.unlink()
    assert read_save_cost(run) is None


def test_two_steps_and_two_saves_come_after_a_notice():
    saves = SaveCost(size=WRITTEN, kept=0, step_seconds=0.25)
    assert saves.stop_seconds(SPEED) == pytest.approx(2 * 0.25 + 2 * 1.5)
