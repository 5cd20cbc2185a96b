"""Read single images from shards by the offsets of the index, optionally through a cache of prepared images.

The cache is a file of records that the ranks, workers and runs of a user share on a node. A record is a SHA-256
followed by the image's pixels as fp32; the hash covers the pixels and the hash of the stored image they came from.
Therefore nothing needs an order, a lock or a flag: a record that was never written, cut short by a kill or a power
failure, or damaged later does not match its hash, and the image is prepared again. Two writers of one record write the
same bytes. Only the user can write the file, since whoever can write it could also write the hash.

The file name depends on the shards, the image size and the versions that determine a pixel's last bit; other versions
use another file. The file is read and written by positioned calls instead of a memory map, because a full or failing
disk is then an error that can be caught, not a SIGBUS.
"""

from __future__ import annotations

import hashlib
import logging
import os
from functools import partial
from pathlib import Path

import numpy as np
import torch
from webdataset.autodecode import Decoder, DecodingError

from hsadml_dist.data.image_file import decode_shard_png
from hsadml_dist.data.index import SampleRow, ShardIndex
from hsadml_dist.data.sample import BITS, IMAGE, MASK
from hsadml_dist.data.shard_cache import ShardCache, ShardLocation, open_shard
from hsadml_dist.data.transforms import Preprocessing
from hsadml_dist.errors import ConfigError, DataError, Fault
from hsadml_dist.private_files import UntrustedFileError, make_private_folder, open_private_file

HASH_BYTES = 32
UNWRITTEN = bytes(HASH_BYTES)

log = logging.getLogger(__name__)


def decode_image(extension: str, data: bytes, size: int | None = None) -> np.ndarray | None:
    """Decode an image or a mask of a shard to (H, W), uint16; a decoding handler for webdataset.

    The image handlers of webdataset go through 8 bits and would keep 2 of 10 000 grey levels.

    Args:
        extension: Name of the member after the key; None is returned for all but images and masks.
        data: The bytes of the member.
        size: Side that the image must have, in pixels; None means any.

    Raises:
        DataError: The image is another one, or damaged; the message names no file.
    """
    if not extension.endswith(f".{IMAGE}"):
        return None
    member = MASK if extension.endswith(f".{MASK}") else IMAGE
    return decode_shard_png(data, BITS[member], size).astype(np.uint16, copy=False)


class ShardReader:
    """Random access to the images of shards; each process opens each file once."""

    def __init__(self, location: ShardLocation, index: ShardIndex) -> None:
        self.index = index
        self._location = location
        self._files: dict[int, int] = {}
        self._decoder = Decoder([partial(decode_image, size=index.size)], pre=[], post=[], only=[IMAGE])

    def image(self, position: int) -> np.ndarray:
        """Return the image (H, W), uint16, of the sample at ``position`` of the index.

        Raises:
            DataError: The shard is missing or cannot be read, or the bytes do not match their hash, or the image has
                another size than the index states, or is damaged.
        """
        row = self.index.samples[position]
        try:
            return self._decoder({"__key__": row.key, IMAGE: self.png_bytes(position)})[IMAGE]
        except DecodingError as error:
            shard = self.index.shards[row.shard].name
            raise DataError(f"{shard}: sample {row.key}: {error.__cause__}; build the shards again") from error

    def png_bytes(self, position: int) -> bytes:
        """Return the same image as stored, a PNG; raises the same errors."""
        row = self.index.samples[position]
        data = self.raw(row)
        if not _matches_hash(data, row) and isinstance(self._location, ShardCache):
            # The copy on this node is damaged or cut short: what it was made from may still be intact.
            self._location.repair(self.index.shards[row.shard])
            os.close(self._files.pop(row.shard))
            data = self.raw(row)
        if not _matches_hash(data, row):
            shard = self.index.shards[row.shard].name
            raise DataError(f"{shard}: sample {row.key}: the image does not match its SHA-256; build the shards again")
        return data

    def raw(self, row: SampleRow) -> bytes:
        """Return the bytes of a row's image as stored in the tar, unchecked; none if the tar ends before their end.

        Raises:
            DataError: The shard is missing or cannot be read.
        """
        offset, size = row.members[IMAGE]
        try:
            file = self._file(row.shard)
            is_held = offset + size <= os.fstat(file).st_size  # an index may claim any size, and reading allocates it
            return os.pread(file, size, offset) if is_held else os.pread(file, 0, 0)
        except OSError as error:
            name = self.index.shards[row.shard].name
            raise DataError(f"{name}: sample {row.key} cannot be read: {error.strerror}") from error

    def _file(self, shard: int) -> int:
        if shard not in self._files:
            file = self.index.shards[shard]
            if isinstance(self._location, ShardCache):
                self._files[shard] = self._location.open(file)
            else:
                self._files[shard] = open_shard(self._location / file.name)
        return self._files[shard]


class PreparedImages:
    """Prepared images by position in the index, from the cache where it has them."""

    def __init__(self, reader: ShardReader, preprocess: Preprocessing, cache: PreparedCache | None) -> None:
        self.index = reader.index
        self._reader, self._preprocess, self._cache = reader, preprocess, cache

    def image(self, position: int) -> torch.Tensor:
        """Return the prepared image (1, H, W), fp32.

        Raises:
            DataError: It must be read from its shard, and cannot be.
        """
        if self._cache is None:
            return self._preprocess(self._reader.image(position))
        source = self.index.samples[position].sha256
        image = self._cache.get(position, source)
        if image is None:
            image = self._preprocess(self._reader.image(position))
            self._cache.put(position, source, image)
        return image


class PreparedCache:
    """The file of prepared images: one record per position of an index. Forked processes may share it."""

    def __init__(self, path: Path, count: int, image_size: int) -> None:
        self._shape = (1, image_size, image_size)
        self._stride = HASH_BYTES + 4 * image_size * image_size
        self.path, self.bytes = path, count * self._stride
        self._file: int | None = open_private_file(path, os.O_RDWR | os.O_CREAT)
        if os.fstat(self._file).st_size != self.bytes:
            os.ftruncate(self._file, self.bytes)  # every opener asks for the same size, so none truncates another's

    def get(self, position: int, source: str) -> torch.Tensor | None:
        """Return the image (1, H, W), fp32, at ``position``, or None if the file has no valid record of it.

        Args:
            position: The sample's position in the index.
            source: SHA-256 of the stored image, in hex.
        """
        if self._file is None:
            return None
        image, written = torch.empty(self._shape), bytearray(HASH_BYTES)
        pixels = _bytes_of(image)
        try:
            count = os.preadv(self._file, [written, pixels], position * self._stride)
        except OSError as error:
            self._disable("read", error)
            return None
        valid = count == self._stride and written != UNWRITTEN and written == _record_hash(source, pixels)
        return image if valid else None

    def put(self, position: int, source: str, image: torch.Tensor) -> None:
        """Store the image (1, H, W), fp32, of ``position``; does nothing once the file has been given up."""
        if self._file is None:
            return
        pixels = _bytes_of(image.contiguous())
        try:
            os.pwritev(self._file, [_record_hash(source, pixels), pixels], position * self._stride)
        except OSError as error:
            self._disable("written", error)

    def close(self) -> None:
        """Close the file; afterwards the cache is empty and stores nothing."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _disable(self, verb: str, error: OSError) -> None:
        """Continue without the file: it saves time, and nothing depends on it."""
        log.warning("data.cache: %s cannot be %s (%s): continuing without it", self.path, verb, error.strerror)
        self.close()


def open_prepared_cache(folder: Path, index: ShardIndex, preprocess: Preprocessing) -> PreparedCache | None:
    """Open the cache for these shards in ``folder``; log a warning and return None if it would not fit.

    Raises:
        ConfigError: The folder or the file cannot be created, or another user has access to it.
    """
    name = hashlib.sha256(f"{index.digest} {preprocess.identity()}".encode()).hexdigest()[:24]
    path = folder / f"prepared-{preprocess.image_size}px-{name}.bin"
    try:
        make_private_folder(folder)
        cache = PreparedCache(path, len(index), preprocess.image_size)
        status, disk = os.stat(path), os.statvfs(folder)
    except UntrustedFileError as error:
        raise ConfigError([Fault(where="recipe", key="data.cache", problem=str(error))]) from error
    except OSError as error:
        problem = f"{folder} cannot hold prepared images: {error.strerror}; name a writable folder, or null"
        raise ConfigError([Fault(where="recipe", key="data.cache", problem=problem)]) from error
    missing, free = cache.bytes - status.st_blocks * 512, disk.f_bavail * disk.f_frsize
    if missing > free:
        cache.close()
        text = "data.cache: %s: %.1f GB more are needed and %.1f GB are free: continuing without a cache"
        log.warning(text, folder, missing / 1e9, free / 1e9)
        return None
    return cache


def _matches_hash(data: bytes, row: SampleRow) -> bool:
    return hashlib.sha256(data).hexdigest() == row.sha256


def _bytes_of(image: torch.Tensor) -> memoryview:
    return image.numpy().data.cast("B")


def _record_hash(source: str, pixels: memoryview) -> bytes:
    digest = hashlib.sha256(source.encode())
    digest.update(pixels)
    return digest.digest()
