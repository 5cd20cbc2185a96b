"""A training whose shards are behind a server: cut and gone on with, judged, and each shard fetched once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from hsadml_dist.config.yaml_loader import load_recipe
from hsadml_dist.data.index import load_index
from hsadml_dist.preemption.signals import STOP_AFTER
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.history import merged_metrics
from tests.data.shard_server import Server
from tests.distributed.training_runs import hsadml

SETTINGS = (
    "model.name=resnet_gn_small",
    "model.embedding_dim=16",
    "data.image_size=32",
    "data.order=window",
    "data.window=2",
    "train.steps=6",
    "train.global_batch=12",
    "optim.warmup_steps=2",
    "checkpoint.every=3",
    "evaluation.at_end=false",
    "evaluation.resamples=100",
    "run.tensorboard=false",
)


def test_shards_behind_a_server_train_go_on_and_are_judged(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(tiny_shards)
    for name, value in (("XDG_CACHE_HOME", "cache"), ("SCRATCH_HERE", "scratch")):
        monkeypatch.setenv(name, str(tmp_path / value))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    far = tmp_path / "far"
    words = ("demo", f"data.shards={server.address}", "data.stage=$SCRATCH_HERE/shards", *SETTINGS, "--run", far)
    index = load_index(tiny_shards)
    unlucky = index.shards[index.samples[index.outside_folds([0])[0]].shard].name
    server.plans[unlucky] = ["503", "wrong"]
    monkeypatch.setenv(STOP_AFTER, "4")
    hsadml("train", *words, "data.workers=1", "--nproc", "2", expect=85)
    monkeypatch.delenv(STOP_AFTER)
    hsadml("train", *words, "--nproc", "1")
    assert [row["step"] for row in merged_metrics(far)] == list(range(1, 7))

    recipe = load_recipe(RunFolder(far).config).recipe
    assert (recipe.data.shards, recipe.data.stage) == (server.address, "$SCRATCH_HERE/shards")
    asked = Counter(name for name in server.requested if name.endswith(".tar"))
    assert asked.pop(unlucky) == 3
    assert set(asked.values()) == {1}, "two ranks, a worker each, a process ahead, two starts: one transfer"
    result = json.loads(hsadml("evaluate", far, "--json"))
    assert result["data_digest"] == index.digest
    copies = {path.stem for path in (tmp_path / "scratch" / "shards").glob("*.tar")}
    assert copies == {file.sha256 for file in index.shards}, "the verdict fetched the held-out ones"
    server.close()
