import errno
import hashlib
import logging
import os
import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hsadml_dist.data.index import load_index
from hsadml_dist.data.reader import HASH_BYTES, PreparedCache, PreparedImages, ShardReader, open_prepared_cache
from hsadml_dist.data.transforms import Preprocessing
from hsadml_dist.errors import ConfigError, DataError

SIZE = 24
SOURCES = ["ab" * 32, "cd" * 32]


@pytest.fixture(scope="module")
def prepare():
    return Preprocessing(SIZE)


@pytest.fixture(scope="module")
def index(tiny_shards):
    return load_index(tiny_shards)


@pytest.fixture
def store(tmp_path):
    store = PreparedCache(tmp_path / "store", 5, SIZE)
    yield store
    store.close()


def picture(seed, size=SIZE):
    return torch.randn(1, size, size, generator=torch.Generator().manual_seed(seed))


def test_cache_changes_no_bit_of_an_image(tiny_shards, index, prepare, tmp_path):
    reader = ShardReader(tiny_shards, index)
    store = open_prepared_cache(tmp_path / "new" / "cache", index, prepare)
    plain, cold, warm = (PreparedImages(reader, prepare, each) for each in (None, store, store))
    for position in range(len(index)):
        expected = plain.image(position)
        assert torch.equal(expected, prepare(reader.image(position)))
        assert torch.equal(cold.image(position), expected)
    for position in reversed(range(len(index))):
        image = warm.image(position)
        assert torch.equal(image, plain.image(position))
        assert (image.shape, image.dtype) == ((1, SIZE, SIZE), torch.float32)
    store.close()


def test_cached_image_is_neither_read_nor_prepared_again(tiny_shards, index, prepare, tmp_path):
    shutil.copytree(tiny_shards, tmp_path / "shards")
    store = open_prepared_cache(tmp_path, index, prepare)
    images = PreparedImages(ShardReader(tmp_path / "shards", index), prepare, store)
    kept = [images.image(position) for position in range(3)]
    shutil.rmtree(tmp_path / "shards")
    store.close()

    def never(image):
        raise AssertionError("prepared again")

    again = open_prepared_cache(tmp_path, index, prepare)
    later = PreparedImages(ShardReader(tmp_path / "shards", index), never, again)
    assert all(torch.equal(later.image(position), kept[position]) for position in range(3))
    last = next(position for position, row in enumerate(index.samples) if row.shard > index.samples[0].shard)
    with pytest.raises(DataError, match="cannot be opened"):
        later.image(last)
    again.close()


def test_damaged_image_is_not_cached(tiny_shards, index, prepare, tmp_path):
    shutil.copytree(tiny_shards, tmp_path / "shards")
    row = index.samples[2]
    with open(tmp_path / "shards" / index.shards[row.shard].name, "r+b") as file:
        file.seek(row.members["png"][0] + 60)
        file.write(b"\0\1\2")
    store = open_prepared_cache(tmp_path, index, prepare)
    images = PreparedImages(ShardReader(tmp_path / "shards", index), prepare, store)
    for _ in range(2):
        with pytest.raises(DataError, match=row.key):
            images.image(2)
    assert store.get(2, row.sha256) is None
    store.close()


def test_unwritten_record_is_absent(store):
    assert [store.get(position, SOURCES[0]) for position in range(5)] == [None] * 5


def test_record_belongs_to_its_source_image(store):
    store.put(3, SOURCES[0], picture(1))
    assert store.get(3, SOURCES[1]) is None
    assert store.get(2, SOURCES[0]) is None
    assert torch.equal(store.get(3, SOURCES[0]), picture(1))


def test_non_contiguous_image_can_be_stored(store):
    wide = picture(1, 2 * SIZE)[:, ::2, ::2]
    store.put(0, SOURCES[0], wide)
    assert torch.equal(store.get(0, SOURCES[0]), wide)


def test_changed_byte_invalidates_a_record(store):
    store.put(1, SOURCES[0], picture(1))
    content = bytearray(store.path.read_bytes())
    stride = HASH_BYTES + 4 * SIZE * SIZE
    places = [0, HASH_BYTES - 1, HASH_BYTES, stride - 1, *random.Random(0).sample(range(stride), 50)]
    for place in places:
        wrong = bytearray(content)
        wrong[stride + place] ^= 1
        store.path.write_bytes(wrong)
        assert store.get(1, SOURCES[0]) is None, place
    store.put(1, SOURCES[0], picture(1))
    assert torch.equal(store.get(1, SOURCES[0]), picture(1))


@pytest.mark.parametrize("before", ["nothing", "another image"])
def test_partly_written_record_is_absent(store, before):
    """Whatever part of the write reached the disk: its beginning, its end, or pages in between."""
    stride = HASH_BYTES + 4 * SIZE * SIZE
    old = bytes(stride)
    if before != "nothing":
        store.put(0, SOURCES[0], picture(2))
        old = store.path.read_bytes()[:stride]
    store.put(0, SOURCES[0], picture(1))
    new = store.path.read_bytes()[:stride]
    cuts = random.Random(0).sample(range(1, stride), 40)
    for cut in cuts:
        for torn in (new[:cut] + old[cut:], old[:cut] + new[cut:]):
            with open(store.path, "r+b") as file:
                file.write(torn)
            assert store.get(0, SOURCES[0]) is None


def test_truncated_file_is_tolerated(store):
    store.put(4, SOURCES[0], picture(1))
    os.truncate(store.path, store.bytes - 1)
    assert store.get(4, SOURCES[0]) is None
    store.put(4, SOURCES[0], picture(1))
    assert torch.equal(store.get(4, SOURCES[0]), picture(1))


def write_forever(path, images, first, ready):
    """Fork a process that writes one record after another until it is killed; it signals when it has written all."""
    child = os.fork()
    if child:
        return child
    store, turn = PreparedCache(path, len(images), images[0].shape[1]), first
    while True:
        store.put(turn % len(images), SOURCES[0], images[turn % len(images)])
        turn += 1
        if turn == first + len(images):
            os.write(ready, b"x")


def kill(processes):
    for process in processes:
        os.kill(process, signal.SIGKILL)
    for process in processes:
        os.waitpid(process, 0)


def test_killed_writers_leave_no_wrong_record(tmp_path):
    images = [picture(seed, 700) for seed in range(6)]  # 2 MB each: most of the time is spent inside a write
    found, draw = [], random.Random(0)
    outlet, ready = os.pipe()
    for number in range(12):
        processes = [write_forever(tmp_path / f"{number}", images, first, ready) for first in (0, 3)]
        time.sleep(draw.uniform(0, 0.05))
        kill(processes)
        store = PreparedCache(tmp_path / f"{number}", len(images), 700)
        kept = [store.get(position, SOURCES[0]) for position in range(len(images))]
        store.close()
        found.append(sum(image is not None for image in kept))
        assert all(image is None or torch.equal(image, images[i]) for i, image in enumerate(kept))
    assert sum(found) > 0, "otherwise nothing was tested"
    os.close(outlet)
    os.close(ready)


def test_several_processes_may_write_at_once(tmp_path):
    images = [picture(seed, 200) for seed in range(12)]
    outlet, ready = os.pipe()
    processes = [write_forever(tmp_path / "one", images, first, ready) for first in (0, 0, 5)]
    said = b""
    while len(said) < 3:
        said += os.read(outlet, 1)
    store = PreparedCache(tmp_path / "one", len(images), 200)
    for position, image in enumerate(images):
        kept = store.get(position, SOURCES[0])  # while the others write the same bytes
        assert kept is None or torch.equal(kept, image)
    kill(processes)
    whole = [store.get(position, SOURCES[0]) is not None for position in range(len(images))]
    store.close()
    assert sum(whole) >= len(images) - 3, "each killed writer may leave one record incomplete"
    os.close(outlet)
    os.close(ready)


def test_shards_sizes_and_versions_have_their_own_files(index, prepare, tmp_path, monkeypatch):
    other = replace(index, digest=hashlib.sha256(b"").hexdigest())
    stores = [open_prepared_cache(tmp_path, each, prepare) for each in (index, other, index)]
    stores.append(open_prepared_cache(tmp_path, index, Preprocessing(SIZE + 1)))
    monkeypatch.setattr(Preprocessing, "VERSION", 2)
    stores.append(open_prepared_cache(tmp_path, index, prepare))
    assert len({store.path for store in stores}) == 4
    assert stores[0].path == stores[2].path
    for store in stores:
        assert store.path.stat().st_size == store.bytes
        store.close()


def test_cache_is_private(index, prepare, tmp_path):
    store = open_prepared_cache(tmp_path / "a" / "cache", index, prepare)
    assert (store.path.stat().st_mode & 0o777, store.path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    store.close()


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe", "writable"])
def test_file_that_another_user_may_have_put_there_is_refused(index, prepare, tmp_path, kind):
    folder, precious = tmp_path / "cache", tmp_path / "precious"
    store = open_prepared_cache(folder, index, prepare)
    store.close()
    precious.write_text("precious")
    if kind == "writable":
        store.path.chmod(0o666)
    else:
        store.path.unlink()
        {"link": os.symlink, "hard link": os.link, "pipe": lambda _, path: os.mkfifo(path)}[kind](precious, store.path)
    with pytest.raises(ConfigError, match=rf"data\.cache: {store.path}"):
        open_prepared_cache(folder, index, prepare)
    assert precious.read_text() == "precious"


def test_folder_that_others_can_write_is_refused(index, prepare, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(ConfigError, match=rf"data\.cache: {tmp_path}/cache .*mode 777"):
        open_prepared_cache(tmp_path / "cache", index, prepare)
    assert os.listdir(tmp_path / "cache") == []


def test_unusable_folder_is_refused(index, prepare, tmp_path):
    (tmp_path / "file").write_text("")
    problem = "data.cache: .*file/cache.*Not a directory"
    with pytest.raises(ConfigError, match=problem) as caught:
        open_prepared_cache(tmp_path / "file" / "cache", index, prepare)
    assert "\n" not in str(caught.value)


def test_cache_is_not_opened_on_a_full_disk(index, prepare, tmp_path, monkeypatch, caplog):
    real = os.statvfs(tmp_path)
    full = os.statvfs_result((real.f_bsize, 1, 100, 0, 0, *list(real)[5:]))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    assert open_prepared_cache(tmp_path, index, prepare) is None
    assert "data.cache" in caplog.text and "0.0 GB are free" in caplog.text


def test_complete_file_needs_no_more_space(index, prepare, tmp_path, monkeypatch):
    first = open_prepared_cache(tmp_path, index, prepare)
    for position, row in enumerate(index.samples):
        first.put(position, row.sha256, picture(position))
    first.close()
    os.sync()
    real = os.statvfs(tmp_path)
    full = os.statvfs_result((real.f_bsize, 1, 100, 0, 0, *list(real)[5:]))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    second = open_prepared_cache(tmp_path, index, prepare)
    assert torch.equal(second.get(1, index.samples[1].sha256), picture(1))
    second.close()


@pytest.mark.parametrize("call", ["pwritev", "preadv"])
def test_failing_disk_disables_the_cache_only(tiny_shards, index, prepare, tmp_path, monkeypatch, caplog, call):
    def fails(*words):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = open_prepared_cache(tmp_path, index, prepare)
    images = PreparedImages(ShardReader(tiny_shards, index), prepare, store)
    monkeypatch.setattr(os, call, fails)
    expected = PreparedImages(ShardReader(tiny_shards, index), prepare, None)
    for position in (0, 1, 0, 1):
        assert torch.equal(images.image(position), expected.image(position))
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1, "one warning, not one per image"
    assert "No space left on device" in warnings[0].getMessage()
    assert Path(store.path).exists()
