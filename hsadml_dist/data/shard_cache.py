"""Copies of shards on the node's own disk: shared by a user's runs, verified against the index, made ahead of use.

A copy is named by the SHA-256 of its shard, so runs on the same shards share it and different shards never collide.
Folder and copies belong to the user; what another user may have changed counts as missing.
The maker of a copy holds a lock on a file next to it, which the kernel releases if the maker dies for any reason; the
next one then makes the copy again. A copy appears by rename, complete and with the right hash, or not at all.

:class:`ShardCache` makes single copies; :class:`ShardPrefetcher` copies shards in the order of the training, from one
process per node.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from hsadml_dist.addresses import display_address, is_url
from hsadml_dist.data.index import ShardFile
from hsadml_dist.data.remote import checked_url, download, join_url, user_cache_dir
from hsadml_dist.errors import NO_SPACE_ERRNOS, ConfigError, DataError, Fault
from hsadml_dist.private_files import UntrustedFileError, is_private_file, make_private_folder, open_private_file
from hsadml_dist.process import setup_helper_process

if TYPE_CHECKING:  # a login node checks ``data.stage`` with this file, without NumPy
    from hsadml_dist.data.order import ShardSchedule

CHUNK_BYTES = 1 << 22
"""Bytes per read."""
ATTEMPTS = 2
"""Copies made of a shard before the shard itself counts as damaged."""
POLL_SECONDS = 0.05
"""How often a rank that waits for a shard checks for a stop request."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ShardCache:
    """Shards of one source, read through copies in a folder of this node.

    Attributes:
        source: Folder or URL of the shards.
        folder: Folder of the copies.
    """

    source: str = field(repr=False)
    folder: Path

    def __str__(self) -> str:
        return display_address(self.source)

    def open(self, file: ShardFile) -> int:
        """Return a descriptor of a shard's copy; make the copy first if there is none.

        Raises:
            DataError: The copy cannot be made or opened.
        """
        # A site that clears its scratch folders may delete the copy again before it is open.
        for _ in range(ATTEMPTS):
            self.fetch(file)
            with self._report_errors("opened"), contextlib.suppress(FileNotFoundError):
                return open_private_file(self._copy(file), os.O_RDONLY)
        raise DataError(f"data.stage: {self.folder}: the copy of {file.name} is deleted as soon as it is there")

    def has(self, file: ShardFile) -> bool:
        """Return whether this user has a copy of the right size; its bytes were verified when it was made."""
        return is_private_file(self._copy(file), file.bytes)

    def fetch(self, file: ShardFile) -> None:
        """Make a shard's copy unless there is one; wait if another process is making it.

        Raises:
            DataError: The shard is missing or damaged, or the folder has no space for it or cannot be written.
        """
        if self.has(file):
            return
        with self._lock(file):
            if not self.has(file):
                self._make(file)

    def repair(self, file: ShardFile) -> None:
        """Make a shard's copy again if it no longer matches its hash; raises what :meth:`fetch` raises."""
        with self._lock(file):
            if not self.has(file) or _hash_of(self._copy(file)) != file.sha256:
                self._make(file)

    def require_free_space(self, files: Iterable[ShardFile]) -> None:
        """Raise DataError unless the folder can be written and has space for the missing copies of ``files``."""
        with self._report_errors("created"):
            make_private_folder(self.folder)
        missing = [file for file in files if not self.has(file)]
        if missing and not os.access(self.folder, os.W_OK):
            raise DataError(f"data.stage: {self.folder}: cannot be written: {os.strerror(errno.EACCES)}")
        self._require_bytes(f"{len(missing)} shards", sum(file.bytes for file in missing))

    def _require_bytes(self, content: str, needed: int) -> None:
        with self._report_errors("read"):
            free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise self._no_space(content, needed, free)

    def _no_space(self, content: str, needed: int, free: int) -> DataError:
        return DataError(
            f"data.stage: {self.folder}: no space for {content}: {needed} bytes are needed, {free} are free; "
            "name a larger folder or remove copies that no run needs"
        )

    @contextlib.contextmanager
    def _report_errors(self, verb: str) -> Iterator[None]:
        """Turn an error of the cache's own file system into one line."""
        try:
            yield
        except UntrustedFileError as error:
            raise DataError(f"data.stage: {error}") from error
        except OSError as error:
            raise DataError(f"data.stage: {self.folder}: cannot be {verb}: {error.strerror}") from error

    def _copy(self, file: ShardFile) -> Path:
        return self.folder / f"{file.sha256}.tar"

    @contextlib.contextmanager
    def _lock(self, file: ShardFile) -> Iterator[None]:
        """Hold the lock for making a shard's copy. The lock file stays: removing it could break another's lock."""
        path = self.folder / f"{file.sha256}.lock"
        with self._report_errors("written"):
            make_private_folder(self.folder)
            descriptor = open_private_file(path, os.O_RDWR | os.O_CREAT)
        try:
            with self._report_errors("locked"):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _make(self, file: ShardFile) -> None:
        """Make a copy under the lock, and first delete what makers that died have left."""
        prefix = f".{file.sha256}.{socket.gethostname()}."
        with self._report_errors("written"):
            for left in self.folder.glob(f"{prefix}*"):
                left.unlink(missing_ok=True)
        self._require_bytes(file.name, file.bytes)
        new = self.folder / f"{prefix}{os.getpid()}"
        with self._report_errors("written"):
            os.close(open_private_file(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        try:
            self._transfer_verified(file, new)
            with self._report_errors("written"):
                os.replace(new, self._copy(file))
        finally:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)

    def _transfer_verified(self, file: ShardFile, new: Path) -> None:
        for _ in range(ATTEMPTS):
            found = self._transfer(file, new)
            if found == file.sha256:
                return
        raise DataError(
            f"{self}: {file.name} is damaged at its source: SHA-256 {found[:16]}... instead of {file.sha256[:16]}..., "
            f"in {ATTEMPTS} copies of {ATTEMPTS}; or the shards were built again during the training"
        )

    def _transfer(self, file: ShardFile, new: Path) -> str:
        """Write a shard's bytes to ``new``; return their SHA-256."""
        free = shutil.disk_usage(self.folder).free
        try:
            if not is_url(self.source):
                return _copy_file(Path(self.source) / file.name, new)
            download(join_url(self.source, file.name), new, limit=file.bytes)
            return _hash_of(new)
        except OSError as error:
            if error.errno in NO_SPACE_ERRNOS:
                raise self._no_space(file.name, file.bytes, free) from error
            raise DataError(f"data.stage: {self.folder}: cannot be written: {error.strerror}") from error


ShardLocation = Path | ShardCache
"""Where shards are read: in their own folder, or through copies."""


def train_shard_location(shards: str, stage: str | None) -> ShardLocation:
    """Return where a training reads the shards named by ``data.shards`` and ``data.stage``.

    Raises:
        ConfigError: ``stage`` is not the absolute path of a folder, or a variable in it is not set.
        DataError: A URL whose scheme is not supported.
    """
    if not is_url(shards) and stage is None:
        return Path(shards)
    source = checked_url(shards) if is_url(shards) else shards
    folder = user_cache_dir() / "shards" if stage is None else expand_stage_path(stage)
    return ShardCache(source=source, folder=folder)


def eval_shard_location(shards: str, stage: str | None) -> ShardLocation:
    """Return where an evaluation, which reads each shard once, reads them: those in a folder without a copy."""
    return train_shard_location(shards, stage if is_url(shards) else None)


def stage_path_problem(stage: str) -> str | None:
    """Return in one line why ``data.stage`` cannot be a folder on any node, or None if it can."""
    if stage.startswith(("/", "~", "$")):
        return None
    return f"{stage!r}: is a relative path; name a folder on the node's own disk that begins with /, ~ or a variable"


def expand_stage_path(stage: str) -> Path:
    """Return the folder that ``data.stage`` names on this node.

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


class ShardPrefetcher:
    """Copies shards to the node before they are needed.

    On the first rank of a node, the constructor forks a process that waits for :meth:`start`; construct it before any
    thread, process group or device context exists. Like a loader worker the process ignores stop signals and dies with
    its parent.

    Attributes:
        pid: The process id, or None.
    """

    def __init__(self, cache: ShardCache, schedule: ShardSchedule) -> None:
        self._cache, self._schedule = cache, schedule
        self.pid: int | None = None
        self._commands = -1
        if schedule.topology.local_rank == 0:
            self._fork()

    def start(self, first: int, last: int) -> None:
        """Begin to copy the shards of steps ``first`` to ``last``, inclusive."""
        if self._commands >= 0:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._commands, f"{first} {last}\n".encode())
            self._close_pipe()

    def wait_for_step(self, step: int, interrupted: Callable[[], bool]) -> bool:
        """Wait for this rank's shards of ``step``; return False if ``interrupted`` became true first.

        For a rank without workers, which cannot be interrupted in the middle of a copy or a download.

        Raises:
            DataError: A shard cannot be copied.
        """
        missing = [file for file in self._schedule.step_shards(step) if not self._cache.has(file)]
        if not missing:
            return True
        errors: list[DataError] = []

        def fetch() -> None:
            try:
                for file in missing:
                    self._cache.fetch(file)
            except DataError as error:
                errors.append(error)

        thread = threading.Thread(target=fetch, name="shard-copies", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            if thread.is_alive() and interrupted():
                return False
        if errors:
            raise errors[0]
        return True

    def close(self) -> None:
        """Kill the process, whatever it waits for."""
        self._close_pipe()
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
            self.pid = None

    def _fork(self) -> None:
        commands, self._commands = os.pipe()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            os.close(self._commands)
            _prefetch_process(commands, parent, self._cache, self._schedule)
        os.close(commands)
        self.pid = pid

    def _close_pipe(self) -> None:
        if self._commands >= 0:
            os.close(self._commands)
            self._commands = -1


def _prefetch_process(commands: int, parent: int, cache: ShardCache, schedule: ShardSchedule) -> NoReturn:
    """Run the forked process; it never returns into the code of its parent."""
    try:
        setup_helper_process()
        if os.getppid() == parent:
            with open(commands, encoding="ascii") as pipe:
                steps = [int(word) for word in pipe.readline().split()]
            for file in schedule.node_shards(*steps) if steps else ():
                cache.fetch(file)
    except DataError as error:
        # The rank that needs the shard meets the same error, and ends the training with it.
        log.warning("shard not copied ahead: %s", error)
    except BaseException:
        log.exception("copying shards ahead failed")
    finally:
        os._exit(0)


def _stage_error(stage: str, problem: str) -> ConfigError:
    return ConfigError([Fault(where="recipe", key="data.stage", problem=f"{stage!r}: {problem}")])


def open_shard(path: Path) -> int:
    """Return a descriptor of a shard in its own folder; raise DataError if it cannot be opened."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DataError(f"{path.name}: the shard cannot be opened: {error.strerror}") from error


def _copy_file(source: Path, target: Path) -> str:
    """Copy a file; return the SHA-256 of its bytes. Only errors of the target leave as OSError."""
    hasher, descriptor = hashlib.sha256(), open_shard(source)
    try:
        with target.open("wb") as out:
            for chunk in _chunks(descriptor, source.name):
                hasher.update(chunk)
                out.write(chunk)
    finally:
        os.close(descriptor)
    return hasher.hexdigest()


def _chunks(descriptor: int, name: str) -> Iterator[bytes]:
    while True:
        try:
            chunk = os.read(descriptor, CHUNK_BYTES)
        except OSError as error:
            raise DataError(f"{name}: the shard cannot be read: {error.strerror}") from error
        if not chunk:
            return
        yield chunk


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
