"""A failed save ends all ranks with the same message."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from hsadml_dist.checkpoint.layout import list_checkpoints
from hsadml_dist.errors import ExitCode
from hsadml_dist.run.folder import RunFolder
from tests.checkpoint.test_save import small_disk
from tests.distributed.conftest import Launch
from tests.distributed.training_runs import event_rows

EVERY = 40
SETTINGS = (
    "model.name=resnet_gn_tiny",
    "data.image_size=32",
    "train.steps=4000",
    "train.global_batch=6",
    f"checkpoint.every={EVERY}",
    "evaluation.at_end=false",
    "run.tensorboard=false",
)


def test_full_disk_ends_all_ranks_and_keeps_previous_checkpoint(
    tiny_shards: Path, launch: Launch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(tmp_path / "run")
    with small_disk(run.path, kibibytes=6 * 1024):
        job = launch(run.path, f"data.shards={tiny_shards}", *SETTINGS)
        job.wait_for_step(EVERY + 10)
        free = 1024 * 1024
        (run.path / "other").write_bytes(b"x" * (shutil.disk_usage(run.path).free - free))
        assert job.exit_code() == ExitCode.USER_ERROR
        failed_at = list_checkpoints(run)[-1].step + EVERY
        assert failed_at <= job.steps() < failed_at + EVERY, "the run must end before the next save"
        (failed,) = event_rows(run.path, "failed")
    assert failed["exit_code"] == 1
    lines = [re.fullmatch(r"hsadml: rank (\d): (.*)", line) for line in capfd.readouterr().err.splitlines()]
    assert sorted(line[1] for line in lines if line and line[2] == failed["reason"]) == ["0", "1"]
