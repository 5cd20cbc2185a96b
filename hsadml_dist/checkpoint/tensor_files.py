"""Write and read the tensor files of a checkpoint, whole or sharded by rows.

Tensors are written in the safetensors format straight from their memory, in chunks, while the SHA-256 is computed: no
second copy of the state is made, and neither hashing nor writing holds the interpreter's lock, so training continues.
The tensors of a sharded group have one row per class, or no dimension at all (an optimizer's step count), which every
shard repeats.

Source of the format: https://huggingface.co/docs/safetensors (header length, JSON header, the tensors' bytes).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch

from hsadml_dist.checkpoint.layout import MANIFEST, TENSORS_SUFFIX, TrainingProgress

TensorGroup = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """A training's whole state; there is no random state, since nothing draws from one.

    Attributes:
        groups: Group (``model``, ``model_moments``, ``centres``, ``centres_moments``; ``head``, ``head_moments`` where
            a loss has more than centres; ``model_ema``, ``model_ema_count`` where weights are averaged) to tensors by
            name.
        progress: Where the training stands.
        rows: Class ids of this rank's rows in the centres' groups; None: all of them.
    """

    groups: dict[str, TensorGroup]
    progress: TrainingProgress
    rows: range | None = None


PIECE_BYTES = 8 * 2**20
ALIGNMENT = 8

DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The format's names, in the order in which tensors stand in a file: so that each starts at a multiple of its size."""

_PLAIN = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By size, a type that numpy knows: bytes are all that is wanted."""

FileEntry = dict[str, int | str]
"""Size and SHA-256 of a file."""


def write_bytes(path: Path, data: bytes) -> FileEntry:
    """Write a file and force it to disk."""
    return _write(path, [memoryview(data)])


def write_tensors(path: Path, tensors: TensorGroup) -> FileEntry:
    """Write tensors, on any device and in any memory layout, as a safetensors file and force it to disk."""
    return _write(path, _pieces(tensors))


def raw_array(tensor: torch.Tensor) -> np.ndarray:
    """Return a CPU tensor's own memory as an array of integers of the same size and layout."""
    return tensor.view(_PLAIN[tensor.element_size()]).numpy()


def fsync_folder(folder: Path) -> None:
    """Force a folder's list of names to disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, pieces: Iterable[memoryview]) -> FileEntry:
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
            size += len(piece)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def _pieces(tensors: TensorGroup) -> Iterator[memoryview]:
    places = list(DTYPES)
    names = sorted(tensors, key=lambda name: (places.index(tensors[name].dtype), name))
    yield memoryview(_header({name: tensors[name] for name in names}))
    for name in names:
        whole = _bytes_of(tensors[name])
        for start in range(0, len(whole), PIECE_BYTES):
            yield whole[start : start + PIECE_BYTES]


def _header(tensors: TensorGroup) -> bytes:
    entries: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        entries[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """Return a tensor's bytes in the order of its indices; a copy only where its memory has another order."""
    # numpy's copy, not torch's: torch would start a pool of threads of its own for the thread that saves.
    rows = np.ascontiguousarray(raw_array(tensor.detach().cpu()))
    return rows.reshape(-1).data.cast("B") if rows.size else memoryview(b"")


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
