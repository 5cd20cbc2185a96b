"""Shards at an address: their index in the user's cache, and single files by a transfer that is tried again.

This file imports the standard library alone; fsspec and tenacity only where an address is used. fsspec starts threads,
and loader workers must be forked before any: an index is therefore fetched by a process of its own, which is also what
``python -m hsadml_dist.data.remote ADDRESS FOLDER`` does.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from hsadml_dist.data.index import INDEX_NAME, SAMPLES_NAME, ShardIndex, load_index
from hsadml_dist.errors import NO_SPACE_ERRNOS, DataError

SCHEMES = {
    "http": ("aiohttp", "train"),
    "https": ("aiohttp", "train"),
    "s3": ("s3fs", "s3"),
}
"""Scheme of an address to the package that fsspec needs for it, and the extra of this package that brings it."""
CONNECT_SECONDS, HEARTBEAT_TIMEOUT_SECONDS = 30, 60
"""How long a server may take to answer a call, and how long a transfer may stand still."""
PASSING = (408, 425, 429)
"""Answers below 500 that ask to come back later."""
UNREACHABLE = 3
"""Exit code of the process that fetches an index: the server did not answer, now."""

log = logging.getLogger(__name__)


class UnreachableError(DataError):
    """A server that did not answer, or not whole, however often it was asked."""


class _PassingError(Exception):
    """A transfer that may succeed the next time."""


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often a transfer is tried, and how long the pauses are: each twice the one before.

    Attributes:
        attempts: Including the first.
        first_seconds: The first pause.
        longest_seconds: No pause is longer.
    """

    attempts: int = 8
    first_seconds: float = 0.5
    longest_seconds: float = 30.0


DOWNLOAD_RETRIES = RetryPolicy()
INDEX_RETRIES = RetryPolicy(attempts=4)
"""Less, since somebody waits for the command to begin."""


def is_url(shards: str) -> bool:
    """Return whether ``data.shards`` names a server and not a folder."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", shards) is not None


def checked_url(address: str) -> str:
    """Return an address of a kind that can be read.

    Raises:
        DataError: It is of another kind.
    """
    scheme = urlsplit(address).scheme.lower()
    if scheme not in SCHEMES:
        allowed = ", ".join(f"{name}://" for name in SCHEMES)
        raise DataError(f"{redact_url(address)}: shards are not read from {scheme}://; allowed: a folder, {allowed}")
    return address


def join_url(address: str, name: str) -> str:
    """Return the address of a file in the folder at ``address``; what follows a ``?`` stays behind the path."""
    parts = urlsplit(address)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def redact_url(address: str) -> str:
    """Return an address for messages: without passwords and without what follows a ``?``, which may be a key."""
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def user_cache_dir() -> Path:
    """Return the user's cache for this package: ``$XDG_CACHE_HOME/hsadml``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hsadml"


def open_shard_index(shards: str, *, fresh: bool) -> ShardIndex:
    """Return the index of the shards in a folder or at an address; see :func:`load_remote_index` for ``fresh``.

    Raises:
        DataError: There is none, or it is damaged.
    """
    return load_remote_index(shards, fresh=fresh) if is_url(shards) else load_index(Path(shards))


def load_remote_index(address: str, *, fresh: bool) -> ShardIndex:
    """Return the index of the shards at ``address``, through the cache.

    Args:
        address: Of the folder of shards.
        fresh: Whether to ask the server though the cache has an index. If it does not answer, the cache must do.

    Raises:
        DataError: No server, no index there, or a damaged one; the package that the address needs is missing.
    """
    folder = user_cache_dir() / "index" / hashlib.sha256(redact_url(checked_url(address)).encode()).hexdigest()[:32]
    if not fresh:
        with contextlib.suppress(DataError):
            return load_index(folder)
    try:
        _fetch_apart(address, folder)
    except UnreachableError as fault:
        with contextlib.suppress(DataError):
            known = load_index(folder)
            log.warning("%s; going on with the index that was fetched before", fault)
            return known
        raise
    return load_index(folder)


def download(address: str, target: Path, patience: RetryPolicy = DOWNLOAD_RETRIES) -> None:
    """Copy the file at ``address`` to ``target``; what passes is tried again, with a line in the log each time.

    Raises:
        UnreachableError: No attempt came through.
        DataError: It is not there, the server refuses, or a package is missing.
        OSError: There is no room for it.
    """
    tenacity = _imported("tenacity", address)
    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(patience.attempts),
        wait=tenacity.wait_exponential(multiplier=patience.first_seconds, max=patience.longest_seconds),
        retry=tenacity.retry_if_exception_type(_PassingError),
        before_sleep=lambda state: _tell(address, state),
        reraise=True,
    )
    try:
        retrying(_transfer, address, target)
    except _PassingError as fault:
        raise UnreachableError(
            f"{redact_url(address)}: given up after {patience.attempts} attempts: {fault}"
        ) from fault


def _tell(address: str, state: Any) -> None:
    fault, pause = state.outcome.exception(), state.next_action.sleep
    log.warning("%s: attempt %d: %s; again in %.1f s", redact_url(address), state.attempt_number, fault, pause)


def _transfer(address: str, target: Path) -> None:
    system = _file_system(address)
    try:
        system.get_file(address, str(target))
    except FileNotFoundError as fault:
        raise DataError(f"{redact_url(address)}: there is no such file on the server") from fault
    except PermissionError as fault:
        raise DataError(f"{redact_url(address)}: the server refuses to give it: {_line(fault)}") from fault
    except Exception as fault:  # each kind of server has a library with errors of its own
        raise _named(address, fault) from fault


def _named(address: str, fault: Exception) -> Exception:
    """Return what a failed transfer means: a fault that stays, or one that may pass."""
    status = getattr(fault, "status", None)
    if isinstance(status, int) and 400 <= status < 500 and status not in PASSING:
        return DataError(f"{redact_url(address)}: the server refuses to give it: it answered {status}")
    if type(fault).__name__ == "NoCredentialsError":  # botocore's, which is not imported here
        return DataError(
            f"{redact_url(address)}: no credentials were found; for a public bucket set FSSPEC_S3_ANON=true"
        )
    if isinstance(fault, OSError) and fault.errno in NO_SPACE_ERRNOS:
        return fault
    return _PassingError(f"the server answered {status}" if isinstance(status, int) else _line(fault))


def _line(fault: Exception) -> str:
    return " ".join(f"{type(fault).__name__}: {fault}".split())


def _file_system(address: str) -> Any:
    scheme = urlsplit(checked_url(address)).scheme.lower()
    package = _imported(SCHEMES[scheme][0], address)
    fsspec = _imported("fsspec", address)
    if scheme == "s3":
        return fsspec.filesystem(scheme)
    # aiohttp's own limit is five minutes for a whole file, however large.
    limits = package.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=HEARTBEAT_TIMEOUT_SECONDS)
    return fsspec.filesystem(scheme, client_kwargs={"trust_env": True, "timeout": limits})


def _imported(package: str, address: str) -> Any:
    scheme = urlsplit(address).scheme.lower()
    try:
        return importlib.import_module(package)
    except ImportError as fault:
        extra = SCHEMES[scheme][1]
        need = f"{scheme}:// needs the package {package}, which is not installed"
        raise DataError(f"{redact_url(address)}: {need}: pip install 'hsadml-dist[{extra}]'") from fault


def _fetch_apart(address: str, folder: Path) -> None:
    """Fetch an index by a process of its own."""
    root = str(Path(__file__).parents[2])
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-m", "hsadml_dist.data.remote", address, str(folder)]
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == UNREACHABLE:
        raise UnreachableError(done.stdout.strip())
    if done.returncode:
        raise DataError(done.stdout.strip() or f"{redact_url(address)}: its index could not be fetched")


def fetch_index(address: str, folder: Path) -> None:
    """Put the index at ``address`` into ``folder``; starts threads.

    Raises:
        DataError: As :func:`download`; or the folder cannot be written, or the index is damaged.
    """
    with _new_folder(folder) as new:
        for last in (False, True):
            for name in (INDEX_NAME, SAMPLES_NAME):
                download(join_url(address, name), new / name, INDEX_RETRIES)
            try:
                load_index(new, redact_url(address))
                break
            except DataError as fault:  # caught between two versions, perhaps
                if last:
                    raise
                log.warning("%s; fetched again", fault)
        for name in (SAMPLES_NAME, INDEX_NAME):
            os.replace(new / name, folder / name)


@contextlib.contextmanager
def _new_folder(beside: Path) -> Iterator[Path]:
    try:
        beside.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=beside, ignore_cleanup_errors=True) as new:
            yield Path(new)
    except OSError as fault:
        problem = f"the cache cannot be written: {fault.strerror}; set XDG_CACHE_HOME to a folder that can"
        raise DataError(f"{beside}: {problem}") from fault


def _main() -> int:
    logging.basicConfig(format="hsadml: %(message)s")
    address, folder = sys.argv[1:]
    try:
        fetch_index(address, Path(folder))
    except DataError as fault:
        sys.stdout.write(f"{fault}\n")
        return UNREACHABLE if isinstance(fault, UnreachableError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())
