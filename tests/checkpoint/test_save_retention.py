import shutil
from collections import namedtuple

import pytest

from hsadml_dist.checkpoint import save
from hsadml_dist.checkpoint.layout import CheckpointName, list_checkpoints
from hsadml_dist.checkpoint.save import prune_checkpoints, remove_incomplete, save_checkpoint
from hsadml_dist.errors import CheckpointError

Usage = namedtuple("Usage", "total used free")


def steps(run):
    return [name.step for name in list_checkpoints(run.folder)]


def entries(run):
    return sorted(path.name for path in run.folder.checkpoints.iterdir())


def incomplete_checkpoint(run, attempt, step):
    half = run.folder.checkpoints / f".{CheckpointName(step, attempt)}.tmp"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    return half


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
    prune_checkpoints(run.folder, run.folder.attempt(1), keep, keep_every)
    assert steps(run) == left
    assert len(entries(run)) == len(left)


@pytest.mark.parametrize("keep_every", [None, 10])
def test_prune_removes_checkpoints_outside_the_lineage(run, keep_every):
    first, _ = run.save(1, 10), run.save(1, 20)
    run.begin(2, first)
    run.save(2, 15)
    prune_checkpoints(run.folder, run.folder.attempt(2), keep=2, keep_every=keep_every)
    assert list_checkpoints(run.folder) == [CheckpointName(10, 1), CheckpointName(15, 2)]


def test_prune_of_a_superseded_attempt_removes_nothing(run):
    for step in (10, 20, 30):
        run.save(1, step)
    run.folder.attempt(2).path.mkdir()
    prune_checkpoints(run.folder, run.folder.attempt(1), keep=1, keep_every=None)
    assert steps(run) == [10, 20, 30]


def test_prune_stops_when_a_successor_starts_between_two_removals(run, monkeypatch):
    for step in (10, 20, 30, 40):
        run.save(1, step)
    remove = shutil.rmtree

    def remove_and_start_a_successor(folder, **options):
        remove(folder, **options)
        run.folder.attempt(2).path.mkdir()

    monkeypatch.setattr(save.shutil, "rmtree", remove_and_start_a_successor)
    prune_checkpoints(run.folder, run.folder.attempt(1), keep=1, keep_every=None)
    assert steps(run) == [20, 30, 40]


def test_prune_never_touches_files_of_a_later_attempt(run, monkeypatch):
    """Even if the check for later attempts came a moment too early."""
    first = run.save(1, 10)
    run.save(1, 30)
    run.begin(2, first)
    for step in (11, 12, 13):
        run.save(2, step)
    incomplete_checkpoint(run, 2, 14)
    monkeypatch.setattr(save, "is_superseded", lambda run, attempt: False)
    prune_checkpoints(run.folder, run.folder.attempt(1), keep=1, keep_every=None)
    remove_incomplete(run.folder, run.folder.attempt(1))
    assert [name for name in entries(run) if "attempt-0002" in name] == [
        ".step-00000014.attempt-0002.tmp",
        *(f"step-{step:08d}.attempt-0002" for step in (11, 12, 13)),
    ]


def test_incomplete_checkpoint_of_a_killed_attempt_is_removed_by_the_next_save(run, state):
    run.save(1, 10)
    half = incomplete_checkpoint(run, 1, 20)
    save_checkpoint(run.folder, run.folder.attempt(1), state(15))
    assert half.exists(), "it may be a save of this attempt that is running"
    run.begin(2, CheckpointName(15, 1))
    save_checkpoint(run.folder, run.folder.attempt(2), state(20))
    assert entries(run) == ["step-00000010.attempt-0001", "step-00000015.attempt-0001", "step-00000020.attempt-0002"]


def test_space_of_an_incomplete_checkpoint_is_available_for_the_next_save(run, state, monkeypatch):
    half = incomplete_checkpoint(run, 1, 20)
    run.begin(2)

    def usage(path):
        return Usage(2**30, 0, 0 if half.exists() else 2**30)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert save_checkpoint(run.folder, run.folder.attempt(2), state(20)) == CheckpointName(20, 2)


def test_too_little_space_is_reported_before_anything_is_written(run, state, monkeypatch):
    run.save(1, 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**30, 2**30 - 2**19, 2**19))
    with pytest.raises(CheckpointError, match=r"1 MiB.*0 MiB.*checkpoint\.keep"):
        save_checkpoint(run.folder, run.folder.attempt(1), state(20))
    assert entries(run) == ["step-00000010.attempt-0001"]
