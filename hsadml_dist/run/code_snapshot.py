"""The code that a run was started with, kept in its folder.

::

    code/0123456789ab.zip     the package's files, named by their digest
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

import hsadml_dist
from hsadml_dist.errors import RunError
from hsadml_dist.run.folder import RunFolder, replace_text

PACKAGE = Path(hsadml_dist.__file__).parent
EXCLUDED_NAMES = ("__pycache__",)
NAMED_FILES = 5
GIT_SECONDS = 10.0
EPOCH = (1980, 1, 1, 0, 0, 0)
"""Time of every file in the archive, the earliest it can hold: the same code gives the same archive."""


@dataclass(frozen=True, kw_only=True)
class CodeSnapshot:
    """A package's code.

    Attributes:
        version: The package's version.
        digest: 12 hexadecimal digits over all files.
        commit: The git commit whose clean checkout it is, or None.
        files: SHA-256 of each file by its path in the package.
    """

    version: str
    digest: str
    commit: str | None
    files: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class CodeChange:
    """How the code at hand differs from that of a run's first start.

    Attributes:
        before: The first start's digest.
        now: The digest at hand.
        files: Paths of files that were changed, added or removed, ascending.
    """

    before: str
    now: str
    files: list[str]

    def __str__(self) -> str:
        named = ", ".join(self.files[:NAMED_FILES]) + (", ..." if len(self.files) > NAMED_FILES else "")
        count = f"{len(self.files)} file{'s' if len(self.files) > 1 else ''}"
        return f"the code is not that of the run's first start (kept in code/{self.before}.zip): {count}: {named}"


def save_code_snapshot(run: RunFolder, package: Path = PACKAGE) -> CodeChange | None:
    """Keep the code with a run's first start; with a later one return how it has changed since, None if not at all.

    To be called by the one process that holds the run.

    Args:
        run: The run folder.
        package: The package's folder.

    Raises:
        RunError: The run folder cannot be written.
    """
    files = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in _files(package)}
    digest = _digest(files)
    first = _read(run)
    if first is None:
        code = CodeSnapshot(version=_version(), digest=digest, commit=_clean_commit(package), files=files)
        try:
            _write(run, code, package)
        except OSError as fault:
            raise RunError(f"{fault.filename or run.code}: the code cannot be kept: {fault.strerror}") from fault
        return None
    if first.digest == digest:
        return None
    changed = [name for name in sorted(files.keys() | first.files.keys()) if files.get(name) != first.files.get(name)]
    return CodeChange(before=first.digest, now=digest, files=changed)


def _files(package: Path) -> Iterator[tuple[str, Path]]:
    """Yield (path in the package, path) of all files of the package, ascending."""
    found = []
    for folder, folders, names in os.walk(package, followlinks=True):  # launch, shards and slurm may be links
        folders[:] = [name for name in folders if name not in EXCLUDED_NAMES]
        found += [Path(folder) / name for name in names]
    yield from sorted((path.relative_to(package).as_posix(), path) for path in found)


def _digest(files: dict[str, str]) -> str:
    text = "".join(f"{digest} {name}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _read(run: RunFolder) -> CodeSnapshot | None:
    """Return the code of the first start, or None if there is no record that can be read."""
    try:
        return CodeSnapshot(**json.loads((run.code / "code.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _write(run: RunFolder, code: CodeSnapshot, package: Path) -> None:
    run.code.mkdir(parents=True, exist_ok=True)
    temporary = run.code / f".{code.digest}.zip"
    with temporary.open("wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, path in _files(package):
                info = zipfile.ZipInfo(f"{package.name}/{name}", EPOCH)
                info.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(info, path.read_bytes())
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, run.code / f"{code.digest}.zip")
    # Last: what it says is there by now.
    replace_text(run.code / "code.json", json.dumps(asdict(code), indent=2, sort_keys=True) + "\n")


def _version() -> str:
    try:
        return metadata.version("hsadml-dist")
    except metadata.PackageNotFoundError:  # run from a clone that is not installed
        return "unknown"


def _clean_commit(package: Path) -> str | None:
    """Return the commit whose checkout holds the package unchanged, or None."""
    root = package.parent
    # Only a repository of its own: one that merely surrounds an installed package says nothing about it.
    if _git(root, "rev-parse", "--show-toplevel") != str(root.resolve()):
        return None
    return _git(root, "rev-parse", "HEAD") if _git(root, "status", "--porcelain") == "" else None


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(root), "-c", "core.fsmonitor=false", *arguments]
    environ = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=GIT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
