"""Shards at a URL: their index, kept in the user's cache, and single files, downloaded with retries.

Imports only the standard library; fsspec and tenacity are imported when a URL is used. fsspec starts threads, and
loader workers must be forked before any thread exists. Therefore a process of its own fetches an index:
``python -m hsadml_dist.data.remote``, which reads the URL, the folder and perhaps the names of other small files beside
the index from its standard input, because every user of the machine can read its command line. A server is not trusted:
a transfer ends at the size that the file may have.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
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

from hsadml_dist.addresses import HIDDEN, display_address, is_url, redact_addresses
from hsadml_dist.data.contents import CONTENTS_NAME, ShardContents, contents_file, load_contents
from hsadml_dist.data.index import INDEX_NAME, SAMPLES_NAME, ShardIndex, load_index
from hsadml_dist.errors import NO_SPACE_ERRNOS, DataError
from hsadml_dist.printable import escape_early_warnings
from hsadml_dist.private_files import UntrustedFileError, make_private_folder

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
INDEX_LIMITS = {INDEX_NAME: 64 << 20, SAMPLES_NAME: 1 << 30, CONTENTS_NAME: 1 << 30}
"""Bytes of an index that are accepted: three million slices, at about 350 bytes each."""
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


def checked_url(url: str) -> str:
    """Return ``url``, or raise DataError if it cannot be parsed or its scheme is not supported."""
    try:
        parts = urlsplit(url)
        scheme, _ = parts.scheme.lower(), parts.port
    except ValueError:  # its text may contain the password
        problem = "is not a valid address; write a / ? # or @ in a user or password as %2F %3F %23 or %40"
        raise DataError(f"{display_address(url)}: {problem}") from None
    if scheme not in SCHEMES:
        allowed = ", ".join(f"{name}://" for name in SCHEMES)
        raise DataError(f"{display_address(url)}: shards cannot be read from {scheme}://; allowed: a folder, {allowed}")
    return url


def join_url(url: str, name: str) -> str:
    """Return the URL of a file in the folder at ``url``; a query string stays behind the path."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


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
    folder = _index_folder(shards)
    if not fresh:
        with contextlib.suppress(DataError):
            return _load_cached(folder)
    try:
        _fetch_in_subprocess(shards, folder)
    except UnreachableError as error:
        with contextlib.suppress(DataError):
            known = _load_cached(folder)
            log.warning("%s; using the index that was fetched before", error)
            return known
        raise
    return _load_cached(folder)


def _load_cached(folder: Path) -> ShardIndex:
    with _report_cache_errors(folder):
        make_private_folder(folder)
    return load_index(folder)


def open_shard_contents(shards: str, index: ShardIndex) -> ShardContents | None:
    """Return the content hashes of the shards in a folder or, through the user's cache, at a URL.

    Args:
        shards: The folder or its URL.
        index: Its index, from :func:`open_shard_index`.

    Returns None, with a warning unless the shards were built without them, if there are none or the server does not
    answer.
    """
    if not is_url(shards):
        return load_contents(Path(shards), index)
    folder, expected = _index_folder(shards), contents_file(index)
    if expected is None:
        return None
    path = folder / CONTENTS_NAME
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != expected.sha256:
        try:
            _fetch_in_subprocess(shards, folder, CONTENTS_NAME)
        except DataError as error:
            log.warning("%s; continuing without the content hashes", error)
            return None
    return load_contents(folder, index)


def download(url: str, target: Path, retries: RetryPolicy = DOWNLOAD_RETRIES, *, limit: int) -> None:
    """Copy the file at ``url`` to ``target``; retry transient failures and log each.

    Args:
        url: The file.
        target: Where to write it; replaced if it exists.
        retries: How often to try.
        limit: Bytes that the file may have, after decompression by the protocol.

    Raises:
        UnreachableError: Every attempt failed.
        DataError: The file does not exist or is larger, the server refuses, or a package is missing.
        OSError: There is no space for the file.
    """
    tenacity = _import_for(url, "tenacity")

    def log_retry(state: Any) -> None:
        error, pause = state.outcome.exception(), state.next_action.sleep
        log.warning("%s: attempt %d: %s; retrying in %.1f s", display_address(url), state.attempt_number, error, pause)

    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(retries.attempts),
        wait=tenacity.wait_exponential(multiplier=retries.first_seconds, max=retries.longest_seconds),
        retry=tenacity.retry_if_exception_type(_TransientError),
        before_sleep=log_retry,
        reraise=True,
    )
    try:
        retrying(_transfer, url, target, limit)
    except _TransientError as error:
        raise UnreachableError(f"{display_address(url)}: failed after {retries.attempts} attempts: {error}") from None


def fetch_index(url: str, folder: Path) -> None:
    """Copy the index at ``url`` into ``folder``; starts threads.

    Raises:
        DataError: As for :func:`download`; or the folder cannot be written, or the index is damaged.
    """
    with _temporary_folder(folder) as new:
        for last in (False, True):
            for name in (INDEX_NAME, SAMPLES_NAME):
                download(join_url(url, name), new / name, INDEX_RETRIES, limit=INDEX_LIMITS[name])
            try:
                load_index(new, display_address(url))
                break
            except DataError as error:  # the two files may belong to two versions
                if last:
                    raise
                log.warning("%s; fetching it again", error)
        for name in (SAMPLES_NAME, INDEX_NAME):
            os.replace(new / name, folder / name)


def _transfer(url: str, target: Path, limit: int) -> None:
    system, size_limit = _file_system(url), _size_limit(url, limit)
    try:
        system.get_file(url, str(target), callback=size_limit)
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001  each kind of server has a library with errors of its own
        # Without its cause, whose text may contain the key of an address: a traceback would print it.
        raise _classified(url, error) from None


def _size_limit(url: str, limit: int) -> Any:
    """Return an fsspec callback that ends a transfer with DataError as soon as it has more than ``limit`` bytes."""

    # The size that the server announces is not checked: it may be that of an error page.
    def check(size: int | None, value: int, **_: Any) -> None:
        if value > limit:
            problem = f"the server sends more than the {limit} bytes that this file may have; stopped"
            raise DataError(f"{display_address(url)}: {problem}")

    return _import_for(url, "fsspec").Callback(hooks={"limit": check})


def _classified(url: str, error: Exception) -> Exception:
    """Return the exception for a failed transfer: a permanent one, or a transient one."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"{display_address(url)}: there is no such file on the server")
    if isinstance(error, PermissionError):
        return DataError(f"{display_address(url)}: the server denies access: {_reason(url, error)}")
    status = getattr(error, "status", None)
    if isinstance(status, int) and 400 <= status < 500 and status not in RETRY_STATUSES:
        return DataError(f"{display_address(url)}: the server denies access: status {status}")
    if type(error).__name__ == "NoCredentialsError":  # botocore's, which is not imported here
        return DataError(f"{display_address(url)}: no credentials found; for a public bucket set FSSPEC_S3_ANON=true")
    if isinstance(error, OSError) and error.errno in NO_SPACE_ERRNOS:
        return error
    return _TransientError(f"the server answered {status}" if isinstance(status, int) else _reason(url, error))


def _reason(url: str, error: Exception) -> str:
    """Return an error in one line without the keys of ``url`` or of an address that the server redirects to."""
    text = redact_addresses(" ".join(f"{type(error).__name__}: {error}".split()))
    parts = urlsplit(url)
    for secret in filter(None, (parts.password, parts.query)):
        text = text.replace(secret, HIDDEN)
    return re.sub(r"\?\S*=\S*", f"?{HIDDEN}", text)


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
        raise DataError(f"{display_address(url)}: {problem}: {remedy}") from error


def _index_folder(url: str) -> Path:
    """Return the folder of the user's cache for the index of the shards at a URL."""
    return user_cache_dir() / "index" / hashlib.sha256(display_address(checked_url(url)).encode()).hexdigest()[:32]


def _fetch_file(url: str, folder: Path, name: str) -> None:
    with _temporary_folder(folder) as new:
        download(join_url(url, name), new / name, INDEX_RETRIES, limit=INDEX_LIMITS[name])
        os.replace(new / name, folder / name)


def _fetch_in_subprocess(url: str, folder: Path, *names: str) -> None:
    root = str(Path(__file__).parents[2])
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-P", "-m", "hsadml_dist.data.remote"]
    request = json.dumps([url, str(folder), *names])
    done = subprocess.run(command, env=environ, input=request, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == UNREACHABLE:
        raise UnreachableError(done.stdout.strip())
    if done.returncode:
        fetched = ", ".join(names) or "the index"
        raise DataError(done.stdout.strip() or f"{display_address(url)}: {fetched} could not be fetched")


@contextlib.contextmanager
def _temporary_folder(parent: Path) -> Iterator[Path]:
    with _report_cache_errors(parent):
        make_private_folder(parent)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=parent, ignore_cleanup_errors=True) as new:
            yield Path(new)


@contextlib.contextmanager
def _report_cache_errors(folder: Path) -> Iterator[None]:
    """Turn an error of the file system of the user's cache into one line."""
    try:
        yield
    except UntrustedFileError as error:
        raise DataError(f"the cache: {error}; XDG_CACHE_HOME chooses another one") from error
    except OSError as error:
        problem = f"the cache cannot be written: {error.strerror}; set XDG_CACHE_HOME to a writable folder"
        raise DataError(f"{folder}: {problem}") from error


def _main() -> int:
    escape_early_warnings()
    url, folder, *names = json.load(sys.stdin)
    try:
        if not names:
            fetch_index(url, Path(folder))
        for name in names:
            _fetch_file(url, Path(folder), name)
    except DataError as error:
        sys.stdout.write(f"{error}\n")
        return UNREACHABLE if isinstance(error, UnreachableError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())
