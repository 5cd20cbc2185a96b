"""Write files atomically: a reader sees the old content or the new one, never half of it.

The content goes to a temporary file in the same folder, is forced to disk and takes its name with one rename, so it
also survives a crash of the machine. The temporary file is a new one under a random name, so that a link which another
user has put into a shared folder, such as ``/tmp``, is never written through.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_NAME_CHARACTERS = 50
"""Characters that a temporary name takes from the file's own: with four bytes each they fit into a name's 255."""


@contextmanager
def atomic_path(path: Path, *, durable: bool = True, mode: int = 0o666) -> Iterator[Path]:
    """Provide the path of an empty file next to ``path``; move what was written there to ``path`` if the body succeeds.

    Args:
        path: The file to write or replace; its folder exists.
        durable: Force the content to disk before the rename; otherwise a crash of the machine may leave an empty file.
        mode: Permissions of the file before the umask.

    Raises:
        OSError: The file cannot be written; no temporary file is left.
    """
    temporary = path.with_name(f".{path.name[:MAX_NAME_CHARACTERS]}.{secrets.token_hex(6)}.tmp")
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode))  # follows no link
    try:
        yield temporary
        if durable:
            force_to_disk(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes, *, durable: bool = True, mode: int = 0o666) -> None:
    """Write or replace ``path``; ``mode`` are its permissions before the umask."""
    with (
        atomic_path(path, durable=durable, mode=mode) as temporary,
        open(os.open(temporary, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "wb") as file,
    ):
        file.write(content)


def write_text(path: Path, text: str, *, durable: bool = True, mode: int = 0o666) -> None:
    """Write or replace ``path`` with UTF-8 text; see :func:`write_bytes`."""
    write_bytes(path, text.encode(), durable=durable, mode=mode)


def force_to_disk(path: Path) -> None:
    """Force a file's content, or a folder's directory entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
