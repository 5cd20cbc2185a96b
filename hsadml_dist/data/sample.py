"""The format of one sample in a shard: its members and their metadata.

A shard is a plain, uncompressed tar. Each sample has two or three members that share its key::

    <key>.png        the image: 16-bit grayscale PNG, lossless
    <key>.json       the metadata, a :class:`SampleMeta`
    <key>.mask.png   optional lesion mask: 8-bit grayscale PNG, 0 outside and 255 inside

Keys, patients and exams are keyed hashes; no identifier or file name of the source is stored.
Imports only the standard library, so that a login node can use it.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields
from typing import Any

from hsadml_dist.errors import DataError
from hsadml_dist.json_parsing import parse_json

SCHEMA_VERSION = 2
"""Version of the shard format; readers refuse all others."""

IMAGE = "png"
META = "json"
MASK = "mask.png"
MEMBERS = (IMAGE, META, MASK)
"""Suffixes of a member's name after ``<key>.``."""

REQUIRED_MEMBERS = (IMAGE, META)
BITS = {IMAGE: 16, MASK: 8}
"""Bits per pixel of the members that are PNGs."""

MAX_SIDE = 4096
"""Pixels per side of a stored image."""
MAX_SPACING_MM = 1e6

_KEY = re.compile(r"[0-9a-f]{16,64}")


def is_key(text: object) -> bool:
    """Return whether ``text`` is a sample key: 16 to 64 lower-case hexadecimal digits."""
    return isinstance(text, str) and _KEY.fullmatch(text) is not None


def split_member_name(name: str) -> tuple[str, str]:
    """Split the name of a tar member into (key, member).

    Raises:
        DataError: The name does not follow this format.
    """
    key, _, member = name.partition(".")
    if not is_key(key) or member not in MEMBERS:
        raise DataError(f"shard member {name!r}: unexpected name; allowed: <hex key>.{{{','.join(MEMBERS)}}}")
    return key, member


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleMeta:
    """The metadata of one sample: its ``json`` member.

    Attributes:
        key: Keyed hash that identifies the sample; 16 to 64 hexadecimal digits.
        class_name: Name of the class.
        label: Index of the class in the ``classes`` of the shard index.
        person: Keyed hash of the patient, or None if the source does not name one.
        exam: Keyed hash of the exam, or None if the source does not name one.
        fold: The fold whose test set contains the sample.
        author_fold: The fold assigned by the publisher of the data set, or None.
        plane: ``axial``, ``coronal`` or ``sagittal``, or None if unknown.
        spacing_mm: Size of a pixel or voxel along each axis of ``shape``, or None if unknown.
        shape: (height, width) of the image, or (depth, height, width).
        volume: Shape of the volume that the image is a chunk of; equals ``shape`` for a whole image.
        origin: Offset of the image in ``volume``; zeros for a whole image.
    """

    key: str
    class_name: str
    label: int
    person: str | None
    exam: str | None
    fold: int
    author_fold: int | None
    plane: str | None
    spacing_mm: tuple[float, ...] | None
    shape: tuple[int, ...]
    volume: tuple[int, ...]
    origin: tuple[int, ...]

    def to_json(self) -> str:
        """Return the text of the ``json`` member: sorted keys, the schema version, no spaces."""
        return json.dumps({"schema": SCHEMA_VERSION, **asdict(self)}, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> SampleMeta:
        """Parse the output of :meth:`to_json`.

        Raises:
            DataError: Not JSON, another schema version, or fields that are missing, unknown or invalid.
        """
        try:
            values = parse_json(text)
        except ValueError as error:
            raise DataError(f"sample metadata: not JSON: {error}") from error
        if not isinstance(values, dict):
            raise DataError(f"sample metadata: a JSON object is expected, not a {type(values).__name__}")
        version = values.pop("schema", None)
        if version != SCHEMA_VERSION:
            raise DataError(f"sample metadata: schema {version!r} is not supported; allowed: {SCHEMA_VERSION}")
        _check_fields(values)
        spacing = values["spacing_mm"]
        values["spacing_mm"] = None if spacing is None else tuple(float(step) for step in spacing)
        for name in ("shape", "volume", "origin"):
            values[name] = tuple(values[name])
        return cls(**values)


def _check_fields(values: dict[str, Any]) -> None:
    expected = {field.name for field in fields(SampleMeta)}
    if values.keys() != expected:
        odd = ", ".join(sorted(values.keys() ^ expected))
        raise DataError(f"sample metadata: missing or unknown fields: {odd}")
    invalid = [name for name, is_valid in _VALIDATORS.items() if not is_valid(values[name])]
    if invalid:
        raise DataError(f"sample metadata: invalid values: {', '.join(invalid)}")
    origin, shape, volume = (values[name] for name in ("origin", "shape", "volume"))
    fits = len(origin) == len(shape) == len(volume)
    if not fits or any(start + side > whole for start, side, whole in zip(origin, shape, volume, strict=True)):
        raise DataError("sample metadata: invalid values: origin, shape, volume: the chunk leaves its volume")


def is_count(value: object) -> bool:
    """Return whether ``value`` is an integer of at least 0, not a boolean."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_count_or_none(value: object) -> bool:
    """Return whether ``value`` is an integer of at least 0, or None."""
    return value is None or is_count(value)


def is_text_or_none(value: object) -> bool:
    """Return whether ``value`` is a string or None."""
    return value is None or isinstance(value, str)


def _is_shape(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(is_count(side) and side > 0 for side in value)


def _is_spacing(value: object) -> bool:
    if value is None:
        return True
    return isinstance(value, list) and all(
        isinstance(step, int | float) and 0 < step <= MAX_SPACING_MM for step in value
    )


_VALIDATORS = {
    "key": is_key,
    "class_name": lambda value: isinstance(value, str),
    "label": is_count,
    "person": is_text_or_none,
    "exam": is_text_or_none,
    "fold": is_count,
    "author_fold": is_count_or_none,
    "plane": is_text_or_none,
    "spacing_mm": _is_spacing,
    "shape": _is_shape,
    "volume": _is_shape,
    "origin": lambda value: isinstance(value, list) and all(map(is_count, value)),
}
