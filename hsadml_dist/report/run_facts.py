"""Where a verdict's figures come from: weights, data, settings, and the software that gave them."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

from hsadml_dist.report.page import Table

PACKAGES = ("hsadml-dist", "torch", "monai", "deepspeed", "webdataset", "numpy", "scipy", "scikit-learn")
"""What a figure may hang on."""


def software() -> dict[str, str]:
    """Return the versions of Python and of those of :data:`PACKAGES` that are installed."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def provenance_table(result: Mapping[str, Any], versions: Mapping[str, str]) -> Table:
    """Return the table that says where the figures come from."""
    checkpoint = result["checkpoint"]
    rows = [
        ("weights", f"{checkpoint['name']}: step {checkpoint['step']}, attempt {checkpoint['attempt']}"),
        ("chosen by", result["chosen_by"]),
        ("network", result["model"]),
        ("loss", result["loss"]),
        ("training seed", str(result["seed"])),
        *settings(result),
        ("ranks that judged", str(result["world_size"])),
        ("data (SHA-256 of the table of samples)", result["data_digest"]),
        ("software of the verdict", software_text(versions) or "not recorded"),
        ("result.json, version", str(result["schema_version"])),
    ]
    return Table(caption="Where the figures come from", head=("what", "value"), rows=rows)


def settings(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the settings that a result took over from its recipe, (name, value); inner ones as ``loss.margin``."""
    return [(name, text) for name, text in _flat(result.get("recipe") or {}) if text not in ("None", "")]


def software_text(versions: Mapping[str, str]) -> str:
    """Return versions in one line."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _flat(values: Mapping[str, Any], under: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{under}{name}.")
        else:
            yield f"{under}{name}".replace("_", " "), str(value)
