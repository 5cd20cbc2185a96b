"""A training handed from engine to engine, ZeRO stage to stage and one number of ranks to another, by its command."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from hsadml_dist.checkpoint.layout import committed
from hsadml_dist.checkpoint.rows import group_names, read_rows
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.merged import merged_events, merged_ledger, merged_metrics
from tests.distributed.jobs import SETTINGS, hsadml

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
    os.environ["HSADML_STOP_AFTER"] = str(until)
    engine = (f"engine.name={name}", f"engine.zero_stage={stage}", "--nproc", str(world))
    over = until == TURN * len(CHAIN)
    hsadml("train", "demo", f"data.shards={shards}", *SETTINGS, *SMALL, *engine, "--run", run, expect=0 if over else 85)


def relative(one: list[float], other: list[float]) -> float:
    """Return the largest relative difference."""
    return max(abs(a - b) / abs(b) for a, b in zip(one, other, strict=True))


def test_any_engine_goes_on_from_any_other_on_any_number_of_ranks(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HSADML_STOP_AFTER", "0")
    moved, calm = tmp_path / "moved", tmp_path / "calm"
    for turn, (name, stage, world) in enumerate(CHAIN, start=1):
        trained(shards, moved, turn * TURN, name, stage, world)
    trained(shards, calm, len(CHAIN) * TURN, "ddp", 0, 2)

    assert [row["step"] for row in merged_events(moved) if row["event"] == "resumed"] == [10, 20, 30, 40]
    ledgers = [[(row["step"], row["keys"]) for row in merged_ledger(run)] for run in (moved, calm)]
    assert len(ledgers[0]) == len(CHAIN) * TURN
    assert ledgers[0] == ledgers[1]
    losses, expected = ([row["loss"] for row in merged_metrics(run)] for run in (moved, calm))
    apart = [relative(losses[i : i + TURN], expected[i : i + TURN]) for i in range(0, len(losses), TURN)]
    with capsys.disabled():
        for (name, stage, world), error in zip(CHAIN, apart, strict=True):
            sys.stdout.write(
                f"\n{name} stage {stage}, {world} ranks: 10 losses within {error:.1e} of DDP's undisturbed"
            )
        sys.stdout.write("\n")
    assert max(apart) <= 1e-5
    newest = [RunFolder(run).checkpoints / str(committed(RunFolder(run))[-1]) for run in (moved, calm)]
    names = [{group: sorted(read_rows(folder, group)) for group in group_names(folder)} for folder in newest]
    assert names[0] == names[1], "a checkpoint does not tell which engine wrote it"
