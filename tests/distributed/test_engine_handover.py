"""Continue one training under other engines, ZeRO stages and numbers of ranks, with the command line."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from pathlib import Path

import pytest

from hsadml_dist.checkpoint.layout import list_checkpoints
from hsadml_dist.checkpoint.tensor_files import list_groups, read_group
from hsadml_dist.errors import ExitCode
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


def train_until(shards: Path, run: Path, until: int, name: str, stage: int, world: int) -> None:
    """Train up to a step under an engine."""
    os.environ[STOP_AFTER] = str(until)
    engine = (f"engine.name={name}", f"engine.zero_stage={stage}", "--nproc", str(world))
    expect = ExitCode.SUCCESS if until == TURN * len(CHAIN) else ExitCode.STOPPED
    hsadml("train", "demo", f"data.shards={shards}", *SETTINGS, *SMALL, *engine, "--run", run, expect=expect)


def rows_of(run: Path, turn: int) -> tuple[list[float], list[list[str]]]:
    """Return the losses and the sample keys of the steps of one turn."""
    span = range((turn - 1) * TURN + 1, turn * TURN + 1)
    losses = [row["loss"] for row in merged_metrics(run) if row["step"] in span]
    return losses, [row["keys"] for row in merged_ledger(run) if row["step"] in span]


def test_every_engine_resumes_every_other_at_any_world_size(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Compare each handover with a copy of the run that continues under its former engine for the same steps."""
    monkeypatch.setenv(STOP_AFTER, "0")
    moved, report = tmp_path / "moved", []
    train_until(shards, moved, TURN, *CHAIN[0])
    for turn, (before, after) in enumerate(itertools.pairwise(CHAIN), start=2):
        unmoved = shutil.copytree(moved, tmp_path / f"unmoved-{turn}")
        train_until(shards, unmoved, turn * TURN, *before)
        train_until(shards, moved, turn * TURN, *after)
        (losses, keys), (expected, same) = rows_of(moved, turn), rows_of(unmoved, turn)
        assert len(keys) == TURN and keys == same, "the ledgers differ"
        difference = max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True))
        report.append(f"{_words(*before)} -> {_words(*after)}: the next {TURN} losses within {difference:.1e}")
        assert difference <= 1e-5, report
        names = [_names(run) for run in (moved, unmoved)]
        assert names[0] == names[1], "the names in a checkpoint do not depend on the engine"
    assert [row["step"] for row in merged_events(moved) if row["event"] == "resumed"] == [10, 20, 30, 40]
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(report) + "\n")


def _words(name: str, stage: int, world: int) -> str:
    engine = f"ZeRO {stage}" if name == "deepspeed" else "DDP"
    return f"{engine}, {world} ranks"


def _names(run: Path) -> dict[str, list[str]]:
    folder = RunFolder(run).checkpoints / str(list_checkpoints(RunFolder(run))[-1])
    return {group: sorted(read_group(folder, group)) for group in list_groups(folder)}
