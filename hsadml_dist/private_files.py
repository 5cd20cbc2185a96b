"""Folders and files of this user alone, where others may have been first: caches, copies of shards, temporary folders.

On a shared machine anyone can create ``/tmp/hsadml`` or put a symbolic link, a hard link or a pipe where a file is
expected. The owner and the permissions of the folder are checked before its use, and those of each file on the open
file, so that nobody can exchange it after the check.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import stat
from pathlib import Path

ROOT = 0
FOLDER_MODE = 0o700
FILE_MODE = 0o600


class UntrustedFileError(PermissionError):
    """A folder or file belongs to another user, or others can write to it; ``strerror`` has the reason and a remedy."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(errno.EACCES, problem, str(path))

    def __str__(self) -> str:
        return f"{self.filename} {self.strerror}"


def make_private_folder(folder: Path) -> None:
    """Create a folder, with the missing ones above it, for this user alone, or check one that exists.

    It may belong to this user or to root, and nobody else may be able to rename its files: others cannot write in it,
    or it has the sticky bit, as ``/tmp`` has. A symbolic link to such a folder is accepted if this user or root made
    it. The folders above are not checked, because a project's folder often belongs to a colleague: whoever exchanges
    this folder for another has to put one there that this check refuses, or files that :func:`open_private_file` does.

    Raises:
        UntrustedFileError: The folder exists and is not such a folder.
        OSError: It cannot be created.
    """
    for missing in reversed([path for path in (folder, *folder.parents) if not os.path.lexists(path)]):
        with contextlib.suppress(FileExistsError):
            missing.mkdir(mode=FOLDER_MODE)
    link = folder.lstat()
    if stat.S_ISLNK(link.st_mode) and link.st_uid not in (os.geteuid(), ROOT):
        raise UntrustedFileError(folder, f"is a link of {_owner(link)}; name a folder of your own")
    status = folder.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if status.st_uid not in (os.geteuid(), ROOT):
        raise UntrustedFileError(folder, f"belongs to {_owner(status)}; name a folder of your own")
    if _others_can_write(status) and not status.st_mode & stat.S_ISVTX:
        mode, remedy = stat.S_IMODE(status.st_mode), f"chmod go-w {folder}" if status.st_uid != ROOT else ""
        own = f"name a folder of your own, such as {folder}/{_name(os.geteuid())}"
        raise UntrustedFileError(folder, f"other users can write in it (mode {mode:o}); {remedy or own}")


def require_own_folder(folder: Path) -> None:
    """Raise UntrustedFileError unless a folder, not a link to one, belongs to this user, whoever else may use it."""
    status = folder.lstat()
    if stat.S_ISLNK(status.st_mode) or status.st_uid != os.geteuid():
        what = "is a link" if stat.S_ISLNK(status.st_mode) else f"belongs to {_owner(status)}"
        raise UntrustedFileError(folder, f"{what}; remove it")


def open_private_file(path: Path, flags: int) -> int:
    """Return a descriptor of a file of this user alone; with ``O_CREAT`` the file is created if it is missing.

    The file must be a regular one that belongs to this user, under this name only, and that nobody else can write to.
    What others may do apart from that, such as read it, is taken from them. A file of root's may be read.

    Args:
        path: The file; its last part is not followed if it is a symbolic link.
        flags: As for :func:`os.open`.

    Raises:
        UntrustedFileError: The file exists and is not such a file.
        OSError: It cannot be opened or created.
    """
    try:
        # O_NONBLOCK, because opening a pipe would wait for its other end.
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, FILE_MODE)
    except OSError as error:
        if path.is_symlink():  # errno is ELOOP, or EACCES in a folder with the sticky bit
            raise UntrustedFileError(path, "is a symbolic link; remove it") from error
        raise
    try:
        _require_private(path, os.fstat(descriptor), reads=flags & os.O_ACCMODE == os.O_RDONLY)
        with contextlib.suppress(OSError):  # of root's, or on a disk that is read-only
            if stat.S_IMODE(os.fstat(descriptor).st_mode) & 0o077:
                os.fchmod(descriptor, FILE_MODE)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def is_private_file(path: Path, size: int) -> bool:
    """Return whether there is a file of ``size`` bytes that :func:`open_private_file` opens for reading."""
    try:
        status = path.lstat()
        _require_private(path, status, reads=True)
    except OSError:
        return False
    return status.st_size == size


def _require_private(path: Path, status: os.stat_result, *, reads: bool) -> None:
    trusted = (os.geteuid(), ROOT) if reads else (os.geteuid(),)
    if not stat.S_ISREG(status.st_mode):
        raise UntrustedFileError(path, "is not a regular file; remove it")
    if status.st_uid not in trusted:
        raise UntrustedFileError(path, f"belongs to {_owner(status)}; name a folder of your own")
    if status.st_nlink > 1:
        raise UntrustedFileError(path, "has a second name (a hard link); remove it")
    if _others_can_write(status):
        raise UntrustedFileError(
            path, f"other users can write to it (mode {stat.S_IMODE(status.st_mode):o}); remove it"
        )


def _others_can_write(status: os.stat_result) -> bool:
    by_group = status.st_mode & stat.S_IWGRP and not _is_private_group(status.st_gid)
    return bool(by_group or status.st_mode & stat.S_IWOTH)


def _is_private_group(gid: int) -> bool:
    """Return whether a group is that of this user alone, as many systems make one for each user, with umask 002."""
    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return group.gr_name == user.pw_name and gid == user.pw_gid and set(group.gr_mem) <= {user.pw_name}


def _owner(status: os.stat_result) -> str:
    return f"another user ({_name(status.st_uid)})"


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
