"""Paths that cannot be used, in every argument that names one: one line, an exit code, and nothing is written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hsadml_dist.launch import cli

LONG = "a" * 300
TRAIN = ("train", "demo", "train.steps=2")
BUILD = ("shards", "build")
SUBMIT = ("submit", "demo", "--nodes", "1", "--tasks-per-node", "1", "--dry-run")


@pytest.fixture
def odd(tmp_path, monkeypatch, tiny_shards):
    """A folder with a link to itself, a pipe, and the recipe of a run."""
    monkeypatch.chdir(tmp_path)
    os.symlink("loop", "loop")
    os.mkfifo("fifo")
    os.symlink(tiny_shards, "shards")
    Path("run").mkdir()
    Path("run/config.yaml").write_text("data: {shards: shards}\ntrain: {steps: 2}\n")
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        *(("train", name) for name in ("loop", "fifo", LONG, f"{LONG}.yaml", "/", ".", "")),
        *((*TRAIN, "data.shards=shards", "--run", name) for name in ("loop", "fifo", LONG, "/", ".")),
        *((*TRAIN, "data.shards=shards", "--smoke", "--run", name) for name in ("/", LONG)),
        *((*TRAIN, f"data.shards={name}") for name in ("loop", "fifo", LONG, "/", ".")),
        *((command, name) for command in ("status", "logs", "evaluate", "metrics") for name in ("loop", "fifo", LONG)),
        *(("predict", "run", name) for name in ("loop", LONG)),
        *((*BUILD, "phantom", "2", "--out", name) for name in ("loop", "fifo", LONG, "/", ".")),
        *(
            (*BUILD, source, name, "--out", "o")
            for source in ("folders", "table", "figshare")
            for name in ("loop", "fifo")
        ),
        *((*BUILD, "table", "/", "--out", "o"), (*BUILD, "folders", LONG, "--out", "o")),
        *((*BUILD, "phantom", "2", "--out", "o", "--id-key", name) for name in ("loop", "fifo", LONG, "/")),
        *((*BUILD, "figshare", ".", "--out", "o", "--persons", name) for name in ("loop", "fifo")),
        *(("shards", command, name) for command in ("info", "verify") for name in ("loop", "fifo", LONG)),
        *(("recipes", "copy", "demo", "--to", name) for name in ("loop", LONG, "/")),
        *((*SUBMIT, option, name) for option in ("--profile", "--run") for name in ("loop", "fifo", LONG, "/")),
        *(("evaluate", "run", "--combine", name) for name in ("loop", "fifo")),
    ],
    ids=lambda words: " ".join(words).replace(LONG, "LONG"),
)
def test_path_that_cannot_be_used_is_one_line(odd, capfd, words):
    before = sorted(os.listdir())
    assert cli.main(list(words)) in (1, 2)
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    assert len((out + err).splitlines()) <= 1 + (words[:2] == ("shards", "verify"))
    assert sorted({*os.listdir()} - {"config"}) == before, "apart from the id key"


def test_limit_of_open_files_is_not_taken_for_damaged_images(tiny_shards, tmp_path):
    settings = [f"data.shards={tiny_shards}", "data.image_size=32", "train.steps=1", "data.workers=0"]
    command = [sys.executable, "-m", "hsadml_dist.launch.cli", "train", "demo", *settings, "--run", tmp_path / "run"]
    done = subprocess.run(
        ["sh", "-c", 'ulimit -n 28; exec "$@"', "sh", *command],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "damaged" not in done.stderr
    assert done.returncode == 0 or "Too many open files" in done.stderr
