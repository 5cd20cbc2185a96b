import json
import os
import shutil
from pathlib import Path

import pytest

from hsadml_dist.launch.doctor import disk_checks
from hsadml_dist.launch.doctor.disk_checks import GIBIBYTE, TEST_BYTES, DiskSpeed, SaveCost, read_save_cost
from hsadml_dist.run.folder import RunFolder


def rewrite(source, target):
    """Replace a file non-atomically: it is empty first, then incomplete."""
    text = source.read_text()
    with target.open("w") as file:
        for place in range(0, len(text), 64):
            file.write(text[place : place + 64])
            file.flush()


def test_count_torn_reads_finds_none_with_rename_and_some_with_rewriting(tmp_path):
    assert disk_checks.count_torn_reads(tmp_path) == 0
    assert disk_checks.count_torn_reads(tmp_path, rewrite) > 0


def test_mkdir_has_one_winner_in_each_race(tmp_path):
    assert disk_checks.count_mkdir_winners(tmp_path, 3, 20) == [1] * 20
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    # If creating an existing folder succeeds, all processes believe that they have won.
    assert disk_checks.count_mkdir_winners(tmp_path, 3, 20, lambda path: path.mkdir(exist_ok=True)) == [3] * 20


def test_check_disk_makes_all_checks_and_leaves_no_files(tmp_path):
    results, speed = disk_checks.check_disk(tmp_path, None)
    assert [one.name for one in results] == [
        *("folder", "free space", "free inodes", "write + fsync", "rename", "exclusive mkdir", "file clock")
    ]
    assert speed.write_seconds > 0 and speed.hash_seconds > 0
    assert not list(tmp_path.iterdir())


def test_check_disk_fails_for_an_unwritable_folder():
    results, speed = disk_checks.check_disk(Path("/proc"), None)
    assert (results[-1].name, results[-1].verdict, speed) == ("writing", "fail", None)


@pytest.mark.parametrize(
    ("free", "needed", "status"),
    [
        (100, None, "ok"),
        (5, None, "warn"),
        (0.5, None, "fail"),
        (100, 50, "ok"),
        (40, 50, "fail"),
    ],
)
def test_check_free_space(free, needed, status):
    assert disk_checks.check_free_space(free * GIBIBYTE, needed and needed * GIBIBYTE).verdict == status


@pytest.mark.parametrize(
    ("total", "free", "status"), [(0, 0, "ok"), (1e7, 1e6, "ok"), (1e7, 5e4, "warn"), (9, 3, "fail")]
)
def test_check_free_inodes(total, free, status):
    assert disk_checks.check_free_inodes(int(total), int(free)).verdict == status


@pytest.mark.parametrize(
    ("seconds", "status", "text"), [(0.01, "ok", "0.1 s"), (-1, "ok", "1.0 s behind"), (3, "warn", "3.0 s ahead")]
)
def test_check_file_clock(seconds, status, text):
    found = disk_checks.check_file_clock(seconds)
    assert found.verdict == status and text in found.found


def test_slow_writes_torn_reads_and_lost_races_are_reported():
    assert disk_checks.check_write_rate(49.9).verdict == "warn"
    assert disk_checks.check_write_rate(50.1).verdict == "ok"
    assert disk_checks.check_atomic_rename(1).verdict == "fail"
    assert disk_checks.check_exclusive_mkdir([1, 2]).verdict == "fail"
    assert "1 of 2" in disk_checks.check_exclusive_mkdir([1, 0]).found


def test_save_seconds_include_the_hash_and_write_rate_does_not():
    speed = DiskSpeed(write_seconds=1.0, hash_seconds=0.5)
    assert speed.write_rate == pytest.approx(67.1, abs=0.1)
    assert speed.save_seconds(TEST_BYTES * 2) == pytest.approx(3.0)


def test_existing_parent_of_a_planned_folder(tmp_path):
    assert disk_checks.existing_parent(tmp_path / "runs" / "mine") == tmp_path
    assert disk_checks.existing_parent(Path("nowhere/at/all")) == Path.cwd()


def test_file_system_of_is_the_innermost_mount(tmp_path):
    assert disk_checks.file_system_of(Path("/proc/self")) == ("proc", "/proc")
    kind, mount = disk_checks.file_system_of(tmp_path)
    assert kind and os.path.ismount(mount) and tmp_path.is_relative_to(mount)


SPEED = DiskSpeed(write_seconds=1.0, hash_seconds=0.5)


@pytest.fixture
def run(tmp_path):
    """A run with three steps, two checkpoints, an incomplete save and a checkpoint without its COMMIT file."""
    folder = RunFolder(tmp_path / "run")
    attempt = folder.attempt(1)
    attempt.path.mkdir(parents=True)
    rows = [{"step": step, "attempt": 1, "step_seconds": seconds} for step, seconds in ((1, 9.0), (2, 0.5), (3, 0.5))]
    attempt.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, size in (("step-00000001.attempt-0001", 100), ("step-00000002.attempt-0001", 1000)):
        path = folder.checkpoints / name
        path.mkdir(parents=True)
        (path / "model.safetensors").write_bytes(b"x" * size)
        (path / "COMMIT").write_text("")
    cut = folder.checkpoints / ".step-00000003.attempt-0001.tmp"
    cut.mkdir()
    (cut / "model.safetensors").write_bytes(b"x" * 9999)
    torn = folder.checkpoints / "step-00000003.attempt-0001"
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"x" * 99)
    return folder


def test_read_save_cost_counts_complete_checkpoints(run):
    assert read_save_cost(run) == SaveCost(size=1000, kept=1100, step_seconds=0.5)


def test_read_save_cost_needs_a_checkpoint_and_a_step(run, tmp_path):
    assert read_save_cost(RunFolder(tmp_path / "none")) is None
    run.attempt(1).metrics.unlink()
    assert read_save_cost(run) is None


def test_stop_takes_two_steps_and_two_saves():
    saves = SaveCost(size=TEST_BYTES, kept=0, step_seconds=0.25)
    assert saves.stop_seconds(SPEED) == pytest.approx(2 * 0.25 + 2 * 1.5)
