"""Shards behind a server, and a cache that no other test sees."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.shard_server import Server


@pytest.fixture
def server(tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The tiny shards behind a real server; the user's cache is below the test's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server(tiny_shards)
    yield server
    server.close()
