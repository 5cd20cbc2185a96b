"""A training handed from engine to engine, ZeRO stage to stage and one number of ranks to another, by its command."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from pathlib import Path

import pytest

from hsadml_dist.checkpoint.layout import list_checkpoints
from hsadml_dist.checkpoint.tensor_files import list_groups, read_group
from hsadml_dist.preemption.signals import STOP_AFTER
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.history import merged_events, merged_ledger, merged_metrics
from tests.distributed.training_runs import SETTINGS, hsadml

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]
TURN = 10
CHAIN = [("ddp", 0, 2), ("deepspeed", 3, 4), ("deepspeed", 1, 1), ("deepspeed", 2, 2), ("deepspeed", 0, 4)]
SMALL = (
    "model.name=resnet_gn_tiny",
    "data.image_size=48",
    f"train.steps={TURN * len(CHAIN)}",
    "optim.ema_decay=0.9",
    "checkpoint.keep=10",
)


def trained(shards: Path, run: Path, until: int, name: str, stage: int, world: int) -> None:
    """Train on to a step under an engine, as a user does who stops there."""
    os.environ[STOP_AFTER] = str(until)
    engine = (f"engine.name={name}", f"engine.zero_stage={stage}", "--nproc", str(world))
    over = until == TURN * len(CHAIN)
    hsadml("train", "demo", f"data.shards={shards}", *SETTINGS, *SMALL, *engine, "--run", run, expect=0 if over else 85)


def rows_of(run: Path, turn: int) -> tuple[list[float], list[list[str]]]:
    """Return the losses and the sample keys of a turn's steps."""
    span = range((turn - 1) * TURN + 1, turn * TURN + 1)
    losses = [row["loss"] for row in merged_metrics(run) if row["step"] in span]
    return losses, [row["keys"] for row in merged_ledger(run) if row["step"] in span]


def test_any_engine_goes_on_from_any_other_on_any_number_of_ranks(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each hand-over is compared with a copy of the run that stays where it was for as many steps."""
    monkeypatch.setenv(STOP_AFTER, "0")
    moved, told = tmp_path / "moved", []
    trained(shards, moved, TURN, *CHAIN[0])
    for turn, (before, after) in enumerate(itertools.pairwise(CHAIN), start=2):
        stays = shutil.copytree(moved, tmp_path / f"stays-{turn}")
        trained(shards, stays, turn * TURN, *before)
        trained(shards, moved, turn * TURN, *after)
        (losses, keys), (expected, same) = rows_of(moved, turn), rows_of(stays, turn)
        assert len(keys) == TURN and keys == same, "the ledgers differ"
        apart = max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True))
        told.append(f"{_words(*before)} -> {_words(*after)}: the next {TURN} losses within {apart:.1e}")
        assert apart <= 1e-5, told
        names = [_names(run) for run in (moved, stays)]
        assert names[0] == names[1], "a checkpoint does not tell which engine wrote it"
    assert [row["step"] for row in merged_events(moved) if row["event"] == "resumed"] == [10, 20, 30, 40]
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(told) + "\n")


def _words(name: str, stage: int, world: int) -> str:
    engine = f"ZeRO {stage}" if name == "deepspeed" else "DDP"
    return f"{engine}, {world} ranks"


def _names(run: Path) -> dict[str, list[str]]:
    folder = RunFolder(run).checkpoints / str(list_checkpoints(RunFolder(run))[-1])
    return {group: sorted(read_group(folder, group)) for group in list_groups(folder)}
