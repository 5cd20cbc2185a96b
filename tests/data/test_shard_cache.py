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

from hsadml_dist.data import shard_cache
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
    """An empty cache for a folder."""
    return ShardCache(source=str(tiny_shards), folder=tmp_path / "stage")


@pytest.fixture
def remote(server, tmp_path):
    """An empty cache for a server."""
    return ShardCache(source=server.address, folder=tmp_path / "stage")


def content(cache, file):
    descriptor = cache.open(file)
    try:
        return os.pread(descriptor, file.bytes + 1, 0)
    finally:
        os.close(descriptor)


def names(cache):
    return sorted(path.name for path in cache.folder.iterdir())


def message_of(caught):
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_copy_matches_shard_and_is_named_by_its_hash(kind, request, index, tiny_shards):
    cache = request.getfixturevalue(kind)
    for file in index.shards:
        assert not cache.has(file)
        assert content(cache, file) == (tiny_shards / file.name).read_bytes()
        assert cache.has(file)
    assert names(cache) == sorted(f"{file.sha256}{end}" for file in index.shards for end in (".tar", ".lock"))


def test_copy_is_made_once_and_shared(remote, local, server, index):
    file = index.shards[0]
    content(remote, file)
    assert content(remote, file) == content(local, file)
    local.fetch(file)
    assert server.requested == [file.name]


def test_concurrent_processes_fetch_each_shard_once(ranks, server, tiny_shards, index):
    answers = ranks(SCRIPT, 4, f"everyone {tiny_shards} {server.address}")
    assert Counter(server.requested) == {file.name: 1 for file in index.shards}
    for answer in answers:
        assert set(answer["names"]) == {f"{file.sha256}{end}" for file in index.shards for end in (".tar", ".lock")}


def test_killed_process_releases_its_lock_and_its_leftovers_are_deleted(ranks, server, tiny_shards, index, tmp_path):
    file = index.shards[0]
    server.plans[file.name] = ["stall"]
    cache = ShardCache(source=server.address, folder=tmp_path / "stage")
    left = []

    def kill():
        deadline = time.monotonic() + 30
        while not left and time.monotonic() < deadline:
            time.sleep(0.01)
            left.extend(cache.folder.glob(".*"))
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    ranks(SCRIPT, 1, f"holder {tiny_shards} {server.address}", folder=tmp_path, expect=-signal.SIGKILL)
    assert len(left) == 1, "it was killed in the middle of a copy"
    assert content(cache, file) == (tiny_shards / file.name).read_bytes()
    assert names(cache) == sorted([f"{file.sha256}.tar", f"{file.sha256}.lock"])


def test_wrong_bytes_are_fetched_again(remote, server, index, tiny_shards):
    file = index.shards[1]
    server.plans[file.name] = ["wrong"]
    assert content(remote, file) == (tiny_shards / file.name).read_bytes()
    assert server.requested == [file.name] * 2


def test_damaged_source_is_reported_after_two_attempts(remote, server, index):
    file = index.shards[1]
    server.plans[file.name] = ["wrong"] * 2
    with pytest.raises(DataError, match=f"^{server.address}: {file.name} .*damaged") as caught:
        remote.open(file)
    assert file.sha256[:16] in message_of(caught)
    assert server.requested == [file.name] * 2
    assert names(remote) == [f"{file.sha256}.lock"]


def test_shard_missing_on_the_server_is_reported(remote, server, index):
    server.plans[index.shards[0].name] = ["404"]
    with pytest.raises(DataError, match=rf"^{server.address}/{index.shards[0].name}: .*no such file") as caught:
        remote.open(index.shards[0])
    message_of(caught)
    assert names(remote) == [f"{index.shards[0].sha256}.lock"]


def test_unreachable_server_is_reported_and_leaves_no_file(remote, server, index, monkeypatch):
    monkeypatch.setattr(shard_cache.download, "__defaults__", (RetryPolicy(attempts=2, first_seconds=0.01),))
    server.plans[index.shards[0].name] = ["cut", "503"]
    with pytest.raises(DataError, match=r"2 attempts.*503"):
        remote.open(index.shards[0])
    assert names(remote) == [f"{index.shards[0].sha256}.lock"]


def test_damaged_missing_and_unreadable_shards_are_reported(tiny_shards, tmp_path, index):
    source = tmp_path / "source"
    shutil.copytree(tiny_shards, source)
    damaged, missing, strange = index.shards[:3]
    flip(source / damaged.name)
    (source / missing.name).unlink()
    (source / strange.name).unlink()
    (source / strange.name).mkdir()
    cache = ShardCache(source=str(source), folder=tmp_path / "stage")
    for file, text in (
        (damaged, f"^{source}: {damaged.name} .*damaged.*SHA-256"),
        (missing, f"^{missing.name}: .*No such file or directory$"),
        (strange, f"^{strange.name}: .*Is a directory$"),
    ):
        with pytest.raises(DataError, match=text) as caught:
            cache.open(file)
        message_of(caught)
    assert all(name.endswith(".lock") for name in names(cache))


def flip(path, place=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1
    path.write_bytes(content)


def test_truncated_or_deleted_copy_is_made_again(local, index, tiny_shards):
    file = index.shards[0]
    whole = content(local, file)
    (copy,) = local.folder.glob("*.tar")
    os.truncate(copy, file.bytes - 1)
    assert not local.has(file)
    assert content(local, file) == whole
    copy.unlink()
    assert content(local, file) == whole


def test_folder_that_is_cleared_repeatedly_is_reported(local, index, monkeypatch):
    monkeypatch.setattr(ShardCache, "fetch", lambda self, file: self.folder.mkdir(exist_ok=True))
    with pytest.raises(DataError, match=index.shards[0].name):
        local.open(index.shards[0])


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_reader_repairs_a_damaged_copy(kind, request, index, tiny_shards):
    cache, row = request.getfixturevalue(kind), index.samples[3]
    reader = ShardReader(cache, index)
    image = reader.image(3)
    np.testing.assert_array_equal(image, ShardReader(tiny_shards, index).image(3))
    offset, size = row.members["png"]
    flip(cache.folder / f"{index.shards[row.shard].sha256}.tar", offset + size // 2)
    np.testing.assert_array_equal(reader.image(3), image)
    np.testing.assert_array_equal(ShardReader(cache, index).image(3), image)


def test_repair_keeps_an_intact_copy(remote, server, index):
    content(remote, index.shards[0])
    remote.repair(index.shards[0])
    assert server.requested == [index.shards[0].name]


def test_damage_of_copy_and_source_is_reported(tiny_shards, tmp_path, index):
    source = tmp_path / "source"
    shutil.copytree(tiny_shards, source)
    cache, row = ShardCache(source=str(source), folder=tmp_path / "stage"), index.samples[3]
    file, offset = index.shards[row.shard], row.members["png"][0]
    reader = ShardReader(cache, index)
    reader.image(3)
    flip(source / file.name, offset + 9)
    flip(cache.folder / f"{file.sha256}.tar", offset + 9)
    with pytest.raises(DataError, match=f"{file.name} .*damaged"):
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


def test_lack_of_space_is_reported_with_bytes_needed_and_free(small_disk, tiny_shards, index):
    cache = ShardCache(source=str(tiny_shards), folder=small_disk / "stage")
    file = max(index.shards, key=lambda file: file.bytes)
    assert file.bytes > 1 << 16
    needed = sum(file.bytes for file in index.shards)
    with pytest.raises(
        DataError, match=rf"{len(index.shards)} shards: {needed} bytes are needed, \d+ are free"
    ) as caught:
        cache.require_free_space(index.shards)
    assert f"data.stage: {cache.folder}: " in message_of(caught)
    with pytest.raises(DataError, match=rf"{file.name}: {file.bytes} bytes are needed, \d+ are free"):
        cache.open(file)
    assert names(cache) == [f"{file.sha256}.lock"]


@pytest.mark.parametrize("from_server", [False, True])
def test_disk_that_fills_up_during_a_copy_is_reported_alike(
    small_disk, tiny_shards, index, server, from_server, monkeypatch
):
    cache = ShardCache(source=server.address if from_server else str(tiny_shards), folder=small_disk / "stage")
    monkeypatch.setattr(shard_cache.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1 << 40}))
    file = max(index.shards, key=lambda file: file.bytes)
    with pytest.raises(DataError, match=rf"{file.name}: {file.bytes} bytes are needed, \d+ are free") as caught:
        cache.open(file)
    message_of(caught)
    assert names(cache) == [f"{file.sha256}.lock"]


def test_space_is_required_for_missing_copies_only(local, index, monkeypatch):
    local.fetch(index.shards[0])
    free = index.shards[1].bytes
    monkeypatch.setattr(shard_cache.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": free}))
    local.require_free_space(index.shards[:2])
    with pytest.raises(DataError, match="2 shards"):
        local.require_free_space(index.shards[:3])


def test_unusable_folder_is_reported(tiny_shards, tmp_path, index):
    (tmp_path / "file").touch()
    cache = ShardCache(source=str(tiny_shards), folder=tmp_path / "file" / "stage")
    for use in (lambda: cache.require_free_space(index.shards), lambda: cache.open(index.shards[0])):
        with pytest.raises(DataError, match=rf"^data\.stage: {cache.folder}: .*Not a directory$"):
            use()


@pytest.mark.parametrize("kind", ["link", "hard link", "writable"])
def test_copy_that_another_user_may_have_put_there_is_made_again(local, index, tiny_shards, tmp_path, kind):
    file = index.shards[0]
    whole = content(local, file)
    copy, precious = local.folder / f"{file.sha256}.tar", tmp_path / "precious"
    precious.write_bytes(bytes(file.bytes))
    if kind == "writable":
        copy.write_bytes(bytes(file.bytes))
        copy.chmod(0o666)
    else:
        copy.unlink()
        (os.symlink if kind == "link" else os.link)(precious, copy)
    assert not local.has(file)
    assert content(local, file) == whole
    assert precious.read_bytes() == bytes(file.bytes)
    assert copy.lstat().st_mode & 0o777 == 0o600


def test_copies_are_private(local, index):
    before = os.umask(0)
    try:
        local.fetch(index.shards[0])
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in local.folder.iterdir()} == {0o600}
    assert local.folder.stat().st_mode & 0o777 == 0o700


def test_copy_of_an_earlier_version_is_used_and_becomes_private(local, index, monkeypatch):
    local.fetch(index.shards[0])
    for path in (local.folder, *local.folder.iterdir()):
        path.chmod(0o755 if path == local.folder else 0o644)
    monkeypatch.setattr(ShardCache, "_make", lambda self, file: pytest.fail("copied again"))
    os.close(local.open(index.shards[0]))
    assert (local.folder / f"{index.shards[0].sha256}.tar").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_lock_that_another_user_may_have_put_there_is_refused(local, index, tmp_path, kind):
    local.folder.mkdir(mode=0o700)
    lock = local.folder / f"{index.shards[0].sha256}.lock"
    os.mkfifo(lock) if kind == "pipe" else lock.symlink_to(tmp_path / "new")
    with pytest.raises(DataError, match=rf"^data\.stage: {lock}"):
        local.open(index.shards[0])
    assert not (tmp_path / "new").exists()


def test_folder_that_others_can_write_is_refused(local, index):
    local.folder.mkdir()
    local.folder.chmod(0o777)
    for use in (lambda: local.require_free_space(index.shards), lambda: local.open(index.shards[0])):
        with pytest.raises(DataError, match=rf"^data\.stage: {local.folder} .*mode 777") as caught:
            use()
        message_of(caught)


def test_read_only_folder_is_reported(tiny_shards, tmp_path, index):
    read_only = ShardCache(source=str(tiny_shards), folder=tmp_path / "locked")
    read_only.folder.mkdir(mode=0o555)
    if os.access(read_only.folder, os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(DataError, match=r"Permission denied$"):
        read_only.require_free_space(index.shards)


def test_stage_path_is_expanded_on_this_node(monkeypatch):
    monkeypatch.setenv("SCRATCH_HERE", "/scratch/7")
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_stage_path("$SCRATCH_HERE/a") == expand_stage_path("${SCRATCH_HERE}/a") == Path("/scratch/7/a")
    assert expand_stage_path("~/a") == Path("/home/me/a")
    monkeypatch.setenv("EMPTY_HERE", "")
    for name in ("EMPTY_HERE", "NOT_HERE"):
        with pytest.raises(ConfigError, match=rf"data\.stage: '/a/\${name}/b': .*{name}.*{socket.gethostname()}"):
            expand_stage_path(f"/a/${name}/b")
    monkeypatch.setenv("SCRATCH_HERE", "relative")
    with pytest.raises(ConfigError, match="relative/a"):
        expand_stage_path("$SCRATCH_HERE/a")
    assert stage_path_problem("scratch/a") is not None
    assert [stage_path_problem(stage) for stage in ("/a", "~/a", "$A/b", "${A}")] == [None] * 4


def test_shard_location_depends_on_url_and_stage(monkeypatch):
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
    assert eval_shard_location("a/b", "$NOT_HERE/s") == Path("a/b"), "an evaluation may run on another node"
    assert [str(train_shard_location(one, "/s")) for one in ("a/b", "http://me:pw@host/a?k=1")] == [
        "a/b",
        "http://host/a",
    ]
    with pytest.raises(DataError, match="ftp://"):
        train_shard_location("ftp://host/a", "/s")
