"""Reading single samples out of plain tars, by the index's offsets."""

from __future__ import annotations

import hashlib
import io
import os

import numpy as np
from PIL import Image
from webdataset.autodecode import Decoder

from hsadml_dist.data.index import SampleRow, ShardFile, ShardIndex
from hsadml_dist.data.sample import IMAGE
from hsadml_dist.data.shard_cache import ShardCache, ShardLocation
from hsadml_dist.errors import DataError


def decode_image(extension: str, data: bytes) -> np.ndarray | None:
    """Decode a 16-bit grayscale PNG to (H, W) uint16; a webdataset decoding handler.

    webdataset's own image handlers go through 8 bits and would keep 2 of 10 000 grey levels.
    """
    if not extension.endswith(f".{IMAGE}"):
        return None
    return np.array(Image.open(io.BytesIO(data)), dtype=np.uint16)


class ShardReader:
    """Random access to the images of shards; files are opened once in each process that reads."""

    def __init__(self, place: ShardLocation, index: ShardIndex) -> None:
        self.index = index
        self._place = place
        self._files: dict[int, int] = {}
        self._decoder = Decoder([decode_image], pre=[], post=[], only=[IMAGE])

    def image(self, position: int) -> np.ndarray:
        """Return the image (H, W), uint16, of the sample at ``position`` of the index.

        Raises:
            DataError: The shard is missing or cannot be read, or the bytes are not those that were written.
        """
        return self._decoder({"__key__": self.index.samples[position].key, IMAGE: self.png_bytes(position)})[IMAGE]

    def png_bytes(self, position: int) -> bytes:
        """Return the same image as it is stored, a PNG.

        Raises:
            DataError: The shard is missing or cannot be read, or the bytes are not those that were written.
        """
        row = self.index.samples[position]
        data = self.raw(row)
        if not _is_whole(data, row) and isinstance(self._place, ShardCache):
            # The copy on this node has decayed, or was cut short: what it was made from may still be good.
            self._place.repair(self.index.shards[row.shard])
            os.close(self._files.pop(row.shard))
            data = self.raw(row)
        if not _is_whole(data, row):
            shard = self.index.shards[row.shard].name
            raise DataError(f"{shard}: sample {row.key}: the image's bytes do not match their SHA-256; build it anew")
        return data

    def raw(self, row: SampleRow) -> bytes:
        """Return the bytes of a row's image as they lie in the tar, unchecked.

        Raises:
            DataError: The shard is missing or cannot be read.
        """
        offset, size = row.members[IMAGE]
        try:
            return os.pread(self._file(row.shard), size, offset)
        except OSError as fault:
            name = self.index.shards[row.shard].name
            raise DataError(f"{name}: sample {row.key} cannot be read: {fault.strerror}") from fault

    def _file(self, shard: int) -> int:
        if shard not in self._files:
            self._files[shard] = self._opened(self.index.shards[shard])
        return self._files[shard]

    def _opened(self, file: ShardFile) -> int:
        if isinstance(self._place, ShardCache):
            return self._place.open(file)
        try:
            return os.open(self._place / file.name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as fault:
            raise DataError(f"{file.name}: the shard cannot be opened: {fault.strerror}") from fault


def _is_whole(data: bytes, row: SampleRow) -> bool:
    return hashlib.sha256(data).hexdigest() == row.sha256
