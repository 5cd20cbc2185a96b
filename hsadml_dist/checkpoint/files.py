"""Writing a checkpoint's files: forced to disk, their size and SHA-256 taken on the way.

Tensors are written in the safetensors format straight from their memory, in pieces: no second copy of the state is
made, and neither hashing nor writing a piece holds the interpreter's lock, so a training beside it goes on.

SOURCE of the format: https://huggingface.co/docs/safetensors (header length, JSON header, the tensors' bytes).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hsadml_dist.checkpoint.state import TensorGroup

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
