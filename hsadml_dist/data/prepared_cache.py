"""Prepared images, computed once: a file of records that several ranks, workers and runs of a node share.

A record is a SHA-256, then the image's pixels as fp32. The hash is taken of the pixels together with the hash of the
stored image that they came from. So nothing needs an order, a lock or a flag: a record that was never written, cut off
by a kill or a power failure, or damaged later, does not match its hash, and the image is prepared anew. Two writers of
one record write the same bytes.

The file's name changes with the shards, the image size and the versions that a pixel's last bit depends on; another
version leaves the old file behind. Reads and writes are positioned calls, no memory map: a full or failing disk is an
error that can be caught, not a SIGBUS.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import torch

from hsadml_dist.data.index import ShardIndex
from hsadml_dist.data.reader import ShardReader
from hsadml_dist.data.transforms import Preprocessing
from hsadml_dist.errors import ConfigError, Fault

HASH_BYTES = 32
UNWRITTEN = bytes(HASH_BYTES)

log = logging.getLogger(__name__)


class PreparedImages:
    """Prepared images by position of the index, from the file if it has them."""

    def __init__(self, reader: ShardReader, prepare: Preprocessing, store: PreparedCache | None) -> None:
        self.index = reader.index
        self._reader, self._prepare, self._store = reader, prepare, store

    def image(self, position: int) -> torch.Tensor:
        """Return the prepared image (1, H, W), fp32.

        Raises:
            DataError: It must be read from its shard, and cannot be.
        """
        if self._store is None:
            return self._prepare(self._reader.image(position))
        source = self.index.samples[position].sha256
        image = self._store.get(position, source)
        if image is None:
            image = self._prepare(self._reader.image(position))
            self._store.put(position, source, image)
        return image


class PreparedCache:
    """The file: one record for each position of an index. Forked processes may share it."""

    def __init__(self, path: Path, count: int, image_size: int) -> None:
        self._shape = (1, image_size, image_size)
        self._stride = HASH_BYTES + 4 * image_size * image_size
        self.path, self.bytes = path, count * self._stride
        self._file: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(self._file).st_size != self.bytes:
            os.ftruncate(self._file, self.bytes)  # every opener asks for the same size, so none cuts off another

    def get(self, position: int, source: str) -> torch.Tensor | None:
        """Return the image (1, H, W), fp32, at ``position``, or None if the file does not have it whole.

        Args:
            position: The sample's place in the index.
            source: SHA-256 of the stored image, in hex.
        """
        if self._file is None:
            return None
        image, written = torch.empty(self._shape), bytearray(HASH_BYTES)
        pixels = _bytes_of(image)
        try:
            count = os.preadv(self._file, [written, pixels], position * self._stride)
        except OSError as fault:
            self._give_up("read", fault)
            return None
        whole = count == self._stride and written != UNWRITTEN and written == _record_hash(source, pixels)
        return image if whole else None

    def put(self, position: int, source: str, image: torch.Tensor) -> None:
        """Keep the image (1, H, W), fp32, of ``position``; without a word where the file has been given up."""
        if self._file is None:
            return
        pixels = _bytes_of(image.contiguous())
        try:
            os.pwritev(self._file, [_record_hash(source, pixels), pixels], position * self._stride)
        except OSError as fault:
            self._give_up("written", fault)

    def close(self) -> None:
        """Close the file; from then on it has nothing and keeps nothing."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _give_up(self, verb: str, fault: OSError) -> None:
        """Go on without the file: it saves time, nothing depends on it."""
        log.warning("data.cache: %s cannot be %s (%s): going on without it", self.path, verb, fault.strerror)
        self.close()


def open_prepared_cache(folder: Path, index: ShardIndex, prepare: Preprocessing) -> PreparedCache | None:
    """Open the file of prepared images for these shards in ``folder``, or warn and return None if it would not fit.

    Raises:
        ConfigError: The folder or the file cannot be made.
    """
    name = hashlib.sha256(f"{index.digest} {prepare.identity()}".encode()).hexdigest()[:24]
    path = folder / f"prepared-{prepare.image_size}px-{name}.bin"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        store = PreparedCache(path, len(index), prepare.image_size)
        status, disk = os.stat(path), os.statvfs(folder)
    except OSError as fault:
        problem = f"{folder} cannot hold prepared images: {fault.strerror}; name a folder that can be written, or null"
        raise ConfigError([Fault(where="recipe", key="data.cache", problem=problem)]) from fault
    missing, free = store.bytes - status.st_blocks * 512, disk.f_bavail * disk.f_frsize
    if missing > free:
        store.close()
        text = "data.cache: %s: %.1f GB more are needed and %.1f GB are free: going on without a cache"
        log.warning(text, folder, missing / 1e9, free / 1e9)
        return None
    return store


def _bytes_of(image: torch.Tensor) -> memoryview:
    return image.numpy().data.cast("B")


def _record_hash(source: str, pixels: memoryview) -> bytes:
    digest = hashlib.sha256(source.encode())
    digest.update(pixels)
    return digest.digest()
