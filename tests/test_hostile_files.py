"""Thousands of mutated files of every text format and of tars end in results or in our errors."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MUTATIONS = {"YAML": 1500, "JSON": 1500, "rows": 1500, "tar": 500}
MAX_SECONDS = 10


@pytest.fixture(scope="module")
def trained_run(tiny_shards, train_to_the_end, tmp_path_factory):
    """A finished training with its evaluation."""
    run = tmp_path_factory.mktemp("trained") / "run"
    settings = ("model.name=resnet_gn_tiny", "model.embedding_dim=8", "data.image_size=16", "train.global_batch=6")
    train_to_the_end(run, f"data.shards={tiny_shards}", *settings, "train.steps=3", "checkpoint.every=2", nproc=1)
    return run


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", MUTATIONS)
def test_mutated_files_end_in_our_errors_within_memory_and_time(tmp_path, tiny_shards, trained_run, kind):
    shutil.copytree(tiny_shards, tmp_path / "shards")
    shutil.copytree(trained_run, tmp_path / "run")
    # In a process of its own, since a crash of a parser would end this one.
    command = [sys.executable, "-m", "tests.file_fuzzer", kind, str(MUTATIONS[kind]), "shards", "run"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr[-4000:])
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["files"] == MUTATIONS[kind]
    assert found["slowest"] < MAX_SECONDS
    assert found["refused"] > MUTATIONS[kind] // 20, found
