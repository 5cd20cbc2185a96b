import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from hsadml_dist.data.contents import hash_image, load_contents
from hsadml_dist.data.index import load_index, write_index
from hsadml_dist.data.reader import ShardReader
from hsadml_dist.data.remote import open_shard_contents, open_shard_index
from tests.data.shard_server import Server


@pytest.fixture
def shards(tiny_shards, tmp_path):
    return shutil.copytree(tiny_shards, tmp_path / "shards")


def test_hash_depends_on_values_shape_and_dtype_but_not_on_the_byte_order():
    image = np.arange(12, dtype="<u2").reshape(3, 4)
    digest = hash_image(image)
    assert hash_image(image.astype(">u2")) == hash_image(np.asfortranarray(image)) == digest
    others = [image.reshape(4, 3), image.astype(np.int32), image + 1, image[:, ::-1]]
    assert len({digest, *map(hash_image, others)}) == 5
    assert digest == hashlib.sha256(b"<u2 (3, 4) " + image.tobytes()).hexdigest()


def test_build_stores_the_hashes_of_all_decoded_images(tiny_shards):
    index = load_index(tiny_shards)
    contents, reader = load_contents(tiny_shards, index), ShardReader(tiny_shards, index)
    assert list(contents.pixels) == [hash_image(reader.image(position)) for position in range(len(index))]
    assert len(set(contents.sources)) == len(index)


def test_missing_damaged_or_later_contents_are_ignored(shards, caplog):
    index, path = load_index(shards), shards / "contents.json"
    values = json.loads(path.read_text())
    path.write_text(path.read_text().replace("a", "b", 1))
    assert load_contents(shards, index) is None
    path.unlink()
    assert load_contents(shards, index) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    for changed in (values | {"version": 2}, values | {"pixels": values["pixels"][1:]}):
        path.write_text(json.dumps(changed))
        file = next(file for file in index.files if file.name == path.name)
        described = replace(file, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
        write_index(shards, replace(index, files=(described,)))
        assert load_contents(shards, load_index(shards)) is None


def test_shards_of_an_older_version_have_no_contents(shards, caplog):
    assert load_contents(shards, replace(load_index(shards), files=())) is None
    assert caplog.records == []


def test_contents_of_a_server_are_fetched_once_and_not_needed(shards, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server(shards)
    index = open_shard_index(server.address, fresh=True)
    for _ in range(2):
        assert open_shard_contents(server.address, index) == load_contents(shards, index)
    assert server.requested.count("contents.json") == 1
    assert open_shard_contents(str(shards), index) == load_contents(shards, index)
    (cached,) = (tmp_path / "cache").rglob("contents.json")
    cached.unlink()
    (shards / "contents.json").unlink()
    assert open_shard_contents(server.address, index) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    server.close()
