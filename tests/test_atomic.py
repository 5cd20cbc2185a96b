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


def test_link_in_the_place_of_a_temporary_file_is_not_written_through(tmp_path, monkeypatch):
    (tmp_path / "target").write_text("precious")
    written = []
    real = os.open

    def link_first(path, *arguments, **options):
        if str(path).endswith(".tmp") and not written:
            written.append(path)
            os.symlink(tmp_path / "target", path)
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", link_first)
    with pytest.raises(FileExistsError):
        write_text(tmp_path / "a.json", "new")
    assert (tmp_path / "target").read_text() == "precious"


def test_link_in_the_place_of_the_file_is_replaced(tmp_path):
    (tmp_path / "target").write_text("precious")
    (tmp_path / "a.json").symlink_to("target")
    write_text(tmp_path / "a.json", "new")
    assert ((tmp_path / "target").read_text(), (tmp_path / "a.json").read_text()) == ("precious", "new")


def test_writers_of_one_file_do_not_share_a_temporary_file(tmp_path):
    with atomic_path(tmp_path / "a.bin") as first, atomic_path(tmp_path / "a.bin") as second:
        assert first != second
        first.write_bytes(b"first")
        second.write_bytes(b"second")
    assert (tmp_path / "a.bin").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("name", ["a" * 255, "\N{SNOWMAN}" * 85])
def test_longest_name_can_be_written(tmp_path, name):
    write_text(tmp_path / name, "new")
    assert (tmp_path / name).read_text() == "new"
