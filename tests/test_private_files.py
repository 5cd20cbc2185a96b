import os
import stat

import pytest

from hsadml_dist.private_files import (
    UntrustedFileError,
    is_private_file,
    make_private_folder,
    open_private_file,
    require_own_folder,
)

CREATE = os.O_RDWR | os.O_CREAT


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def write(path, flags=CREATE):
    descriptor = open_private_file(path, flags)
    os.write(descriptor, b"image")
    os.close(descriptor)


@pytest.fixture
def as_another_user(monkeypatch):
    """Return a function after whose call this process seems to belong to another user, who is not root."""
    return lambda: monkeypatch.setattr(os, "geteuid", lambda: 12345)


@pytest.fixture
def not_roots(tmp_path):
    """A folder of a user who is not root."""
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(folder, 23456, 23456)
    return folder


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077])
def test_new_folders_and_files_are_of_the_user_alone(tmp_path, umask):
    before = os.umask(umask)
    try:
        make_private_folder(tmp_path / "a" / "b")
        write(tmp_path / "a" / "b" / "file")
    finally:
        os.umask(before)
    assert [mode(tmp_path / name) for name in ("a", "a/b", "a/b/file")] == [0o700, 0o700, 0o600]
    make_private_folder(tmp_path / "a" / "b")


def test_folder_that_others_can_write_is_refused_with_the_remedy(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(UntrustedFileError, match=rf"{tmp_path} .*mode 777"):
        make_private_folder(tmp_path)
    tmp_path.chmod(0o755)
    make_private_folder(tmp_path)
    assert mode(tmp_path) == 0o755, "others may list it: its files are private"


def test_folder_with_the_sticky_bit_is_accepted_as_tmp_is(tmp_path):
    tmp_path.chmod(0o1777)
    make_private_folder(tmp_path)
    write(tmp_path / "file")


def test_folder_of_another_user_is_refused(not_roots, as_another_user):
    as_another_user()
    for permissions in (0o777, 0o1777, 0o755):
        not_roots.chmod(permissions)
        with pytest.raises(UntrustedFileError, match=f"{not_roots} belongs to another user"):
            make_private_folder(not_roots)
    with pytest.raises(UntrustedFileError, match="belongs to another user"):
        require_own_folder(not_roots)


def test_link_of_another_user_is_refused_and_an_own_one_accepted(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir(mode=0o700)
    link = tmp_path / "cache"
    link.symlink_to("disk")
    make_private_folder(link)
    with pytest.raises(UntrustedFileError, match="is a link"):
        require_own_folder(link)
    if os.geteuid() == 0:
        os.lchown(link, 23456, 23456)
        with pytest.raises(UntrustedFileError, match="is a link of another user"):
            make_private_folder(link)


def test_folder_below_a_file_is_an_ordinary_error(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(NotADirectoryError):
            make_private_folder(folder)


def test_symbolic_link_is_not_followed(tmp_path):
    (tmp_path / "target").write_text("precious")
    for name, target in (("link", "target"), ("dangling", "missing")):
        (tmp_path / name).symlink_to(target)
        for flags in (CREATE, os.O_RDONLY):
            with pytest.raises(UntrustedFileError, match="symbolic link"):
                open_private_file(tmp_path / name, flags)
        assert not is_private_file(tmp_path / name, 8)
    assert (tmp_path / "target").read_text() == "precious"
    assert not (tmp_path / "missing").exists()


def test_hard_link_is_refused(tmp_path):
    (tmp_path / "target").write_text("precious")
    os.link(tmp_path / "target", tmp_path / "link")
    with pytest.raises(UntrustedFileError, match="hard link"):
        open_private_file(tmp_path / "link", CREATE)
    assert not is_private_file(tmp_path / "link", 8)


@pytest.mark.parametrize("flags", [CREATE, os.O_RDONLY])
def test_pipe_and_folder_are_refused_without_waiting(tmp_path, flags):
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(UntrustedFileError, match="regular file"):
        open_private_file(tmp_path / "pipe", flags)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        open_private_file(tmp_path / "folder", flags)


def test_file_that_others_can_write_is_refused(tmp_path):
    write(tmp_path / "file")
    (tmp_path / "file").chmod(0o666)
    with pytest.raises(UntrustedFileError, match="mode 666"):
        open_private_file(tmp_path / "file", os.O_RDONLY)
    assert not is_private_file(tmp_path / "file", 5)


def test_file_that_others_can_read_becomes_private(tmp_path):
    write(tmp_path / "file")
    (tmp_path / "file").chmod(0o644)
    assert is_private_file(tmp_path / "file", 5)
    os.close(open_private_file(tmp_path / "file", os.O_RDONLY))
    assert mode(tmp_path / "file") == 0o600


def test_file_of_another_user_is_refused_but_roots_may_be_read(not_roots, as_another_user):
    write(not_roots / "file")
    (not_roots / "file").chmod(0o644)
    if os.geteuid() == 0:
        as_another_user()
        assert is_private_file(not_roots / "file", 5)
        os.close(open_private_file(not_roots / "file", os.O_RDONLY))
        os.chown(not_roots / "file", 23456, 23456)
    as_another_user()
    with pytest.raises(UntrustedFileError, match="belongs to another user"):
        open_private_file(not_roots / "file", CREATE)
    assert not is_private_file(not_roots / "file", 5)


def test_private_file_is_measured(tmp_path):
    write(tmp_path / "file")
    assert [is_private_file(tmp_path / name, size) for name, size in (("file", 5), ("file", 6), ("none", 0))] == [
        True,
        False,
        False,
    ]


def test_group_of_the_user_alone_counts_as_the_user(tmp_path, monkeypatch):
    grp = pytest.importorskip("grp")
    pwd = pytest.importorskip("pwd")
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(os.getegid())
    except KeyError:
        pytest.skip("this user has no name")
    if (group.gr_name, group.gr_gid) != (user.pw_name, user.pw_gid) or set(group.gr_mem) - {user.pw_name}:
        pytest.skip("this user has no group of their own")
    os.chown(tmp_path, -1, os.getegid())
    tmp_path.chmod(0o770)
    make_private_folder(tmp_path)
    shared = type(group)((group.gr_name, "x", group.gr_gid, [user.pw_name, "someone"]))
    monkeypatch.setattr(grp, "getgrgid", lambda gid: shared)
    with pytest.raises(UntrustedFileError, match="mode 770"):
        make_private_folder(tmp_path)
