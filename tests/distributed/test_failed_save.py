"""A save that fails ends all ranks, each with the same line."""

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


def test_a_full_disk_ends_all_ranks_with_one_line_and_leaves_the_checkpoint_before(
    tiny_shards: Path, launch: Launch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(tmp_path / "run")
    with small_disk(run.path, kibibytes=6 * 1024):
        job = launch(run.path, "demo", f"data.shards={tiny_shards}", *SETTINGS, "--nproc", "2")
        job.wait_for_step(EVERY + 10)
        free = 1024 * 1024
        (run.path / "other").write_bytes(b"x" * (shutil.disk_usage(run.path).free - free))
        assert job.exit_code(within=30) == ExitCode.USER_ERROR
        failed_at = list_checkpoints(run)[-1].step + EVERY
        assert failed_at <= job.steps() < failed_at + EVERY, "the next save was waited for"
        (failed,) = event_rows(run.path, "failed")
    assert failed["exit_code"] == 1
    said = [line for line in capfd.readouterr().err.splitlines() if "checkpoint needs" in line]
    places, texts = zip(*(re.fullmatch(r"hsadml: rank (\d): (.*)", line).groups() for line in said), strict=True)
    assert sorted(places) == ["0", "1"]
    assert set(texts) == {failed["reason"]}
