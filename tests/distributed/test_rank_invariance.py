"""A training does not depend on its number of ranks and loader workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from hsadml_dist.checkpoint.digest import run_digest
from hsadml_dist.run.history import merged_ledger, merged_metrics
from tests.conftest import Train
from tests.distributed.training_runs import SETTINGS

WORLDS = (1, 2, 3, 4)
STEPS = 20


@pytest.fixture(scope="module")
def by_ranks(shards: Path, train_to_the_end: Train, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Runs in fp64 of 1 to 4 ranks, of more than two epochs."""
    runs = {world: tmp_path_factory.mktemp("ranks") / f"w{world}" for world in WORLDS}
    small = ("model.name=resnet_gn_tiny", "data.image_size=48", "engine.precision=fp64", f"train.steps={STEPS}")
    for world, run in runs.items():
        train_to_the_end(run, f"data.shards={shards}", *SETTINGS, *small, nproc=world)
    return runs


def test_any_world_size_keeps_sample_order(by_ranks: dict[int, Path]) -> None:
    ledgers = [[(row["step"], row["keys"]) for row in merged_ledger(run)] for run in by_ranks.values()]
    assert len(ledgers[0]) == STEPS
    assert all(ledger == ledgers[0] for ledger in ledgers)


def test_epoch_contains_each_training_sample_once(by_ranks: dict[int, Path], shards: Path) -> None:
    from hsadml_dist.data.index import load_index

    index = load_index(shards)
    expected = sorted(index.samples[position].key for position in index.outside_folds([0]))
    keys = [key for row in merged_ledger(by_ranks[2]) for key in row["keys"]]
    assert len(keys) > 2 * len(expected), "the run is too short for this test"
    assert sorted(keys[: len(expected)]) == expected
    assert sorted(keys[len(expected) : 2 * len(expected)]) == expected


def test_any_world_size_keeps_fp64_losses_within_1e_9(by_ranks: dict[int, Path]) -> None:
    losses = {world: [row["loss"] for row in merged_metrics(run)] for world, run in by_ranks.items()}
    for world, series in losses.items():
        assert max(abs(a - b) for a, b in zip(series, losses[1], strict=True)) <= 1e-9, f"{world} ranks"


def test_number_of_loader_workers_does_not_change_checkpoint(
    shards: Path, train_to_the_end: Train, tmp_path: Path
) -> None:
    few = ("model.name=resnet_gn_tiny", "train.steps=8")
    texts = set()
    for workers in (0, 1, 2):
        run = tmp_path / f"workers{workers}"
        train_to_the_end(run, f"data.shards={shards}", *SETTINGS, *few, f"data.workers={workers}", nproc=1)
        texts.add(run_digest(run))
    assert len(texts) == 1
