"""Keep a snapshot of the code that a run was first started with, and report later changes.

::

    code/0123456789ab.zip     the package's files; the name is their digest
    code/code.json            version, digest, git commit of a clean checkout, SHA-256 of each file
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from hsadml_dist.atomic import atomic_path, write_text
from hsadml_dist.errors import RunError
from hsadml_dist.json_parsing import INVALID, parse_json
from hsadml_dist.run.folder import RunFolder

PACKAGE = Path(__file__).parents[1]
MAX_LISTED_FILES = 5
ZIP_TIMESTAMP = (1980, 1, 1, 0, 0, 0)
"""Timestamp of every archived file, the earliest that the format allows: equal code gives equal archives."""


@dataclass(frozen=True, kw_only=True)
class CodeSnapshot:
    """The code of a package.

    Attributes:
        digest: 12 hexadecimal digits over all files.
        commit: The git commit of which the package is a clean checkout, or None.
        files: SHA-256 of each file by its path in the package.
    """

    version: str
    digest: str
    commit: str | None
    files: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class CodeChange:
    """The difference between the installed code and that of a run's first start.

    Attributes:
        before: Digest of the first start's code; ``now`` is that of the installed code.
        files: Sorted paths of the files that were changed, added or removed.
    """

    before: str
    now: str
    files: list[str]

    def __str__(self) -> str:
        listed = ", ".join(self.files[:MAX_LISTED_FILES]) + (", ..." if len(self.files) > MAX_LISTED_FILES else "")
        count = f"{len(self.files)} file{'s' if len(self.files) > 1 else ''}"
        return f"the code has changed since the run's first start (kept in code/{self.before}.zip): {count}: {listed}"


def save_code_snapshot(run: RunFolder, package: Path = PACKAGE) -> CodeChange | None:
    """Save the code at a run's first start; at a later one, return how it has changed, or None if it has not.

    Only the process that holds the run may call this.

    Raises:
        RunError: The run folder cannot be written.
    """
    files = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in _package_files(package)}
    listing = "".join(f"{digest} {name}\n" for name, digest in sorted(files.items()))
    digest = hashlib.sha256(listing.encode()).hexdigest()[:12]
    first = _read_snapshot(run)
    if first is None:
        snapshot = CodeSnapshot(version=package_version(), digest=digest, commit=_clean_commit(package), files=files)
        try:
            _write_snapshot(run, snapshot, package)
        except OSError as fault:
            raise RunError(f"{fault.filename or run.code}: the code cannot be saved: {fault.strerror}") from fault
        return None
    if first.digest == digest:
        return None
    changed = [name for name in sorted(files.keys() | first.files.keys()) if files.get(name) != first.files.get(name)]
    return CodeChange(before=first.digest, now=digest, files=changed)


def _package_files(package: Path) -> Iterator[tuple[str, Path]]:
    """Yield (path in the package, path) of all files of the package, sorted."""
    found = []
    for folder, folders, names in os.walk(package, followlinks=True):  # launch, shards and slurm may be links
        folders[:] = [name for name in folders if name != "__pycache__"]
        found += [Path(folder) / name for name in names]
    yield from sorted((path.relative_to(package).as_posix(), path) for path in found)


def _read_snapshot(run: RunFolder) -> CodeSnapshot | None:
    """Return the snapshot of the first start, or None if there is no readable one."""
    try:
        return CodeSnapshot(**parse_json((run.code / "code.json").read_bytes()))
    except (OSError, *INVALID):
        return None


def _write_snapshot(run: RunFolder, snapshot: CodeSnapshot, package: Path) -> None:
    run.code.mkdir(parents=True, exist_ok=True)
    archive_path = run.code / f"{snapshot.digest}.zip"
    with atomic_path(archive_path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in _package_files(package):
            info = zipfile.ZipInfo(f"{package.name}/{name}", ZIP_TIMESTAMP)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, path.read_bytes())
    # Written last, so that the archive it refers to exists.
    write_text(run.code / "code.json", json.dumps(asdict(snapshot), indent=2, sort_keys=True) + "\n")


def package_version() -> str:
    """Return the version of the installed package, ``unknown`` if it is not installed."""
    try:
        return metadata.version("hsadml-dist")
    except metadata.PackageNotFoundError:  # run from a clone that is not installed
        return "unknown"


def _clean_commit(package: Path) -> str | None:
    """Return the commit of which the package is an unchanged checkout, or None."""
    root = package.parent
    # The repository must be the package's own: one that merely contains an installed package has other commits.
    if _git(root, "rev-parse", "--show-toplevel") != str(root.resolve()):
        return None
    return _git(root, "rev-parse", "HEAD") if _git(root, "status", "--porcelain") == "" else None


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(root), "-c", "core.fsmonitor=false", *arguments]
    environ = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=10.0, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
