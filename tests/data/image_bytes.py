"""PNG, TIFF and JPEG files of chosen kinds, written without Pillow where it cannot write them."""

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
BYTE, SHORT, LONG, RATIONAL = 1, 3, 4, 5
TYPES = {BYTE: "B", SHORT: "H", LONG: "I", 6: "b", RATIONAL: "II", 7: "B"}


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def make_png(pixels: np.ndarray, interlaced: bool = False, before: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
    """Return the PNG of (H, W) or (H, W, samples), uint8 or uint16; ``before`` are chunks before the pixels."""
    samples = pixels.reshape(*pixels.shape[:2], -1)
    height, width, count = samples.shape
    ordered = samples.astype(samples.dtype.newbyteorder(">"))
    rows = []
    for left, top, step_x, step_y in PASSES if interlaced else ((0, 0, 1, 1),):
        part = ordered[top::step_y, left::step_x]
        rows += [b"\0" + row.tobytes() for row in part if part.shape[1]]
    return png_of(width, height, samples.dtype.itemsize * 8, COLOUR_TYPES[count], b"".join(rows), interlaced, before)


def png_of(
    width: int,
    height: int,
    bits: int,
    colour: int,
    data: bytes,
    interlaced: bool = False,
    before: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """Return a PNG of any header and any unpacked pixel data."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    chunks = [(b"IHDR", header), *before, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def make_tiff(
    pages: Sequence[np.ndarray],
    order: str = "<",
    photometric: int | None = None,
    compressed: bool = False,
    tags: Sequence[tuple[int, int, Sequence[int]]] = (),
    strip_rows: int | None = None,
) -> bytes:
    """Return the TIFF of pages (H, W) or (H, W, samples), all pages with the same further ``tags``.

    A tag is (number, type, values); one of a number that is written anyway replaces it.
    """
    content = bytearray((b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8))
    link = 4
    for page in pages:
        struct.pack_into(f"{order}I", content, link, len(content))
        link = _add_page(content, page, order, photometric, compressed, tags, strip_rows)
    return bytes(content)


def _add_page(content, page, order, photometric, compressed, tags, strip_rows) -> int:
    samples = page.reshape(*page.shape[:2], -1)
    height, width, count = samples.shape
    step = strip_rows or height
    ordered = samples.astype(samples.dtype.newbyteorder(order))
    strips = [ordered[top : top + step].tobytes() for top in range(0, height, step)]
    strips = [zlib.compress(strip) for strip in strips] if compressed else strips
    kind = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    found = {
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, [samples.dtype.itemsize * 8] * count),
        259: (SHORT, [8 if compressed else 1]),
        262: (SHORT, [(2 if count > 2 else 1) if photometric is None else photometric]),
        273: (LONG, [0] * len(strips)),
        277: (SHORT, [count]),
        278: (LONG, [step]),
        279: (LONG, [len(strip) for strip in strips]),
        339: (SHORT, [kind] * count),
    }
    found |= {tag: (kind, list(values)) for tag, kind, values in tags}
    start = len(content)
    size = 2 + 12 * len(found) + 4
    outside, places = bytearray(), {}
    entries = bytearray(struct.pack(f"{order}H", len(found)))
    for tag, (kind, values) in sorted(found.items()):
        layout = f"{order}{TYPES[kind] * (len(values) // (2 if kind == RATIONAL else 1))}"
        packed = struct.pack(layout, *values)
        entries += struct.pack(f"{order}HHI", tag, kind, len(values) // (2 if kind == RATIONAL else 1))
        places[tag] = start + len(entries) if len(packed) <= 4 else start + size + len(outside)
        if len(packed) <= 4:
            entries += packed.ljust(4, b"\0")
        else:
            entries += struct.pack(f"{order}I", start + size + len(outside))
            outside += packed
    content += entries + bytes(4) + outside
    if 273 not in {tag for tag, _, _ in tags}:
        at = len(content)
        for number, strip in enumerate(strips):
            struct.pack_into(f"{order}I", content, places[273] + 4 * number, at)
            at += len(strip)
    content += b"".join(strips)
    return start + size - 4


def saved(image: Image.Image, kind: str, **options) -> bytes:
    """Return the bytes that Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def foreign_files() -> dict[str, bytes]:
    """Return small files of formats that Pillow can decode and that are not read here."""
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    files = {kind: saved(grey.convert("RGBA"), kind) for kind in ("DDS", "WEBP")}
    files |= {kind: saved(grey, kind) for kind in ("BMP", "GIF", "PPM", "TGA", "PCX", "EPS", "JPEG2000")}
    files["BLP"] = saved(grey.convert("P"), "BLP")
    files["PSD"] = struct.pack(">4sH6xHIIHH", b"8BPS", 1, 1, 8, 8, 8, 1) + bytes(12) + bytes(2 + 64)
    return files
