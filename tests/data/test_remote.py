import hashlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hsadml_dist.data import remote
from hsadml_dist.data.index import load_index
from hsadml_dist.data.remote import (
    RetryPolicy,
    UnreachableError,
    checked_url,
    download,
    is_url,
    join_url,
    open_shard_index,
    redact_url,
)
from hsadml_dist.errors import DataError

QUICK = RetryPolicy(attempts=3, first_seconds=0.01, longest_seconds=0.02)
SHARD = "shard-00000.tar"


@pytest.fixture
def cached(server):
    """The server's address after its index was fetched once."""
    open_shard_index(server.address, fresh=True)
    server.asked.clear()
    return server.address


def test_folders_and_addresses_are_told_apart():
    assert [is_url(text) for text in ("http://a/b", "s3://a/b", "ftp://a", "HTTPS://a")] == [True] * 4
    assert [is_url(text) for text in ("a/b", "/a", "./http:/a", "C:\\a", "a b://c")] == [False] * 5


def test_an_address_of_another_kind_is_refused_in_one_line():
    assert checked_url("S3://bucket/a") == "S3://bucket/a"
    with pytest.raises(DataError, match=r"^gs://bucket/a: .* gs://; allowed: a folder, http://, https://, s3://$"):
        checked_url("gs://bucket/a")


def test_names_go_before_the_query_and_keys_are_not_shown():
    address = "https://me:secret@host:80/some/folder/?key=abc#x"
    assert join_url(address, "f.tar") == "https://me:secret@host:80/some/folder/f.tar?key=abc#x"
    assert join_url("s3://bucket", "f.tar") == "s3://bucket/f.tar"
    assert redact_url(join_url(address, "f.tar")) == "https://host:80/some/folder/f.tar"


def test_a_file_comes_whole(server, tiny_shards, tmp_path):
    download(join_url(server.address, SHARD), tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == (tiny_shards / SHARD).read_bytes()
    assert server.asked == [SHARD]


def test_what_passes_is_tried_again_with_a_line_each_time(server, tiny_shards, tmp_path, caplog):
    server.plans[SHARD] = ["503", "cut"]
    with caplog.at_level(logging.WARNING, logger=remote.__name__):
        download(join_url(server.address, SHARD), tmp_path / "f", QUICK)
    assert (tmp_path / "f").read_bytes() == (tiny_shards / SHARD).read_bytes()
    assert server.asked == [SHARD] * 3
    first, second = [record.getMessage() for record in caplog.records]
    assert first == f"{server.address}/{SHARD}: attempt 1: the server answered 503; again in 0.0 s"
    assert second.startswith(f"{server.address}/{SHARD}: attempt 2: ClientPayloadError") and "\n" not in second


@pytest.mark.parametrize("fault", ["503", "cut", "429", "408"])
def test_attempts_end(server, tmp_path, fault):
    server.plans[SHARD] = [fault] * 10
    with pytest.raises(UnreachableError, match=f"{SHARD}: given up after 3 attempts: ") as caught:
        download(join_url(server.address, SHARD), tmp_path / "f", QUICK)
    assert "\n" not in str(caught.value)
    assert server.asked == [SHARD] * 3


def test_pauses_double_up_to_a_limit(server, tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr("tenacity.nap.time.sleep", pauses.append)
    server.plans[SHARD] = ["503"] * 10
    with pytest.raises(UnreachableError):
        download(join_url(server.address, SHARD), tmp_path / "f", RetryPolicy(attempts=6, longest_seconds=3))
    assert pauses == [0.5, 1, 2, 3, 3]


@pytest.mark.parametrize(
    ("fault", "text"), [("404", "there is no such file on the server"), ("403", "refuses to give it: it answered 403")]
)
def test_what_stays_is_not_tried_again(server, tmp_path, fault, text):
    server.plans[SHARD] = [fault]
    with pytest.raises(DataError, match=f"^{server.address}/{SHARD}: .*{text}$"):
        download(join_url(server.address, SHARD), tmp_path / "f")
    assert server.asked == [SHARD]


def test_no_server_is_one_line(server, tmp_path):
    server.close()
    with pytest.raises(UnreachableError, match=r"given up after 3 attempts: .*") as caught:
        download(join_url(server.address, SHARD), tmp_path / "f", QUICK)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "package", "extra"),
    [
        ("s3://bucket/a", "s3fs", "s3"),
        ("http://127.0.0.1:9/a", "aiohttp", "train"),
        ("https://a/b", "tenacity", "train"),
    ],
)
def test_a_missing_package_is_named(monkeypatch, tmp_path, address, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=rf"needs the package {package}, .*: pip install 'hsadml-dist\[{extra}\]'$"):
        download(join_url(address, "x"), tmp_path / "f")


def test_a_full_disk_is_left_to_who_knows_the_folder():
    full = OSError(28, "No space left on device")
    assert remote._named("http://a/b", full) is full


def test_missing_credentials_are_not_waited_for():
    fault = remote._named("s3://bucket/a", type("NoCredentialsError", (Exception,), {})())
    assert str(fault) == "s3://bucket/a: no credentials were found; for a public bucket set FSSPEC_S3_ANON=true"
    assert isinstance(fault, DataError)


def test_the_index_is_that_of_the_folder_and_comes_from_the_cache_afterwards(server, tiny_shards):
    assert open_shard_index(server.address, fresh=True) == load_index(tiny_shards)
    assert server.asked == ["index.json", "samples.jsonl"]
    assert open_shard_index(server.address, fresh=False) == load_index(tiny_shards)
    assert open_shard_index(server.address + "?key=new", fresh=False) == load_index(tiny_shards), (
        "a key is no other place"
    )
    assert len(server.asked) == 2
    open_shard_index(server.address, fresh=True)
    assert len(server.asked) == 4
    assert open_shard_index(str(tiny_shards), fresh=False) == load_index(tiny_shards)


def test_a_damaged_cache_is_fetched_anew(server, cached, tiny_shards, tmp_path):
    (table,) = (tmp_path / "cache").rglob("samples.jsonl")
    table.write_bytes(table.read_bytes()[:-9])
    assert open_shard_index(cached, fresh=False) == load_index(tiny_shards)
    assert server.asked == ["index.json", "samples.jsonl"]


def test_a_server_that_is_away_does_not_stop_who_has_the_index(server, cached, tiny_shards, caplog):
    server.close()
    assert open_shard_index(cached, fresh=True) == load_index(tiny_shards)
    assert "going on with the index that was fetched before" in caplog.text


def test_an_index_that_changes_on_the_way_is_fetched_again(server, tiny_shards):
    server.plans["samples.jsonl"] = ["wrong"]
    assert open_shard_index(server.address, fresh=True) == load_index(tiny_shards)
    assert server.asked == ["index.json", "samples.jsonl"] * 2


def test_a_damaged_index_is_one_line_with_the_address_and_leaves_the_cache_alone(server, cached, tmp_path):
    server.plans["samples.jsonl"] = ["wrong"] * 2
    with pytest.raises(DataError, match=rf"^{server.address}: samples\.jsonl is damaged or cut short: ") as caught:
        open_shard_index(cached, fresh=True)
    assert "\n" not in str(caught.value)
    assert len(list((tmp_path / "cache").rglob("*"))) == 5, "two folders above, one for the address, two files"
    open_shard_index(cached, fresh=False)


def test_no_index_there_is_one_line(server, tmp_path):
    server.folder = tmp_path
    with pytest.raises(DataError, match=rf"^{server.address}/index\.json: there is no such file on the server$"):
        open_shard_index(server.address, fresh=True)


def test_a_cache_that_cannot_be_written_is_one_line(server, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"the cache cannot be written: Not a directory; set XDG_CACHE_HOME"):
        open_shard_index(server.address, fresh=True)


def test_who_reads_an_index_keeps_one_thread_and_imports_little(server):
    text = (
        "import os, sys; from hsadml_dist.data.remote import open_shard_index;"
        f"index = open_shard_index({server.address!r}, fresh=True);"
        "print(len(index), len(os.listdir('/proc/self/task')), sorted({'torch', 'numpy', 'fsspec'} & set(sys.modules)))"
    )
    root = Path(remote.__file__).parents[2]
    environ = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", text], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.split(" ", 1)[1] == "1 []\n", "workers are forked later, and none may be after a thread"


def test_addresses_have_caches_of_their_own(server, cached, tmp_path):
    names = {path.name for path in (tmp_path / "cache" / "hsadml" / "index").iterdir()}
    assert names == {hashlib.sha256(server.address.encode()).hexdigest()[:32]}
