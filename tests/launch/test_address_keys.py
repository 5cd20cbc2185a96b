"""A whole training from a server with a password and a key in its address: only the recipe shows them."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.data.shard_server import Server

ROOT = Path(__file__).parents[2]
SECRETS = ("pass-w0rd", "t0ken-of-the-address")
SETTINGS = (
    "data.image_size=16",
    "model.name=resnet_gn_tiny",
    "model.embedding_dim=8",
    "train.steps=2",
    "train.global_batch=4",
)

pytestmark = pytest.mark.soak


def command_lines():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            yield Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue


def test_keys_of_an_address_stay_in_the_recipe(tiny_shards, tmp_path):
    server = Server(tiny_shards)
    address = f"{server.address.replace('://', f'://me:{SECRETS[0]}@')}?X-Amz-Signature={SECRETS[1]}"
    (tmp_path / "recipe.yaml").write_text(f"base: demo\ndata:\n  shards: '{address}'\n")
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environ |= {"NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    seen, done = set(), threading.Event()

    def watch():
        while not done.wait(0.02):
            seen.update(command_lines())

    watcher = threading.Thread(target=watch)
    watcher.start()
    outputs = []
    try:
        for words in (
            ["train", "recipe.yaml", *SETTINGS, "--run", "run", "--print-config"],
            ["train", "recipe.yaml", *SETTINGS, "--run", "run"],
            ["train", "recipe.yaml", *SETTINGS, "data.fold=99", "--run", "run"],
            ["evaluate", "run"],
            ["embed", "run", "--out", "a.npz"],
            ["submit", "recipe.yaml", *SETTINGS, "--nodes", "1", "--tasks-per-node", "1", "--dry-run"],
        ):
            command = [sys.executable, "-m", "hsadml_dist.launch.cli", *words]
            ended = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
            outputs.append(ended.stdout + ended.stderr)
            assert ended.returncode == ("data.fold=99" in words), outputs[-1]
    finally:
        server.close()
        done.set()
        watcher.join()
    assert any("hsadml_dist.data.remote" in line for line in seen)
    texts = {"command lines": "\n".join(seen), "outputs": "\n".join(outputs)}
    own = ("recipe.yaml", "config.yaml")
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name not in own]
    texts |= {str(path): path.read_bytes().decode("latin-1") for path in files}
    assert not [(where, secret) for where, text in texts.items() for secret in SECRETS if secret in text]
    assert SECRETS[0] in (tmp_path / "run" / "config.yaml").read_text(), "the training needs it to resume"
    assert (tmp_path / "run" / "config.yaml").stat().st_mode & 0o077 == 0
