import json
import os
import shutil
from pathlib import Path

import pytest

from hsadml_dist.launch.doctor import disk_checks as disk
from hsadml_dist.launch.doctor.check_results import CheckResult
from hsadml_dist.launch.doctor.disk_checks import GIBIBYTE, WRITTEN, DiskSpeed, SaveCost, read_save_cost
from hsadml_dist.run.folder import RunFolder


def rewrite(source, target):
    """What a rename is not: the target is empty for a while, then half written."""
    text = source.read_text()
    with target.open("w") as file:
        for place in range(0, len(text), 64):
            file.write(text[place : place + 64])
            file.flush()


def test_a_rename_is_never_seen_half_done_and_a_rewrite_is(tmp_path):
    assert disk.count_torn_reads(tmp_path) == 0
    assert disk.count_torn_reads(tmp_path, rewrite) > 0


def test_of_several_that_make_a_folder_one_succeeds(tmp_path):
    assert disk.count_mkdir_winners(tmp_path, 3, 20) == [1] * 20
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    # Where making a folder that exists succeeds, all believe that they have won.
    assert disk.count_mkdir_winners(tmp_path, 3, 20, lambda path: path.mkdir(exist_ok=True)) == [3] * 20


def test_everything_is_found_and_nothing_is_left(tmp_path):
    found = list(disk.check_disk(tmp_path, None))
    names = [one.name for one in found if isinstance(one, CheckResult)]
    assert names == [
        *("folder", "free space", "free inodes", "write + fsync", "rename", "exclusive mkdir", "file clock")
    ]
    assert isinstance(found[-1], DiskSpeed)
    assert found[-1].write_seconds > 0 and found[-1].hash_seconds > 0
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_one_failure():
    *_, last = disk.check_disk(Path("/proc"), None)
    assert (last.name, last.verdict) == ("writing", "fail")


@pytest.mark.parametrize(
    ("free", "needed", "verdict"),
    [
        (100, None, "ok"),
        (5, None, "warn"),
        (0.5, None, "fail"),
        (100, 50, "ok"),
        (40, 50, "fail"),
    ],
)
def test_room(free, needed, verdict):
    assert disk.check_free_space(free * GIBIBYTE, needed and needed * GIBIBYTE).verdict == verdict


@pytest.mark.parametrize(
    ("total", "free", "verdict"), [(0, 0, "ok"), (1e7, 1e6, "ok"), (1e7, 5e4, "warn"), (9, 3, "fail")]
)
def test_inodes(total, free, verdict):
    assert disk.check_free_inodes(int(total), int(free)).verdict == verdict


@pytest.mark.parametrize(
    ("seconds", "verdict", "text"), [(0.01, "ok", "within"), (-1, "ok", "1.0 s behind"), (3, "warn", "3.0 s ahead")]
)
def test_the_file_servers_clock(seconds, verdict, text):
    found = disk.check_file_clock(seconds)
    assert found.verdict == verdict and text in found.found


def test_slow_torn_and_lost_are_told():
    assert disk.check_write_rate(49.9).verdict == "warn"
    assert disk.check_write_rate(50.1).verdict == "ok"
    assert disk.check_atomic_rename(1).verdict == "fail"
    assert disk.check_exclusive_mkdir([1, 2]).verdict == "fail"
    assert disk.check_exclusive_mkdir([1, 0]).found.startswith("one winner in 1 of 2 races")


def test_speed_counts_the_hash_for_a_save_only():
    speed = DiskSpeed(write_seconds=1.0, hash_seconds=0.5)
    assert speed.write_rate == pytest.approx(67.1, abs=0.1)
    assert speed.save_seconds(disk.WRITTEN * 2) == pytest.approx(3.0)


def test_the_folder_that_will_be_made_lies_on_its_parents_file_system(tmp_path):
    assert disk.existing_parent(tmp_path / "runs" / "mine") == tmp_path
    assert disk.existing_parent(Path("nowhere/at/all")) == Path.cwd()


def test_the_file_system_is_the_innermost_that_is_mounted_there(tmp_path):
    assert disk.file_system_of(Path("/proc/self")) == ("proc", "/proc")
    kind, mount = disk.file_system_of(tmp_path)
    assert kind and os.path.ismount(mount) and tmp_path.is_relative_to(mount)


SPEED = DiskSpeed(write_seconds=1.0, hash_seconds=0.5)


@pytest.fixture
def run(tmp_path):
    """A run of three steps and two checkpoints, one that was cut while it was written, and one that was torn later."""
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


def test_what_a_runs_folder_shows(run):
    assert read_save_cost(run) == SaveCost(size=1000, kept=1100, step_seconds=0.5)


def test_a_run_without_a_checkpoint_shows_nothing(run, tmp_path):
    assert read_save_cost(RunFolder(tmp_path / "none")) is None
    run.attempt(1).metrics.unlink()
    assert read_save_cost(run) is None


def test_two_steps_and_two_saves_come_after_a_notice():
    saves = SaveCost(size=WRITTEN, kept=0, step_seconds=0.25)
    assert saves.stop_seconds(SPEED) == pytest.approx(2 * 0.25 + 2 * 1.5)
