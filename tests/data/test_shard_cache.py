import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hsadml_dist.data import shard_cache as staging
from hsadml_dist.data.index import load_index
from hsadml_dist.data.reader import ShardReader
from hsadml_dist.data.remote import RetryPolicy
from hsadml_dist.data.shard_cache import (
    ShardCache,
    eval_shard_location,
    expand_stage_path,
    stage_path_problem,
    train_shard_location,
)
from hsadml_dist.errors import ConfigError, DataError

SCRIPT = "data/shard_cache_ranks.py"


@pytest.fixture
def index(tiny_shards):
    return load_index(tiny_shards)


@pytest.fixture
def local(tiny_shards, tmp_path):
    """Copies of a folder, not made yet."""
    return ShardCache(source=str(tiny_shards), folder=tmp_path / "stage")


@pytest.fixture
def remote(server, tmp_path):
    """Copies of what a server has, not made yet."""
    return ShardCache(source=server.address, folder=tmp_path / "stage")


def content(stage, file):
    descriptor = stage.open(file)
    try:
        return os.pread(descriptor, file.bytes + 1, 0)
    finally:
        os.close(descriptor)


def names(stage):
    return sorted(path.name for path in stage.folder.iterdir())


def said(caught):
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_a_copy_has_the_shards_bytes_and_its_digest_as_a_name(kind, request, index, tiny_shards):
    stage = request.getfixturevalue(kind)
    for file in index.shards:
        assert not stage.has(file)
        assert content(stage, file) == (tiny_shards / file.name).read_bytes()
        assert stage.has(file)
    assert names(stage) == sorted(f"{file.sha256}{end}" for file in index.shards for end in (".tar", ".lock"))


def test_a_copy_is_made_once_and_shared_by_runs_from_elsewhere(remote, local, server, index):
    file = index.shards[0]
    content(remote, file)
    assert content(remote, file) == content(local, file)
    local.fetch(file)
    assert server.asked == [file.name]


def test_processes_that_want_the_same_shards_at_once_fetch_each_once(ranks, server, tiny_shards, index):
    answers = ranks(SCRIPT, 4, f"everyone {tiny_shards} {server.address}")
    assert Counter(server.asked) == {file.name: 1 for file in index.shards}
    for answer in answers:
        assert set(answer["names"]) == {f"{file.sha256}{end}" for file in index.shards for end in (".tar", ".lock")}


def test_a_dead_holder_gives_the_lock_back_and_what_it_left_is_swept_away(ranks, server, tiny_shards, index, tmp_path):
    file = index.shards[0]
    server.plans[file.name] = ["stall"]
    stage = ShardCache(source=server.address, folder=tmp_path / "stage")
    left = []

    def kill():
        deadline = time.monotonic() + 30
        while not left and time.monotonic() < deadline:
            time.sleep(0.01)
            left.extend(stage.folder.glob(".*"))
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    ranks(SCRIPT, 1, f"holder {tiny_shards} {server.address}", folder=tmp_path, expect=-signal.SIGKILL)
    assert len(left) == 1, "it was in the middle of a copy"
    assert content(stage, file) == (tiny_shards / file.name).read_bytes()
    assert names(stage) == sorted([f"{file.sha256}.tar", f"{file.sha256}.lock"])


def test_wrong_bytes_are_fetched_again(remote, server, index, tiny_shards):
    file = index.shards[1]
    server.plans[file.name] = ["wrong"]
    assert content(remote, file) == (tiny_shards / file.name).read_bytes()
    assert server.asked == [file.name] * 2


def test_wrong_bytes_twice_are_one_line(remote, server, index):
    file = index.shards[1]
    server.plans[file.name] = ["wrong"] * 2
    with pytest.raises(DataError, match=f"^{server.address}: {file.name} is damaged there") as caught:
        remote.open(file)
    assert f"the index says {file.sha256[:16]}..." in said(caught)
    assert server.asked == [file.name] * 2
    assert names(remote) == [f"{file.sha256}.lock"]


def test_a_shard_that_the_server_does_not_have_is_one_line(remote, server, index):
    server.plans[index.shards[0].name] = ["404"]
    with pytest.raises(DataError, match=rf"^{server.address}/{index.shards[0].name}: there is no such file") as caught:
        remote.open(index.shards[0])
    said(caught)
    assert names(remote) == [f"{index.shards[0].sha256}.lock"]


def test_a_server_that_stays_away_is_one_line_and_leaves_nothing(remote, server, index, monkeypatch):
    monkeypatch.setattr(staging.download, "__defaults__", (RetryPolicy(attempts=2, first_seconds=0.01),))
    server.plans[index.shards[0].name] = ["cut", "503"]
    with pytest.raises(DataError, match="given up after 2 attempts: the server answered 503"):
        remote.open(index.shards[0])
    assert names(remote) == [f"{index.shards[0].sha256}.lock"]


def test_faults_of_a_folder_of_shards_are_one_line(tiny_shards, tmp_path, index):
    source = tmp_path / "source"
    shutil.copytree(tiny_shards, source)
    damaged, missing, strange = index.shards[:3]
    flip(source / damaged.name)
    (source / missing.name).unlink()
    (source / strange.name).unlink()
    (source / strange.name).mkdir()
    stage = ShardCache(source=str(source), folder=tmp_path / "stage")
    for file, text in (
        (damaged, f"^{source}: {damaged.name} is damaged there: its SHA-256 is "),
        (missing, f"^{missing.name}: the shard cannot be opened: No such file or directory$"),
        (strange, f"^{strange.name}: the shard cannot be read: Is a directory$"),
    ):
        with pytest.raises(DataError, match=text) as caught:
            stage.open(file)
        said(caught)
    assert all(name.endswith(".lock") for name in names(stage))


def flip(path, place=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1
    path.write_bytes(content)


def test_a_copy_that_is_cut_short_or_taken_away_is_made_again(local, index, tiny_shards):
    file = index.shards[0]
    whole = content(local, file)
    (copy,) = local.folder.glob("*.tar")
    os.truncate(copy, file.bytes - 1)
    assert not local.has(file)
    assert content(local, file) == whole
    copy.unlink()
    assert content(local, file) == whole


def test_a_folder_that_is_cleared_all_the_time_is_one_line(local, index, monkeypatch):
    monkeypatch.setattr(ShardCache, "fetch", lambda self, file: self.folder.mkdir(exist_ok=True))
    with pytest.raises(DataError, match=f"the copy of {index.shards[0].name} is taken away as soon as it is there$"):
        local.open(index.shards[0])


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_a_copy_that_decays_is_made_anew_by_who_reads_it(kind, request, index, tiny_shards):
    stage, row = request.getfixturevalue(kind), index.samples[3]
    reader = ShardReader(stage, index)
    image = reader.image(3)
    np.testing.assert_array_equal(image, ShardReader(tiny_shards, index).image(3))
    offset, size = row.members["png"]
    flip(stage.folder / f"{index.shards[row.shard].sha256}.tar", offset + size // 2)
    np.testing.assert_array_equal(reader.image(3), image)
    np.testing.assert_array_equal(ShardReader(stage, index).image(3), image)


def test_a_good_copy_is_not_made_anew(remote, server, index):
    content(remote, index.shards[0])
    remote.repair(index.shards[0])
    assert server.asked == [index.shards[0].name]


def test_who_is_damaged_in_copy_and_source_is_told(tiny_shards, tmp_path, index):
    source = tmp_path / "source"
    shutil.copytree(tiny_shards, source)
    stage, row = ShardCache(source=str(source), folder=tmp_path / "stage"), index.samples[3]
    file, offset = index.shards[row.shard], row.members["png"][0]
    reader = ShardReader(stage, index)
    reader.image(3)
    flip(source / file.name, offset + 9)
    flip(stage.folder / f"{file.sha256}.tar", offset + 9)
    with pytest.raises(DataError, match=f"{file.name} is damaged there"):
        reader.image(3)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_no_room_is_told_with_what_is_needed_and_free(small_disk, tiny_shards, index):
    stage = ShardCache(source=str(tiny_shards), folder=small_disk / "stage")
    file = max(index.shards, key=lambda file: file.bytes)
    assert file.bytes > 1 << 16
    needed = sum(file.bytes for file in index.shards)
    with pytest.raises(
        DataError, match=f"no room for {len(index.shards)} shards: {needed} bytes are needed, "
    ) as caught:
        stage.require_free_space(index.shards)
    assert f"data.stage: {stage.folder}: " in said(caught)
    with pytest.raises(DataError, match=rf"no room for {file.name}: {file.bytes} bytes are needed, \d+ are free"):
        stage.open(file)
    assert names(stage) == [f"{file.sha256}.lock"]


@pytest.mark.parametrize("from_server", [False, True])
def test_a_disk_that_fills_up_meanwhile_is_the_same_line(
    small_disk, tiny_shards, index, server, from_server, monkeypatch
):
    stage = ShardCache(source=server.address if from_server else str(tiny_shards), folder=small_disk / "stage")
    monkeypatch.setattr(ShardCache, "_check_room", lambda *arguments: None)
    file = max(index.shards, key=lambda file: file.bytes)
    with pytest.raises(
        DataError, match=rf"no room for {file.name}: {file.bytes} bytes are needed, \d+ are free"
    ) as caught:
        stage.open(file)
    said(caught)
    assert names(stage) == [f"{file.sha256}.lock"]


def test_room_is_only_needed_for_what_is_not_there(local, index, monkeypatch):
    local.fetch(index.shards[0])
    free = index.shards[1].bytes
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": free}))
    local.require_free_space(index.shards[:2])
    with pytest.raises(DataError, match="no room for 2 shards"):
        local.require_free_space(index.shards[:3])


def test_a_folder_that_cannot_be_written_is_one_line(tiny_shards, tmp_path, index):
    (tmp_path / "file").touch()
    stage = ShardCache(source=str(tiny_shards), folder=tmp_path / "file" / "stage")
    for use in (lambda: stage.require_free_space(index.shards), lambda: stage.open(index.shards[0])):
        with pytest.raises(DataError, match=rf"^data\.stage: {stage.folder}: cannot be \w+: Not a directory$"):
            use()


def test_nor_one_that_may_only_be_read(tiny_shards, tmp_path, index):
    read_only = ShardCache(source=str(tiny_shards), folder=tmp_path / "locked")
    read_only.folder.mkdir(mode=0o555)
    if os.access(read_only.folder, os.W_OK):
        pytest.skip("root may write everywhere")
    with pytest.raises(DataError, match=r"cannot be written: Permission denied$"):
        read_only.require_free_space(index.shards)


def test_the_folder_is_that_of_this_node(monkeypatch):
    monkeypatch.setenv("SCRATCH_HERE", "/scratch/7")
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_stage_path("$SCRATCH_HERE/a") == expand_stage_path("${SCRATCH_HERE}/a") == Path("/scratch/7/a")
    assert expand_stage_path("~/a") == Path("/home/me/a")
    monkeypatch.setenv("EMPTY_HERE", "")
    for name in ("EMPTY_HERE", "NOT_HERE"):
        problem = f"data.stage: '/a/${name}/b': the environment variable {name} is not set on {socket.gethostname()}"
        with pytest.raises(ConfigError, match=problem.replace("$", r"\$")):
            expand_stage_path(f"/a/${name}/b")
    monkeypatch.setenv("SCRATCH_HERE", "relative")
    with pytest.raises(ConfigError, match="relative/a is not absolute"):
        expand_stage_path("$SCRATCH_HERE/a")
    assert stage_path_problem("scratch/a") is not None
    assert [stage_path_problem(stage) for stage in ("/a", "~/a", "$A/b", "${A}")] == [None] * 4


def test_where_shards_are_read(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    address, cache = "http://host/a", Path("/cache/hsadml/shards")
    assert (
        train_shard_location("a/b", None)
        == eval_shard_location("a/b", None)
        == eval_shard_location("a/b", "/s")
        == Path("a/b")
    )
    assert train_shard_location("a/b", "/s") == ShardCache(source="a/b", folder=Path("/s"))
    assert (
        train_shard_location(address, None)
        == eval_shard_location(address, None)
        == ShardCache(source=address, folder=cache)
    )
    assert (
        train_shard_location(address, "/s")
        == eval_shard_location(address, "/s")
        == ShardCache(source=address, folder=Path("/s"))
    )
    assert eval_shard_location("a/b", "$NOT_HERE/s") == Path("a/b"), "a verdict is also asked for elsewhere"
    assert [str(train_shard_location(one, "/s")) for one in ("a/b", "http://me:pw@host/a?k=1")] == [
        "a/b",
        "http://host/a",
    ]
    with pytest.raises(DataError, match=r"not read from ftp://"):
        train_shard_location("ftp://host/a", "/s")
