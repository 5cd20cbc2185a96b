"""Train on shards behind a server, resume and evaluate; each shard is downloaded once."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from hsadml_dist.config.yaml_loader import load_recipe
from hsadml_dist.data.index import load_index
from hsadml_dist.errors import ExitCode
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
    "run.tensorboard=false",
)


def test_remote_shards_train_resume_and_evaluate(
    tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("XDG_CACHE_HOME", "cache"), ("SCRATCH_HERE", "scratch")):
        monkeypatch.setenv(name, str(tmp_path / value))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server(tiny_shards)
    run = tmp_path / "run"
    arguments = ("demo", f"data.shards={server.address}", "data.stage=$SCRATCH_HERE/shards", *SETTINGS, "--run", run)
    index = load_index(tiny_shards)
    faulty = index.shards[index.samples[index.outside_folds([0])[0]].shard].name
    server.plans[faulty] = ["503", "wrong"]
    stop = {**os.environ, STOP_AFTER: "4"}
    hsadml("train", *arguments, "data.workers=1", "--nproc", "2", expect=ExitCode.STOPPED, environ=stop)
    hsadml("train", *arguments, "--nproc", "1")
    assert [row["step"] for row in merged_metrics(run)] == list(range(1, 7))

    recipe = load_recipe(RunFolder(run).config).recipe
    assert (recipe.data.shards, recipe.data.stage) == (server.address, "$SCRATCH_HERE/shards")
    asked = Counter(name for name in server.requested if name.endswith(".tar"))
    assert asked.pop(faulty) == 3
    assert set(asked.values()) == {1}, "one download for two ranks with workers, a prefetching process and two starts"
    result = json.loads(hsadml("evaluate", run, "--json"))
    assert result["data_digest"] == index.digest
    copies = {path.stem for path in (tmp_path / "scratch" / "shards").glob("*.tar")}
    assert copies == {file.sha256 for file in index.shards}, "the evaluation downloads the test shards"
    server.close()
