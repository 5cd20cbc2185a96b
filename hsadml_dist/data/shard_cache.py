"""Copies of shards on the node's own disk: made once a node, checked against the index, shared by runs.

A copy is named by the shard's SHA-256, so runs on the same shards share it and other shards never meet it. Who makes
one holds a lock on a file beside it, which the kernel gives back if the holder dies, whatever of; then the next makes
it anew. A copy comes into place by rename, whole and with the right hash, or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hsadml_dist.data.index import ShardFile
from hsadml_dist.data.remote import checked_url, download, is_url, join_url, redact_url, user_cache_dir
from hsadml_dist.errors import NO_SPACE_ERRNOS, ConfigError, DataError, Fault

PIECE = 1 << 22
"""Bytes that are read at a time."""
ATTEMPTS = 2
"""Copies of a shard that are made before it counts as damaged where it comes from."""


@dataclass(frozen=True, kw_only=True)
class ShardCache:
    """Shards of one source, read through copies in a folder of this node.

    Attributes:
        source: Folder or address of the shards.
        folder: Where copies go.
    """

    source: str
    folder: Path

    def __str__(self) -> str:
        return redact_url(self.source) if is_url(self.source) else self.source

    def open(self, file: ShardFile) -> int:
        """Return a descriptor of a shard's copy, which is made first where there is none.

        Raises:
            DataError: It cannot be made or opened.
        """
        # A site that clears its scratch folders may take the copy away again before it is open.
        for _ in range(ATTEMPTS):
            self.fetch(file)
            with self._told_as("opened"), contextlib.suppress(FileNotFoundError):
                return os.open(self._copy(file), os.O_RDONLY | os.O_CLOEXEC)
        raise DataError(f"data.stage: {self.folder}: the copy of {file.name} is taken away as soon as it is there")

    def has(self, file: ShardFile) -> bool:
        """Return whether there is a copy of the right size; its bytes were checked when it was made."""
        try:
            return self._copy(file).stat().st_size == file.bytes
        except OSError:
            return False

    def fetch(self, file: ShardFile) -> None:
        """Make a shard's copy unless there is one; who comes second waits for the first.

        Raises:
            DataError: The shard is missing or damaged, or the folder has no room for it or cannot be written.
        """
        if self.has(file):
            return
        with self._lock(file):
            if not self.has(file):
                self._make(file)

    def repair(self, file: ShardFile) -> None:
        """Make a shard's copy anew if its bytes are no longer those that were written.

        Raises:
            DataError: As :meth:`fetch`.
        """
        with self._lock(file):
            if not self.has(file) or _hash_of(self._copy(file)) != file.sha256:
                self._make(file)

    def require_free_space(self, files: Iterable[ShardFile]) -> None:
        """Refuse a folder that cannot take the copies of ``files`` that are not there yet.

        Raises:
            DataError: It cannot.
        """
        with self._told_as("made"):
            self.folder.mkdir(parents=True, exist_ok=True)
        missing = [file for file in files if not self.has(file)]
        if missing and not os.access(self.folder, os.W_OK):
            raise DataError(f"data.stage: {self.folder}: cannot be written: {os.strerror(errno.EACCES)}")
        self._check_room(f"{len(missing)} shards", sum(file.bytes for file in missing))

    def _check_room(self, what: str, needed: int) -> None:
        with self._told_as("looked at"):
            free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise self._no_room(what, needed, free)

    def _no_room(self, what: str, needed: int, free: int) -> DataError:
        return DataError(
            f"data.stage: {self.folder}: no room for {what}: {needed} bytes are needed, {free} are free; "
            "name a larger folder or remove copies that no run needs"
        )

    @contextlib.contextmanager
    def _told_as(self, verb: str) -> Iterator[None]:
        """Tell a fault of the stage's own file system in one line."""
        try:
            yield
        except OSError as fault:
            raise DataError(f"data.stage: {self.folder}: cannot be {verb}: {fault.strerror}") from fault

    def _copy(self, file: ShardFile) -> Path:
        return self.folder / f"{file.sha256}.tar"

    @contextlib.contextmanager
    def _lock(self, file: ShardFile) -> Iterator[None]:
        """Hold the right to make a shard's copy. The file stays: who removed it might take it from a holder."""
        path = self.folder / f"{file.sha256}.lock"
        with self._told_as("written"):
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            with self._told_as("locked"):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _make(self, file: ShardFile) -> None:
        """Make a copy under the lock; what dead holders left is swept away first."""
        mine = f".{file.sha256}.{socket.gethostname()}."
        with self._told_as("written"):
            for left in self.folder.glob(f"{mine}*"):
                left.unlink(missing_ok=True)
        self._check_room(file.name, file.bytes)
        new = self.folder / f"{mine}{os.getpid()}"
        try:
            self._bring(file, new)
            with self._told_as("written"):
                os.replace(new, self._copy(file))
        finally:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)

    def _bring(self, file: ShardFile, new: Path) -> None:
        found = ""
        for _ in range(ATTEMPTS):
            found = self._transfer(file, new)
            if found == file.sha256:
                return
        raise DataError(
            f"{self}: {file.name} is damaged there: its SHA-256 is {found[:16]}..., the index says "
            f"{file.sha256[:16]}..., in {ATTEMPTS} copies of {ATTEMPTS}; or it was built anew under the training"
        )

    def _transfer(self, file: ShardFile, new: Path) -> str:
        """Write a shard's bytes to ``new``; return their SHA-256."""
        free = shutil.disk_usage(self.folder).free
        try:
            if not is_url(self.source):
                return _copied(Path(self.source) / file.name, new)
            download(join_url(self.source, file.name), new)
            return _hash_of(new)
        except OSError as fault:
            if fault.errno in NO_SPACE_ERRNOS:
                raise self._no_room(file.name, file.bytes, free) from fault
            raise DataError(f"data.stage: {self.folder}: cannot be written: {fault.strerror}") from fault


ShardLocation = Path | ShardCache
"""Where shards are read: in their own folder, or through copies."""


def train_shard_location(shards: str, stage: str | None) -> ShardLocation:
    """Return where a training reads the shards named by ``data.shards`` and ``data.stage``.

    Raises:
        ConfigError: ``stage`` is not a folder's absolute path, or a variable in it is not set.
        DataError: An address of a kind that cannot be read.
    """
    if not is_url(shards) and stage is None:
        return Path(shards)
    source = checked_url(shards) if is_url(shards) else shards
    return ShardCache(source=source, folder=user_cache_dir() / "shards" if stage is None else expand_stage_path(stage))


def eval_shard_location(shards: str, stage: str | None) -> ShardLocation:
    """Return where shards are read that are passed over once: those in a folder without a copy."""
    return train_shard_location(shards, stage if is_url(shards) else None)


def stage_path_problem(stage: str) -> str | None:
    """Say in one line why ``data.stage`` can be no folder on any node; None if it can."""
    if stage.startswith(("/", "~", "$")):
        return None
    return f"{stage!r}: is relative; name a folder on the node's own disk that begins with /, ~ or a variable"


def expand_stage_path(stage: str) -> Path:
    """Return the folder that ``data.stage`` means on this node.

    Raises:
        ConfigError: A variable in it is not set, or it is not absolute.
    """
    unset = [name for pair in re.findall(r"\$(?:(\w+)|\{(\w+)\})", stage) if not os.environ.get(name := "".join(pair))]
    if unset:
        raise _stage_error(stage, f"the environment variable {unset[0]} is not set on {socket.gethostname()}")
    folder = Path(os.path.expandvars(stage)).expanduser()
    if not folder.is_absolute():
        raise _stage_error(stage, f"{folder} is not absolute; name a folder on the node's own disk from / on")
    return folder


def _stage_error(stage: str, problem: str) -> ConfigError:
    return ConfigError([Fault(where="recipe", key="data.stage", problem=f"{stage!r}: {problem}")])


def _copied(source: Path, target: Path) -> str:
    """Copy a file; return the SHA-256 of its bytes. Only the target's faults leave as OSError."""
    hasher = hashlib.sha256()
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as fault:
        raise DataError(f"{source.name}: the shard cannot be opened: {fault.strerror}") from fault
    try:
        with target.open("wb") as out:
            for piece in _pieces(descriptor, source.name):
                hasher.update(piece)
                out.write(piece)
    finally:
        os.close(descriptor)
    return hasher.hexdigest()


def _pieces(descriptor: int, name: str) -> Iterator[bytes]:
    while True:
        try:
            piece = os.read(descriptor, PIECE)
        except OSError as fault:
            raise DataError(f"{name}: the shard cannot be read: {fault.strerror}") from fault
        if not piece:
            return
        yield piece


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
