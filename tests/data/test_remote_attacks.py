"""What a server or an address must not be able to do: fill the disk, or show its keys to others."""

import errno
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hsadml_dist.data import remote
from hsadml_dist.data.index import load_index
from hsadml_dist.data.remote import RetryPolicy, UnreachableError, download, join_url, open_shard_index
from hsadml_dist.data.shard_cache import ShardCache
from hsadml_dist.errors import DataError

ROOT = Path(remote.__file__).parents[2]
QUICK = RetryPolicy(attempts=2, first_seconds=0.01, longest_seconds=0.01)
SECRETS = ("pass-w0rd", "t0ken")


def with_keys(address):
    """Return an address with a user, a password and a key in its query string."""
    return f"{address.replace('://', '://me:pass-w0rd@')}?key=t0ken"


def assert_hidden(text):
    assert [secret for secret in SECRETS if secret in text] == []


@pytest.mark.parametrize("plan", ["endless", "bomb"])
def test_transfer_stops_at_its_limit(server, tmp_path, plan):
    server.plans["a"] = [plan]
    with pytest.raises(DataError, match=f"^{server.address}/a: .*1000 bytes") as caught:
        download(join_url(server.address, "a"), tmp_path / "f", limit=1000)
    assert not isinstance(caught.value, UnreachableError), "a retry would send as much again"
    assert (tmp_path / "f").stat().st_size < 20 << 20
    assert server.sent < 40 << 20
    assert server.requested == ["a"]


def test_file_of_the_limit_is_accepted(server, tiny_shards, tmp_path):
    size = (tiny_shards / "index.json").stat().st_size
    download(join_url(server.address, "index.json"), tmp_path / "f", limit=size)
    with pytest.raises(DataError, match=f"{size - 1} bytes"):
        download(join_url(server.address, "index.json"), tmp_path / "f", limit=size - 1)


def test_large_error_page_is_reported_as_an_error(server, tmp_path):
    server.plans["a"] = ["404"]
    with pytest.raises(DataError, match="no such file"):
        download(join_url(server.address, "a"), tmp_path / "f", limit=1)


def test_shard_larger_than_its_index_says_is_refused(server, tiny_shards, tmp_path):
    file = load_index(tiny_shards).shards[0]
    server.plans[file.name] = ["endless"]
    cache = ShardCache(source=server.address, folder=tmp_path / "stage")
    with pytest.raises(DataError, match=f"{file.name}: .*{file.bytes} bytes"):
        cache.open(file)
    assert [path.suffix for path in cache.folder.iterdir()] == [".lock"]


def test_index_without_end_is_refused(server, tmp_path, monkeypatch):
    monkeypatch.setitem(remote.INDEX_LIMITS, "samples.jsonl", 1000)
    with pytest.raises(DataError, match=r"samples\.jsonl: .*1000 bytes"):
        remote.fetch_index(server.address, tmp_path / "index")
    assert list((tmp_path / "index").iterdir()) == []


def test_deeply_nested_index_is_refused(server, tmp_path, tiny_shards):
    server.folder = tmp_path / "served"
    server.folder.mkdir()
    (server.folder / "index.json").write_text("[" * 1_000_000)
    (server.folder / "samples.jsonl").touch()
    with pytest.raises(DataError, match=r"index\.json is damaged"):
        open_shard_index(server.address, fresh=True)


@pytest.mark.parametrize("plan", ["403", "503", "404", "cut", "endless"])
def test_errors_and_logs_hide_keys(server, tiny_shards, tmp_path, caplog, capfd, plan):
    file = load_index(tiny_shards).shards[0]
    server.plans[file.name] = [plan] * 2
    with caplog.at_level(logging.DEBUG, logger=remote.__name__), pytest.raises(DataError) as caught:
        download(join_url(with_keys(server.address), file.name), tmp_path / "f", QUICK, limit=1 << 20)
    assert f"{server.address}/{file.name}" in str(caught.value)
    assert_hidden(str(caught.value) + caplog.text + "".join(capfd.readouterr()))


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1:9/moved?X-Amz-Signature=t0ken",
        "http://me:pass-w0rd@127.0.0.1:9/moved",
        "ftp://me:pass-w0rd@127.0.0.1/moved?key=t0ken",
        "http://me:pass-w0rd@127.0.0.1:nine/moved?key=t0ken",
    ],
)
def test_errors_after_a_redirect_hide_its_keys(server, tmp_path, caplog, target):
    server.plans["a"] = [target] * 2
    with pytest.raises(DataError) as caught:
        download(join_url(with_keys(server.address), "a"), tmp_path / "f", QUICK, limit=1000)
    assert_hidden(str(caught.value) + caplog.text)


@pytest.mark.parametrize(
    "address",
    ["https://me:pass-w0rd@[::1/a?t0ken", "https://me:pass-w0rd/a@host/b", "http://me:pass-w0rd@host:x/?t0ken"],
)
def test_invalid_address_is_refused_without_its_keys(address):
    with pytest.raises(DataError, match="valid address") as caught:
        open_shard_index(address, fresh=True)
    assert_hidden(str(caught.value))


def test_traceback_of_an_uncaught_error_hides_keys(server, tmp_path):
    server.plans["a"] = ["http://127.0.0.1:9/moved?X-Amz-Signature=t0ken"]
    text = (
        "import sys; from pathlib import Path; from hsadml_dist.data.remote import RetryPolicy, download;"
        "download(sys.stdin.read(), Path('f'), RetryPolicy(attempts=1), limit=9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", text],
        input=join_url(with_keys(server.address), "a"),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "UnreachableError" in done.stderr
    assert_hidden(done.stderr)


def test_no_command_line_contains_a_key(server):
    server.plans["index.json"] = ["stall"]
    thread = threading.Thread(target=open_shard_index, args=(with_keys(server.address),), kwargs={"fresh": True})
    thread.start()
    assert server.stalled.wait(60)
    commands = [command_line(pid) for pid in os.listdir("/proc") if pid.isdigit()]
    server.resumed.set()
    thread.join()
    assert any("hsadml_dist.data.remote" in command for command in commands), "the process that fetches the index"
    assert_hidden("\n".join(commands))


def command_line(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError as error:
        assert error.errno in (errno.ENOENT, errno.ESRCH)
        return ""


def test_representation_of_a_cache_hides_keys(tmp_path):
    cache = ShardCache(source=with_keys("https://host/a"), folder=tmp_path)
    assert_hidden(f"{cache} {cache!r}")
