import os
import stat

import pytest

from hsadml_dist.atomic import atomic_path, write_bytes, write_text


def test_write_text_replaces_the_file_and_leaves_no_temporary(tmp_path):
    for text in ("old", "new ü"):
        write_text(tmp_path / "a.json", text)
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "new ü"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("durable", [True, False])
def test_interrupted_write_keeps_the_old_content(tmp_path, monkeypatch, durable):
    write_text(tmp_path / "a.json", "old")

    def crash(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_text(tmp_path / "a.json", "new", durable=durable)
    assert (tmp_path / "a.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_atomic_path_discards_the_file_if_the_body_fails(tmp_path):
    with pytest.raises(ValueError, match="failed"), atomic_path(tmp_path / "a.bin") as temporary:
        temporary.write_bytes(b"half")
        raise ValueError("failed")
    assert os.listdir(tmp_path) == []


def test_write_bytes_sets_permissions_below_the_umask(tmp_path):
    write_bytes(tmp_path / "key", b"secret", mode=0o600)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
