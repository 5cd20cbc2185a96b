import contextlib
import os
import shutil
import subprocess
from collections import namedtuple

import pytest

from hsadml_dist.checkpoint.layout import CheckpointName, committed
from hsadml_dist.checkpoint.load import read_checkpoint
from hsadml_dist.checkpoint.retention import prune
from hsadml_dist.checkpoint.save import write_checkpoint
from hsadml_dist.checkpoint.verify import fault_in
from hsadml_dist.errors import CheckpointError, RunHeldError

Usage = namedtuple("Usage", "total used free")


def steps(run):
    return [name.step for name in committed(run.folder)]


def entries(run):
    return sorted(path.name for path in run.folder.checkpoints.iterdir())


def test_nothing_but_whole_checkpoints_stays(run):
    name = run.save(1, 10)
    assert name == CheckpointName(10, 1)
    assert entries(run) == ["step-00000010.attempt-0001"]
    assert fault_in(run.path(name)) is None


def test_too_little_space_is_said_before_anything_is_written(run, state, monkeypatch):
    run.save(1, 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**30, 2**30 - 2**19, 2**19))
    with pytest.raises(CheckpointError, match=r"needs 1 MiB and 0 MiB are free; .*checkpoint\.keep"):
        write_checkpoint(run.folder, run.folder.attempt(1), state(20))
    assert entries(run) == ["step-00000010.attempt-0001"]


@contextlib.contextmanager
def small_disk(path, kibibytes):
    path.mkdir(parents=True)
    options = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(options, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_a_disk_that_fills_up_meanwhile_harms_no_earlier_checkpoint(run, state, monkeypatch):
    with small_disk(run.folder.checkpoints, kibibytes=64):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**30, 0, 2**30))
        first = write_checkpoint(run.folder, run.folder.attempt(1), state(10))
        (run.folder.checkpoints / "other").write_bytes(b"x" * 20_000)
        with pytest.raises(CheckpointError, match=r"step-00000020\.attempt-0001 cannot be written: no space left"):
            write_checkpoint(run.folder, run.folder.attempt(1), state(20))
        assert entries(run) == ["other", "step-00000010.attempt-0001"]
        assert fault_in(run.path(first)) is None
        (run.folder.checkpoints / "other").unlink()
        assert write_checkpoint(run.folder, run.folder.attempt(1), state(20)) == CheckpointName(20, 1)


def test_a_folder_that_cannot_be_written(run, state):
    run.folder.checkpoints.write_text("a file stands here")
    with pytest.raises(CheckpointError, match="cannot be written: File exists"):
        write_checkpoint(run.folder, run.folder.attempt(1), state(10))


def test_a_superseded_attempt_writes_and_removes_nothing(run, state):
    for step in (10, 20, 30):
        run.save(1, step)
    run.folder.attempt(2).path.mkdir()
    with pytest.raises(RunHeldError, match="later attempt has started; attempt 1 writes nothing more"):
        write_checkpoint(run.folder, run.folder.attempt(1), state(40))
    prune(run.folder, run.folder.attempt(1), keep=1, keep_every=None)
    assert steps(run) == [10, 20, 30]


@pytest.mark.parametrize(
    ("keep", "keep_every", "left"),
    [
        (1, None, [60]),
        (2, None, [50, 60]),
        (2, 20, [20, 40, 50, 60]),
        (1, 30, [30, 60]),
        (9, None, [10, 20, 30, 40, 50, 60]),
    ],
)
def test_prune_keeps_the_newest_and_every_nth(run, keep, keep_every, left):
    for step in range(10, 70, 10):
        run.save(1, step)
    prune(run.folder, run.folder.attempt(1), keep, keep_every)
    assert steps(run) == left
    assert len(entries(run)) == len(left)


def test_prune_counts_along_the_line_and_clears_what_is_beside_it(run):
    first, _ = run.save(1, 10), run.save(1, 20)
    run.begin(2, first)
    run.save(2, 15)
    prune(run.folder, run.folder.attempt(2), keep=2, keep_every=None)
    assert committed(run.folder) == [CheckpointName(10, 1), CheckpointName(15, 2)]


def test_prune_never_touches_a_later_attempts_files(run, monkeypatch):
    """Also where the look for later attempts came a moment too early."""
    first = run.save(1, 10)
    run.save(1, 30)
    run.begin(2, first)
    for step in (11, 12, 13):
        run.save(2, step)
    (run.folder.checkpoints / ".step-00000014.attempt-0002.tmp").mkdir()
    monkeypatch.setattr("hsadml_dist.checkpoint.save.is_superseded", lambda run, attempt: False)
    prune(run.folder, run.folder.attempt(1), keep=1, keep_every=None)
    assert [name for name in entries(run) if "attempt-0002" in name] == [
        ".step-00000014.attempt-0002.tmp",
        *(f"step-{step:08d}.attempt-0002" for step in (11, 12, 13)),
    ]


def test_prune_clears_what_a_killed_attempt_left_half_written(run):
    run.save(1, 10)
    half = run.folder.checkpoints / ".step-00000020.attempt-0001.tmp"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    prune(run.folder, run.folder.attempt(1), keep=2, keep_every=None)
    assert half.exists(), "it may be this attempt's own, under way"
    run.begin(2, CheckpointName(10, 1))
    prune(run.folder, run.folder.attempt(2), keep=2, keep_every=None)
    assert entries(run) == ["step-00000010.attempt-0001"]


def test_what_was_half_written_is_no_checkpoint_and_in_nobodys_way(run, state):
    run.save(1, 10)
    half = run.folder.checkpoints / ".step-00000020.attempt-0001.tmp"
    shutil.copytree(run.path(CheckpointName(10, 1)), half)
    assert steps(run) == [10]
    run.begin(2, CheckpointName(10, 1))
    name = write_checkpoint(run.folder, run.folder.attempt(2), state(20))
    assert read_checkpoint(run.folder, name).progress.step == 20
