"""Read images from finished tars: thumbnails for the raw-pixel baseline, and the contact sheet of the dataset card."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from hsadml_dist.data.image_file import decode_shard_png
from hsadml_dist.data.index import SampleRow, ShardIndex
from hsadml_dist.data.sample import BITS, IMAGE, MASK
from hsadml_dist.shards.image_codec import encode_png
from hsadml_dist.shards.leakage import make_thumbnail
from hsadml_dist.shards.split import seeded_hash
from hsadml_dist.shards.writer import read_member

COLUMNS = 6
TILE_SIDE = 144
OUTLINE = (86, 180, 233)
"""Sky blue of the Okabe-Ito palette, visible on any grey."""


@dataclass(frozen=True, kw_only=True)
class ContactStrip:
    """Some slices of one class in a row, as an image for an HTML page."""

    class_name: str
    uri: str
    alt: str


def read_thumbnails(folder: Path, index: ShardIndex, rows: Sequence[SampleRow], threads: int) -> np.ndarray:
    """Return the thumbnails (N, P), uint8, of ``rows``."""
    with ThreadPoolExecutor(threads) as pool:
        return np.stack(list(pool.map(lambda row: make_thumbnail(read_pixels(folder, index, row, IMAGE)), rows)))


def contact_strips(folder: Path, index: ShardIndex) -> Iterator[ContactStrip]:
    """Yield a strip for each class: slices of different patients and planes, with lesions outlined if masks exist."""
    for label, name in enumerate(index.classes):
        rows = choose_rows([row for row in index.samples if row.label == label], index.seed)
        tiles = [_tile(folder, index, row) for row in rows]
        patients = len({row.person for row in rows if row.person is not None})
        of_patients = f" of {patients} patient{'s' * (patients != 1)}" if patients else ""
        alt = f"{len(rows)} slice{'s' * (len(rows) != 1)} of class {name}{of_patients}"
        png = base64.b64encode(encode_png(np.concatenate(tiles, axis=1), compression=6)).decode()
        yield ContactStrip(class_name=name, uri=f"data:image/png;base64,{png}", alt=alt)


def choose_rows(rows: Iterable[SampleRow], seed: int) -> list[SampleRow]:
    """Return at most :data:`COLUMNS` pseudo-random rows: as many patients as possible, and planes in turn."""
    seen: dict[tuple[str, str | None], int] = {}
    ranked: list[tuple[int, int, str, SampleRow]] = []
    for row in sorted(rows, key=lambda row: seeded_hash(seed, "gallery", row.key)):
        repeat = seen[("person", row.person)] = seen.get(("person", row.person), -1) + 1
        turn = seen[("plane", row.plane)] = seen.get(("plane", row.plane), -1) + 1
        ranked.append((repeat if row.person is not None else 0, turn, row.key, row))
    return [row for *_, row in sorted(ranked, key=lambda rank: rank[:3])[:COLUMNS]]


def read_pixels(folder: Path, index: ShardIndex, row: SampleRow, member: str) -> np.ndarray:
    """Return the pixels (height, width) of one member, uint16 or uint8."""
    with open(folder / index.shards[row.shard].name, "rb") as file:
        return decode_shard_png(read_member(file, row, member), BITS[member], index.size)


def _tile(folder: Path, index: ShardIndex, row: SampleRow) -> np.ndarray:
    """Return (side, side, 3), uint8: brightness stretched to the slice's own range, with the outline of the lesion."""
    image = read_pixels(folder, index, row, IMAGE).astype(np.float32)
    low, high = np.percentile(image, [0.5, 99.5])
    grey = np.clip((image - low) * (255 / max(high - low, 1)), 0, 255).astype(np.uint8)
    size = (TILE_SIDE, TILE_SIDE)
    tile = np.repeat(np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.LANCZOS))[..., None], 3, axis=2)
    if MASK in row.members:
        mask = Image.fromarray(read_pixels(folder, index, row, MASK)).resize(size, Image.Resampling.BOX)
        tile[_outline(np.asarray(mask) > 127)] = OUTLINE
    return tile


def _outline(inside: np.ndarray) -> np.ndarray:
    """Return the pixels just outside ``inside``: those with a neighbour in it."""
    padded = np.pad(inside, 1)
    near = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return near & ~inside
