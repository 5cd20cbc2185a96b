import contextlib
import os
import shutil
import subprocess
from collections import namedtuple

import pytest

from hsadml_dist.checkpoint import save
from hsadml_dist.checkpoint.layout import CheckpointName, list_checkpoints
from hsadml_dist.checkpoint.load import find_damage, load_checkpoint
from hsadml_dist.checkpoint.save import save_checkpoint
from hsadml_dist.checkpoint.tensor_files import write_tensors
from hsadml_dist.errors import CheckpointError, RunLockedError

Usage = namedtuple("Usage", "total used free")


def steps(run):
    return [name.step for name in list_checkpoints(run.folder)]


def entries(run):
    return sorted(path.name for path in run.folder.checkpoints.iterdir())


def test_save_leaves_only_the_complete_checkpoint(run):
    name = run.save(1, 10)
    assert name == CheckpointName(10, 1)
    assert entries(run) == ["step-00000010.attempt-0001"]
    assert find_damage(run.path(name)) is None


@contextlib.contextmanager
def small_disk(path, kibibytes):
    """Mount a small tmpfs at ``path``; skips the test where that is not permitted."""
    path.mkdir(parents=True)
    options = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(options, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs permission to mount a tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_disk_that_fills_up_during_a_save_keeps_earlier_checkpoints(run, state, monkeypatch):
    with small_disk(run.folder.checkpoints, kibibytes=64):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**30, 0, 2**30))
        first = save_checkpoint(run.folder, run.folder.attempt(1), state(10))
        (run.folder.checkpoints / "other").write_bytes(b"x" * 20_000)
        with pytest.raises(CheckpointError, match=r"step-00000020\.attempt-0001.*no space left"):
            save_checkpoint(run.folder, run.folder.attempt(1), state(20))
        assert entries(run) == ["other", "step-00000010.attempt-0001"]
        assert find_damage(run.path(first)) is None
        (run.folder.checkpoints / "other").unlink()
        assert save_checkpoint(run.folder, run.folder.attempt(1), state(20)) == CheckpointName(20, 1)


def test_unwritable_folder_raises_checkpoint_error(run, state):
    run.folder.checkpoints.write_text("a file in the way")
    with pytest.raises(CheckpointError, match="File exists"):
        save_checkpoint(run.folder, run.folder.attempt(1), state(10))


def test_superseded_attempt_writes_nothing(run, state):
    run.save(1, 10)
    run.folder.attempt(2).path.mkdir()
    with pytest.raises(RunLockedError, match="attempt 1 "):
        save_checkpoint(run.folder, run.folder.attempt(1), state(40))
    assert entries(run) == ["step-00000010.attempt-0001"]


def test_attempt_superseded_during_a_save_commits_nothing(run, state, monkeypatch):
    def and_a_successor_starts(path, tensors):
        run.folder.attempt(2).path.mkdir(exist_ok=True)
        return write_tensors(path, tensors)

    monkeypatch.setattr(save, "write_tensors", and_a_successor_starts)
    with pytest.raises(RunLockedError):
        save_checkpoint(run.folder, run.folder.attempt(1), state(10))
    assert entries(run) == []


def test_interrupted_save_is_ignored_by_the_next_one(run, state):
    run.save(1, 10)
    half = run.folder.checkpoints / ".step-00000020.attempt-0001.tmp"
    shutil.copytree(run.path(CheckpointName(10, 1)), half)
    assert steps(run) == [10]
    run.begin(2, CheckpointName(10, 1))
    name = save_checkpoint(run.folder, run.folder.attempt(2), state(20))
    assert load_checkpoint(run.folder, name).progress.step == 20
