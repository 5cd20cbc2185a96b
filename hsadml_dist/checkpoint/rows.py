"""Groups of tensors that the ranks may share out by rows: a file a rank, or one file of them all, read alike.

The tensors of such a group have one row a class, or no dimension at all (an optimiser's count of steps): of those every
part holds the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch

from hsadml_dist.checkpoint.layout import MANIFEST, TENSORS_SUFFIX

SHARDED_GROUPS = ("centres", "centres_moments")
"""The groups whose tensors may be shared out."""

_PART = re.compile(rf"(\w+)\.rows-(\d+)-(\d+){re.escape(TENSORS_SUFFIX)}")


def group_file_name(group: str, rows: range | None = None) -> str:
    """Return the file of a group, or of some rows of it."""
    return group + ("" if rows is None else f".rows-{rows.start:010d}-{rows.stop:010d}") + TENSORS_SUFFIX


def list_groups(folder: Path) -> list[str]:
    """Return the groups of a verified checkpoint, ascending."""
    return sorted({name.partition(".")[0] for name in _tensor_files(folder)})


@dataclass(frozen=True)
class GroupFile:
    """One file of a group, opened.

    Attributes:
        first: The first row that it holds; 0 for a file of all of them.
        tensors: The open file.
    """

    first: int
    tensors: Any

    def part(self, name: str, rows: range | None) -> torch.Tensor | None:
        """Return what the file holds of a tensor's rows; None: nothing."""
        tensor = self.tensors.get_slice(name)
        shape = tensor.get_shape()
        if not shape or rows is None:
            return self.tensors.get_tensor(name)
        start, stop = max(rows.start - self.first, 0), min(rows.stop - self.first, shape[0])
        return tensor[start:stop] if start < stop else None


def read_group(folder: Path, group: str, rows: range | None = None) -> dict[str, torch.Tensor]:
    """Return the tensors of a group by name, on the CPU: the given rows of them, or all."""
    files = list(open_group(folder, group, "pt"))
    return {name: _joined(files, name, rows) for name in tensor_names(files)}


def open_group(folder: Path, group: str, framework: str) -> Iterator[GroupFile]:
    """Yield the files of a verified checkpoint's group in the order of their rows."""
    files = _tensor_files(folder)
    if group_file_name(group) in files:
        yield GroupFile(0, safetensors.safe_open(folder / group_file_name(group), framework=framework))
        return
    matches = [match for match in map(_PART.fullmatch, files) if match and match[1] == group]
    for match in sorted(matches, key=lambda m: int(m[2])):
        yield GroupFile(int(match[2]), safetensors.safe_open(folder / match[0], framework=framework))


def _tensor_files(folder: Path) -> list[str]:
    """Return the files that the manifest names: what else lies in the folder was verified by nobody."""
    return [name for name in json.loads((folder / MANIFEST).read_text())["files"] if name.endswith(TENSORS_SUFFIX)]


def tensor_names(files: list[GroupFile]) -> list[str]:
    """Return the names of a group's tensors, ascending."""
    return sorted(files[0].tensors.keys()) if files else []


def _joined(files: list[GroupFile], name: str, rows: range | None) -> torch.Tensor:
    parts = [part for part in (file.part(name, rows) for file in files) if part is not None]
    if not parts:  # no row is asked for: a rank without classes
        return files[0].tensors.get_slice(name)[0:0]
    return parts[0] if len(parts) == 1 or parts[0].ndim == 0 else torch.cat(parts)
