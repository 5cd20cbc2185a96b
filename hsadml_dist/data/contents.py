"""Content hashes of the samples in a folder of shards: they recognise an image in any other build of it.

``contents.json`` holds two SHA-256 for each sample, in the order of the index, and a fingerprint of the id key:

- ``pixels``: of the stored image, decoded, so that no PNG encoder matters. Any reader can compute it again.
- ``sources``: of the source's image before it was scaled, so that the stored size does not matter. Only a build can
  compute it.

The hashes are not keyed: the images themselves are in the same folder. Shards built by older versions lack the file.
Imports neither torch nor NumPy, so that a login node can read it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hsadml_dist.atomic import write_text
from hsadml_dist.data.index import ShardFile, ShardIndex
from hsadml_dist.json_parsing import INVALID, parse_json

if TYPE_CHECKING:
    import numpy as np

CONTENTS_NAME = "contents.json"
CONTENTS_VERSION = 1

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ContentHashes:
    """The hashes of one sample; see the module."""

    pixels: str
    source: str


@dataclass(frozen=True, kw_only=True)
class ShardContents:
    """The hashes of all samples, in the order of the index.

    Attributes:
        id_key: Fingerprint of the key under which patients are hashed: equal for two builds with the same key.
    """

    id_key: str
    pixels: tuple[str, ...]
    sources: tuple[str, ...]
    version: int = CONTENTS_VERSION


def hash_image(image: np.ndarray) -> str:
    """Return the SHA-256, in hex, of an image's dtype, shape and values; the byte order does not matter."""
    little = image.dtype.newbyteorder("<")
    digest = hashlib.sha256(f"{little.str} {image.shape} ".encode())
    digest.update(image.astype(little, order="C", copy=False).tobytes())
    return digest.hexdigest()


def write_contents(folder: Path, id_key: str, samples: Sequence[ContentHashes]) -> None:
    """Write ``contents.json`` into a folder of shards."""
    contents = ShardContents(
        id_key=id_key,
        pixels=tuple(one.pixels for one in samples),
        sources=tuple(one.source for one in samples),
    )
    write_text(folder / CONTENTS_NAME, json.dumps(asdict(contents), indent=0) + "\n")


def contents_file(index: ShardIndex) -> ShardFile | None:
    """Return size and hash of the folder's ``contents.json``, or None if it was built without one."""
    return next((file for file in index.files if file.name == CONTENTS_NAME), None)


def load_contents(folder: Path, index: ShardIndex) -> ShardContents | None:
    """Read ``contents.json`` of the folder that ``index`` describes.

    Returns None if the shards were built without the file. The same, with a warning, if it is missing or damaged: then
    the hashes of the pixels can be computed again from the images.
    """
    expected = contents_file(index)
    if expected is None:
        return None
    try:
        text = (folder / CONTENTS_NAME).read_bytes()
    except OSError as error:
        log.warning("%s: %s cannot be read: %s; continuing without it", folder, CONTENTS_NAME, error.strerror)
        return None
    if hashlib.sha256(text).hexdigest() != expected.sha256:
        log.warning("%s: %s is damaged; continuing without it", folder, CONTENTS_NAME)
        return None
    return _parse(text, len(index))


def _parse(text: bytes, count: int) -> ShardContents | None:
    """Return the contents, or None if another version of this package, or a stranger, wrote them in another way."""
    try:
        values = parse_json(text)
        lists = {name: tuple(map(str, values[name])) for name in ("pixels", "sources")}
        contents = ShardContents(id_key=str(values["id_key"]), version=values["version"], **lists)
    except INVALID:
        return None
    if contents.version != CONTENTS_VERSION:
        return None
    return contents if len(contents.pixels) == len(contents.sources) == count else None
