"""Write and read the tensor files of a checkpoint, whole or sharded by rows.

Tensors are written in the safetensors format straight from their memory, in chunks, while the SHA-256 is computed: no
second copy of the state is made, and neither hashing nor writing holds the interpreter's lock, so training continues.
The tensors of a sharded group have one row per class, or no dimension at all (an optimiser's step count), which every
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

FileEntry = dict[str, int | str]
"""Size and SHA-256 of a file, as in the manifest."""

CHUNK_BYTES = 8 * 2**20
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
"""The format's dtype names, in the order of tensors in a file, so that each starts at a multiple of its item size."""

INTEGER_DTYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""For each item size a dtype that numpy knows, because only the bytes matter."""

SHARDED_GROUPS = ("centres", "centres_moments")
"""The groups that may be sharded by rows."""

_SHARD_NAME = re.compile(rf"(\w+)\.rows-(\d+)-(\d+){re.escape(TENSORS_SUFFIX)}")


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """The complete state of a training; there is no random state, because nothing draws from a generator.

    Attributes:
        groups: For each group its tensors by name. Groups: ``model``, ``model_moments``, ``centres``,
            ``centres_moments``; ``head``, ``head_moments`` if a loss has more parameters than centres; ``model_ema``,
            ``model_ema_count`` if weights are averaged.
        progress: Position of the training.
        rows: Class ids of this rank's rows in the sharded groups; None for all rows.
    """

    groups: dict[str, TensorGroup]
    progress: TrainingProgress
    rows: range | None = None


def write_bytes(path: Path, data: bytes) -> FileEntry:
    """Write a file and force it to disk."""
    return _write_chunks(path, [memoryview(data)])


def write_tensors(path: Path, tensors: TensorGroup) -> FileEntry:
    """Write tensors, on any device and in any memory layout, as a safetensors file and force it to disk."""
    return _write_chunks(path, _tensor_chunks(tensors))


def raw_array(tensor: torch.Tensor) -> np.ndarray:
    """Return a view of a CPU tensor's memory as an array of integers of the same item size and layout."""
    return tensor.view(INTEGER_DTYPES[tensor.element_size()]).numpy()


def group_file_name(group: str, rows: range | None = None) -> str:
    """Return the file name of a group, or of the shard with the given rows."""
    return group + ("" if rows is None else f".rows-{rows.start:010d}-{rows.stop:010d}") + TENSORS_SUFFIX


def list_groups(folder: Path) -> list[str]:
    """Return the sorted groups of a verified checkpoint."""
    return sorted({name.partition(".")[0] for name in _list_tensor_files(folder)})


@dataclass(frozen=True)
class GroupFile:
    """An open file of a group.

    Attributes:
        first: Its first row; 0 for a file of all rows.
    """

    first: int
    tensors: Any

    def read(self, name: str, rows: range | None) -> torch.Tensor | None:
        """Return the part of a tensor's rows that is in this file, or None if there is none."""
        tensor = self.tensors.get_slice(name)
        shape = tensor.get_shape()
        if not shape or rows is None:
            return self.tensors.get_tensor(name)
        start, stop = max(rows.start - self.first, 0), min(rows.stop - self.first, shape[0])
        return tensor[start:stop] if start < stop else None


def read_group(folder: Path, group: str, rows: range | None = None) -> TensorGroup:
    """Return the tensors of a group by name, on the CPU: the given rows, or all."""
    files = list(open_group(folder, group, "pt"))
    return {name: _read_tensor(files, name, rows) for name in tensor_names(files)}


def open_group(folder: Path, group: str, framework: str) -> Iterator[GroupFile]:
    """Yield the files of a group of a verified checkpoint, ordered by row."""
    files = _list_tensor_files(folder)
    if group_file_name(group) in files:
        yield GroupFile(0, safetensors.safe_open(folder / group_file_name(group), framework=framework))
        return
    shards = [match for match in map(_SHARD_NAME.fullmatch, files) if match and match[1] == group]
    for shard in sorted(shards, key=lambda match: int(match[2])):
        yield GroupFile(int(shard[2]), safetensors.safe_open(folder / shard[0], framework=framework))


def tensor_names(files: list[GroupFile]) -> list[str]:
    """Return the sorted names of a group's tensors."""
    return sorted(files[0].tensors.keys()) if files else []


def _list_tensor_files(folder: Path) -> list[str]:
    """Return the tensor files in the manifest; other files in the folder have not been verified."""
    return [name for name in json.loads((folder / MANIFEST).read_text())["files"] if name.endswith(TENSORS_SUFFIX)]


def _read_tensor(files: list[GroupFile], name: str, rows: range | None) -> torch.Tensor:
    parts = [part for part in (file.read(name, rows) for file in files) if part is not None]
    if not parts:  # an empty range of rows: a rank without classes
        return files[0].tensors.get_slice(name)[0:0]
    return parts[0] if len(parts) == 1 or parts[0].ndim == 0 else torch.cat(parts)


def _write_chunks(path: Path, chunks: Iterable[memoryview]) -> FileEntry:
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def _tensor_chunks(tensors: TensorGroup) -> Iterator[memoryview]:
    order = list(DTYPES)
    names = sorted(tensors, key=lambda name: (order.index(tensors[name].dtype), name))
    yield memoryview(_header({name: tensors[name] for name in names}))
    for name in names:
        # Copied only if the memory is not in index order, and by numpy, because torch would start a thread pool of its
        # own for the saving thread.
        rows = np.ascontiguousarray(raw_array(tensors[name].detach().cpu()))
        whole = rows.reshape(-1).data.cast("B") if rows.size else memoryview(b"")
        for start in range(0, len(whole), CHUNK_BYTES):
            yield whole[start : start + CHUNK_BYTES]


def _header(tensors: TensorGroup) -> bytes:
    entries: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        entries[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
