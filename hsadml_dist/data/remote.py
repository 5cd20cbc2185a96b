"""Shards at a URL: their index, kept in the user's cache, and single files, downloaded with retries.

Imports only the standard library; fsspec and tenacity are imported when a URL is used. fsspec starts threads, and
loader workers must be forked before any thread exists. Therefore a process of its own fetches an index:
``python -m hsadml_dist.data.remote URL FOLDER``.
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
"""Scheme of a URL to the package that fsspec needs for it, and the extra of this package that installs it."""
CONNECT_SECONDS, SILENCE_SECONDS = 30, 60
"""How long a server may take to accept a connection, and how long a transfer may deliver nothing."""
RETRY_STATUSES = (408, 425, 429)
"""HTTP statuses below 500 that ask the client to try again later."""
UNREACHABLE = 3
"""Exit code of the process that fetches an index: the server does not answer at present."""

log = logging.getLogger(__name__)


class UnreachableError(DataError):
    """A server did not answer, or not completely, in any of the attempts."""


class _TransientError(Exception):
    """A transfer failed that may succeed the next time."""


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often a transfer is tried, with exponential backoff.

    Attributes:
        attempts: Number of attempts, including the first.
        first_seconds: The first pause; each further one is twice as long.
        longest_seconds: The longest pause.
    """

    attempts: int = 8
    first_seconds: float = 0.5
    longest_seconds: float = 30.0


DOWNLOAD_RETRIES = RetryPolicy()
INDEX_RETRIES = RetryPolicy(attempts=4)
"""Fewer attempts, because a user is waiting for the command to begin."""


def is_url(shards: str) -> bool:
    """Return whether ``data.shards`` is a URL rather than a folder."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", shards) is not None


def checked_url(url: str) -> str:
    """Return ``url``, or raise DataError if its scheme is not supported."""
    scheme = urlsplit(url).scheme.lower()
    if scheme not in SCHEMES:
        allowed = ", ".join(f"{name}://" for name in SCHEMES)
        raise DataError(f"{redact_url(url)}: shards cannot be read from {scheme}://; allowed: a folder, {allowed}")
    return url


def join_url(url: str, name: str) -> str:
    """Return the URL of a file in the folder at ``url``; a query string stays behind the path."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def redact_url(url: str) -> str:
    """Return ``url`` for messages: without passwords and without the query string, which may contain a key."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def user_cache_dir() -> Path:
    """Return the user's cache folder for this package: ``$XDG_CACHE_HOME/hsadml``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hsadml"


def open_shard_index(shards: str, *, fresh: bool) -> ShardIndex:
    """Return the index of the shards in a folder or, through the user's cache, at a URL.

    Args:
        shards: The folder or its URL.
        fresh: Ask the server even if the cache has an index; if it does not answer, use the cached one.

    Raises:
        DataError: The server does not answer, the index is missing or damaged, or a package for the URL is missing.
    """
    if not is_url(shards):
        return load_index(Path(shards))
    folder = user_cache_dir() / "index" / hashlib.sha256(redact_url(checked_url(shards)).encode()).hexdigest()[:32]
    if not fresh:
        with contextlib.suppress(DataError):
            return load_index(folder)
    try:
        _fetch_in_subprocess(shards, folder)
    except UnreachableError as error:
        with contextlib.suppress(DataError):
            known = load_index(folder)
            log.warning("%s; using the index that was fetched before", error)
            return known
        raise
    return load_index(folder)


def download(url: str, target: Path, retries: RetryPolicy = DOWNLOAD_RETRIES) -> None:
    """Copy the file at ``url`` to ``target``; retry transient failures and log each.

    Raises:
        UnreachableError: Every attempt failed.
        DataError: The file does not exist, the server refuses, or a package is missing.
        OSError: There is no space for the file.
    """
    tenacity = _import_for(url, "tenacity")

    def log_retry(state: Any) -> None:
        error, pause = state.outcome.exception(), state.next_action.sleep
        log.warning("%s: attempt %d: %s; retrying in %.1f s", redact_url(url), state.attempt_number, error, pause)

    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(retries.attempts),
        wait=tenacity.wait_exponential(multiplier=retries.first_seconds, max=retries.longest_seconds),
        retry=tenacity.retry_if_exception_type(_TransientError),
        before_sleep=log_retry,
        reraise=True,
    )
    try:
        retrying(_transfer, url, target)
    except _TransientError as error:
        raise UnreachableError(f"{redact_url(url)}: failed after {retries.attempts} attempts: {error}") from error


def fetch_index(url: str, folder: Path) -> None:
    """Copy the index at ``url`` into ``folder``; starts threads.

    Raises:
        DataError: As for :func:`download`; or the folder cannot be written, or the index is damaged.
    """
    with _temporary_folder(folder) as new:
        for last in (False, True):
            for name in (INDEX_NAME, SAMPLES_NAME):
                download(join_url(url, name), new / name, INDEX_RETRIES)
            try:
                load_index(new, redact_url(url))
                break
            except DataError as error:  # the two files may belong to two versions
                if last:
                    raise
                log.warning("%s; fetching it again", error)
        for name in (SAMPLES_NAME, INDEX_NAME):
            os.replace(new / name, folder / name)


def _transfer(url: str, target: Path) -> None:
    system = _file_system(url)
    try:
        system.get_file(url, str(target))
    except Exception as error:  # each kind of server has a library with errors of its own
        raise _classified(url, error) from error


def _classified(url: str, error: Exception) -> Exception:
    """Return the exception for a failed transfer: a permanent one, or a transient one."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"{redact_url(url)}: there is no such file on the server")
    if isinstance(error, PermissionError):
        return DataError(f"{redact_url(url)}: the server denies access: {_one_line(error)}")
    status = getattr(error, "status", None)
    if isinstance(status, int) and 400 <= status < 500 and status not in RETRY_STATUSES:
        return DataError(f"{redact_url(url)}: the server denies access: status {status}")
    if type(error).__name__ == "NoCredentialsError":  # botocore's, which is not imported here
        return DataError(f"{redact_url(url)}: no credentials found; for a public bucket set FSSPEC_S3_ANON=true")
    if isinstance(error, OSError) and error.errno in NO_SPACE_ERRNOS:
        return error
    return _TransientError(f"the server answered {status}" if isinstance(status, int) else _one_line(error))


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _file_system(url: str) -> Any:
    scheme = urlsplit(checked_url(url)).scheme.lower()
    package = _import_for(url, SCHEMES[scheme][0])
    fsspec = _import_for(url, "fsspec")
    if scheme == "s3":
        return fsspec.filesystem(scheme)
    # aiohttp's own limit is five minutes for a whole file, however large.
    limits = package.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
    return fsspec.filesystem(scheme, client_kwargs={"trust_env": True, "timeout": limits})


def _import_for(url: str, package: str) -> Any:
    scheme = urlsplit(url).scheme.lower()
    try:
        return importlib.import_module(package)
    except ImportError as error:
        problem = f"{scheme}:// needs the package {package}, which is not installed"
        remedy = f"pip install 'hsadml-dist[{SCHEMES[scheme][1]}]'"
        raise DataError(f"{redact_url(url)}: {problem}: {remedy}") from error


def _fetch_in_subprocess(url: str, folder: Path) -> None:
    root = str(Path(__file__).parents[2])
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-m", "hsadml_dist.data.remote", url, str(folder)]
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == UNREACHABLE:
        raise UnreachableError(done.stdout.strip())
    if done.returncode:
        raise DataError(done.stdout.strip() or f"{redact_url(url)}: the index could not be fetched")


@contextlib.contextmanager
def _temporary_folder(parent: Path) -> Iterator[Path]:
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=parent, ignore_cleanup_errors=True) as new:
            yield Path(new)
    except OSError as error:
        problem = f"the cache cannot be written: {error.strerror}; set XDG_CACHE_HOME to a writable folder"
        raise DataError(f"{parent}: {problem}") from error


def _main() -> int:
    logging.basicConfig(format="hsadml: %(message)s")
    url, folder = sys.argv[1:]
    try:
        fetch_index(url, Path(folder))
    except DataError as error:
        sys.stdout.write(f"{error}\n")
        return UNREACHABLE if isinstance(error, UnreachableError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())
