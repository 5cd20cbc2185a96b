"""Read mutated images, or one given file, as a build and ``hsadml predict`` do, with a limit on memory.

Usage: ``python -m tests.shards.picture_fuzzer KIND COUNT FOLDER`` with KIND ``PNG``, ``JPEG`` or ``TIFF``, or
``python -m tests.shards.picture_fuzzer FILE``. Prints JSON. FOLDER keeps the last file that was read.
"""

import json
import random
import struct
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from hsadml_dist.data.image_file import decode_image_bytes, decode_shard_png
from hsadml_dist.errors import HsadmlError
from hsadml_dist.launch.input_images import read_input_image
from hsadml_dist.shards.image_codec import decode_mask_file, to_mask
from tests.data.image_bytes import SHORT, make_png, make_tiff, png_chunk, saved
from tests.mutations import limit_memory, mutate_bytes

RNG = np.random.default_rng(7)
GREY = RNG.integers(0, 256, (20, 30), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)


def seeds(kind: str) -> list[bytes]:
    """Return intact files of many kinds."""
    deep, grey, colour = GREY.astype(np.uint16) * 257, Image.fromarray(GREY), Image.fromarray(COLOUR)
    exif = Image.Exif()
    exif[274], exif[0x0110], exif[0x011A] = 6, "scanner", 72.0
    if kind == "PNG":
        files = [make_png(pixels, way) for pixels in (GREY, COLOUR, deep, COLOUR * np.uint16(257)) for way in (0, 1)]
        files += [make_png(np.stack([deep, deep], axis=2)), saved(colour.quantize(9), "PNG", exif=exif)]
        return [*files, saved(grey, "PNG", save_all=True, append_images=[grey]), saved(grey.convert("1"), "PNG")]
    if kind == "JPEG":
        files = [saved(image, "JPEG", exif=exif, progressive=way) for image in (grey, colour) for way in (0, 1)]
        return [*files, saved(colour.convert("CMYK"), "JPEG"), saved(grey, "MPO", save_all=True, append_images=[grey])]
    types = (np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.float32)
    readable = [(dtype, order) for dtype in types for order in "<>" if (dtype, order) != (np.uint32, ">")]
    files = [make_tiff([GREY.astype(dtype)], order) for dtype, order in readable]
    files += [make_tiff([pixels], compressed=True, strip_rows=7) for pixels in (GREY, COLOUR, COLOUR * np.uint16(257))]
    files += [make_tiff([GREY] * 3, tags=[(274, SHORT, [5])]), make_tiff([deep], photometric=0)]
    files += [saved(colour, "TIFF", compression=name) for name in ("tiff_lzw", "jpeg", "packbits", "zstd")]
    return [*files, saved(grey.convert("1"), "TIFF", compression="group4"), saved(grey, "TIFF", big_tiff=True)]


def mutated(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    """Return a file with one to four changes; of a PNG, often of its unpacked pixels, mostly with valid checksums."""
    if data.startswith(b"\x89PNG") and chance.random() < 0.4:
        start = data.index(b"IDAT")
        (length,) = struct.unpack_from(">I", data, start - 4)
        pixels = mutate_bytes(zlib.decompress(data[start + 4 : start + 4 + length]), chance, others)
        return data[: start - 4] + png_chunk(b"IDAT", zlib.compress(pixels)) + data[start + 8 + length :]
    changed = mutate_bytes(data, chance, others)
    return with_checksums(changed) if data.startswith(b"\x89PNG") and chance.random() < 0.8 else changed


def with_checksums(data: bytes) -> bytes:
    at, parts = 8, [data[:8]]
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if at + 12 + length > len(data):
            break
        parts.append(png_chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return b"".join([*parts, data[at:]])


def read(path: Path, outcomes: Counter[str]) -> float:
    """Read one file in every way; return the seconds of processor time of the slowest. Only our errors are allowed."""
    data, slowest = path.read_bytes(), 0.0
    for use in (
        lambda: read_input_image(path, 48),
        lambda: to_mask(decode_mask_file(path, "row 1")[0], 48),
        lambda: decode_shard_png(data, 16, None),
    ):
        start = time.process_time()
        try:
            use()
            outcomes["decoded"] += 1
        except HsadmlError as error:
            assert "\n" not in str(error), str(error)
            outcomes["refused"] += 1
        slowest = max(slowest, time.process_time() - start)
    return slowest


def main(words: list[str]) -> None:
    """Read the files and print a summary."""
    outcomes: Counter[str] = Counter()
    if len(words) == 1:
        limit_memory()
        sys.stdout.write(json.dumps({"slowest": read(Path(words[0]), outcomes), **outcomes}) + "\n")
        return
    kind, count, folder = words
    files, slowest = seeds(kind), 0.0
    for data in files:  # an intact file must be readable, or its mutations would all end at the first check
        decode_image_bytes(data)
    limit_memory()
    for number in range(int(count)):
        chance = random.Random(f"{kind} {number}")
        path = Path(folder) / "last.png"
        path.write_bytes(mutated(chance.choice(files), chance, files))
        slowest = max(slowest, read(path, outcomes))
    sys.stdout.write(json.dumps({"files": int(count), "slowest": slowest, **outcomes}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
