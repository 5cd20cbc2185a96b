"""Which versions are installed; nothing is imported for it."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import hsadml_dist
from hsadml_dist.launch.doctor.finding import CheckResult, check_result

VERSIONS_GROUP = "programs"
PACKAGES = ("hsadml-dist", "torch", "monai", "webdataset", "deepspeed")
TRAINING = ("torch", "monai", "webdataset")
"""Without these nothing can be trained; a login node needs none of them."""


def versions() -> dict[str, str | None]:
    """Return the version of Python and of each package, None where it is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def pins(text: str) -> dict[str, str]:
    """Return the versions that a constraints file names."""
    return {name.lower(): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", text, flags=re.MULTILINE)}


def check_versions() -> Iterator[CheckResult]:
    """Yield what is installed on this machine."""
    path = Path(hsadml_dist.__file__).parent.parent / "constraints.txt"
    tested = pins(path.read_text(encoding="utf-8")) if path.is_file() else {}
    yield from compare_versions(versions(), tested)


def compare_versions(found: Mapping[str, str | None], tested: Mapping[str, str]) -> Iterator[CheckResult]:
    """Yield what the versions mean.

    Args:
        found: By name, as :func:`versions` has them.
        tested: The versions that were tested together, by name.
    """
    missing = [name for name in TRAINING if found[name] is None]
    for name, version in found.items():
        yield check_result(VERSIONS_GROUP, name, _text(name, version, tested.get(name)))
    if missing:
        text = f"no {', '.join(missing)} here: fine on a login node; a machine that trains needs them"
        yield check_result(VERSIONS_GROUP, "training", text)


def _text(name: str, version: str | None, tested: str | None) -> str:
    if version is None:
        return "runs from a clone, not installed" if name == "hsadml-dist" else "not installed"
    if tested is None or version.partition("+")[0] == tested:
        return version
    return f"{version}; {tested} was tested with the others"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
