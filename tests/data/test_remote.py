import errno
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
    join_url,
    open_shard_index,
)
from hsadml_dist.errors import DataError

QUICK = RetryPolicy(attempts=3, first_seconds=0.01, longest_seconds=0.02)
SHARD = "shard-00000.tar"
PLENTY = 1 << 30


@pytest.fixture
def cached(server):
    """The address of the server, whose index has been fetched once."""
    open_shard_index(server.address, fresh=True)
    server.requested.clear()
    return server.address


def test_unsupported_scheme_is_refused_with_allowed_ones():
    assert checked_url("S3://bucket/a") == "S3://bucket/a"
    with pytest.raises(DataError, match=r"^gs://bucket/a: .*gs://; allowed: a folder, http://, https://, s3://$"):
        checked_url("gs://bucket/a")


def test_join_url_keeps_the_query():
    address = "https://me:secret@host:80/some/folder/?key=abc#x"
    assert join_url(address, "f.tar") == "https://me:secret@host:80/some/folder/f.tar?key=abc#x"
    assert join_url("s3://bucket", "f.tar") == "s3://bucket/f.tar"


def test_download_copies_the_file(server, tiny_shards, tmp_path):
    download(join_url(server.address, SHARD), tmp_path / "f", limit=PLENTY)
    assert (tmp_path / "f").read_bytes() == (tiny_shards / SHARD).read_bytes()
    assert server.requested == [SHARD]


def test_transient_failure_is_retried_and_logged(server, tiny_shards, tmp_path, caplog):
    server.plans[SHARD] = ["503", "cut"]
    with caplog.at_level(logging.WARNING, logger=remote.__name__):
        download(join_url(server.address, SHARD), tmp_path / "f", QUICK, limit=PLENTY)
    assert (tmp_path / "f").read_bytes() == (tiny_shards / SHARD).read_bytes()
    assert server.requested == [SHARD] * 3
    first, second = [record.getMessage() for record in caplog.records]
    assert all(fact in first for fact in (f"{server.address}/{SHARD}", "attempt 1", "503"))
    assert all(fact in second for fact in (f"{server.address}/{SHARD}", "attempt 2", "ClientPayloadError"))
    assert "\n" not in first + second


@pytest.mark.parametrize("fault", ["503", "cut", "429", "408"])
def test_download_fails_after_the_last_attempt(server, tmp_path, fault):
    server.plans[SHARD] = [fault] * 10
    with pytest.raises(UnreachableError, match=f"{SHARD}: .*3 attempts") as caught:
        download(join_url(server.address, SHARD), tmp_path / "f", QUICK, limit=PLENTY)
    assert "\n" not in str(caught.value)
    assert server.requested == [SHARD] * 3


def test_pauses_double_up_to_a_limit(server, tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr("tenacity.nap.time.sleep", pauses.append)
    server.plans[SHARD] = ["503"] * 10
    with pytest.raises(UnreachableError):
        download(
            join_url(server.address, SHARD), tmp_path / "f", RetryPolicy(attempts=6, longest_seconds=3), limit=PLENTY
        )
    assert pauses == [0.5, 1, 2, 3, 3]


@pytest.mark.parametrize(("fault", "text"), [("404", "no such file"), ("403", "403")])
def test_permanent_failure_is_not_retried(server, tmp_path, fault, text):
    server.plans[SHARD] = [fault]
    with pytest.raises(DataError, match=f"^{server.address}/{SHARD}: .*{text}"):
        download(join_url(server.address, SHARD), tmp_path / "f", limit=PLENTY)
    assert server.requested == [SHARD]


def test_missing_server_is_reported(server, tmp_path):
    server.close()
    with pytest.raises(UnreachableError, match="3 attempts") as caught:
        download(join_url(server.address, SHARD), tmp_path / "f", QUICK, limit=PLENTY)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "package", "extra"),
    [
        ("s3://bucket/a", "s3fs", "s3"),
        ("http://127.0.0.1:9/a", "aiohttp", "train"),
        ("https://a/b", "tenacity", "train"),
    ],
)
def test_missing_package_is_named_with_its_extra(monkeypatch, tmp_path, address, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=rf"{package}.*pip install 'hsadml-dist\[{extra}\]'$"):
        download(join_url(address, "x"), tmp_path / "f", limit=PLENTY)


@pytest.fixture
def failing_file_system(monkeypatch):
    """Return a function: make every transfer fail with the given error."""
    import fsspec

    def fail(error):
        def get_file(self, *arguments, callback):
            raise error

        monkeypatch.setattr(fsspec, "filesystem", lambda *_, **__: type("Failing", (), {"get_file": get_file})())

    return fail


def test_full_disk_is_left_to_the_caller(failing_file_system, tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device")
    failing_file_system(full)
    with pytest.raises(OSError) as caught:
        download("http://a/b", tmp_path / "f", QUICK, limit=PLENTY)
    assert caught.value is full


def test_missing_credentials_are_reported_without_retries(failing_file_system, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", type(sys)("s3fs"))
    failing_file_system(type("NoCredentialsError", (Exception,), {})())
    with pytest.raises(DataError, match=r"^s3://bucket/a: .*FSSPEC_S3_ANON=true$") as caught:
        download("s3://bucket/a", tmp_path / "f", RetryPolicy(attempts=9, first_seconds=600), limit=PLENTY)
    assert not isinstance(caught.value, UnreachableError)


def test_index_is_cached_unless_fresh(server, tiny_shards):
    assert open_shard_index(server.address, fresh=True) == load_index(tiny_shards)
    assert server.requested == ["index.json", "samples.jsonl"]
    assert open_shard_index(server.address, fresh=False) == load_index(tiny_shards)
    assert open_shard_index(server.address + "?key=new", fresh=False) == load_index(tiny_shards), (
        "the query string does not change the cache"
    )
    assert len(server.requested) == 2
    open_shard_index(server.address, fresh=True)
    assert len(server.requested) == 4
    assert open_shard_index(str(tiny_shards), fresh=False) == load_index(tiny_shards)


def test_damaged_cached_index_is_fetched_again(server, cached, tiny_shards, tmp_path):
    (table,) = (tmp_path / "cache").rglob("samples.jsonl")
    table.write_bytes(table.read_bytes()[:-9])
    assert open_shard_index(cached, fresh=False) == load_index(tiny_shards)
    assert server.requested == ["index.json", "samples.jsonl"]


def test_cached_index_is_used_if_the_server_is_unreachable(server, cached, tiny_shards, caplog):
    server.close()
    assert open_shard_index(cached, fresh=True) == load_index(tiny_shards)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_index_that_changes_during_download_is_fetched_again(server, tiny_shards):
    server.plans["samples.jsonl"] = ["wrong"]
    assert open_shard_index(server.address, fresh=True) == load_index(tiny_shards)
    assert server.requested == ["index.json", "samples.jsonl"] * 2


def test_damaged_remote_index_is_refused_and_not_cached(server, cached, tmp_path):
    server.plans["samples.jsonl"] = ["wrong"] * 2
    with pytest.raises(DataError, match=rf"^{server.address}: samples\.jsonl.*damaged") as caught:
        open_shard_index(cached, fresh=True)
    assert "\n" not in str(caught.value)
    assert len(list((tmp_path / "cache").rglob("*"))) == 5, "two parent folders, one for the URL, two files"
    open_shard_index(cached, fresh=False)


def test_missing_remote_index_is_reported(server, tmp_path):
    server.folder = tmp_path
    with pytest.raises(DataError, match=rf"^{server.address}/index\.json: .*no such file"):
        open_shard_index(server.address, fresh=True)


def test_unwritable_cache_is_reported_with_the_remedy(server, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"Not a directory.*XDG_CACHE_HOME"):
        open_shard_index(server.address, fresh=True)


def test_cached_index_in_a_folder_that_others_can_write_is_not_used(server, cached, tmp_path):
    (folder,) = (tmp_path / "cache" / "hsadml" / "index").iterdir()
    folder.chmod(0o777)
    for fresh in (True, False):
        with pytest.raises(DataError, match=rf"{folder} .*mode 777.*XDG_CACHE_HOME"):
            open_shard_index(server.address, fresh=fresh)
    folder.chmod(0o755)
    open_shard_index(server.address, fresh=False)


def test_cached_index_is_private(cached, tmp_path):
    folders = [path for path in (tmp_path / "cache").rglob("*") if path.is_dir()]
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}


def test_open_shard_index_starts_no_thread_and_imports_little(server):
    text = (
        "import os, sys; from hsadml_dist.data.remote import open_shard_index;"
        f"index = open_shard_index({server.address!r}, fresh=True);"
        "print(len(index), len(os.listdir('/proc/self/task')), sorted({'torch', 'numpy', 'fsspec'} & set(sys.modules)))"
    )
    root = Path(remote.__file__).parents[2]
    environ = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", text], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.split(" ", 1)[1] == "1 []\n", "workers are forked later, before any thread exists"


def test_each_url_has_its_own_cache(server, cached, tmp_path):
    names = {path.name for path in (tmp_path / "cache" / "hsadml" / "index").iterdir()}
    assert names == {hashlib.sha256(server.address.encode()).hexdigest()[:32]}
