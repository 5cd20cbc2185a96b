"""One sample of a shard, as the writer stores it and the reader finds it.

A shard is a plain, uncompressed tar. Each sample has two or three members that share its key::

    <key>.png        the image: 16-bit grayscale PNG, lossless
    <key>.json       a :class:`SampleMeta`
    <key>.mask.png   optional: 8-bit grayscale PNG, 0 outside the lesion and 255 inside

Keys, persons and exams are keyed hashes; nothing here holds an identifier or a file name of the source.
This file imports the standard library alone, so that a login node can read it.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields
from typing import Any

from hsadml_dist.errors import DataError

SCHEMA_VERSION = 2
"""Version of the shard format. A reader refuses every other one."""

IMAGE = "png"
META = "json"
MASK = "mask.png"
MEMBERS = (IMAGE, META, MASK)
"""What follows ``<key>.`` in a member's name."""

REQUIRED_MEMBERS = (IMAGE, META)

_KEY = re.compile(r"[0-9a-f]{16,64}")


def is_key(text: object) -> bool:
    """Say whether ``text`` is a sample key: 16 to 64 lower-case hexadecimal digits."""
    return isinstance(text, str) and _KEY.fullmatch(text) is not None


def member_name(key: str, member: str) -> str:
    """Return the name in the tar of one member of a sample, for instance ``<key>.mask.png``."""
    return f"{key}.{member}"


def split_member_name(name: str) -> tuple[str, str]:
    """Return (key, member) of a name in a tar.

    Raises:
        DataError: The name is not one that this schema knows.
    """
    key, _, member = name.partition(".")
    if not is_key(key) or member not in MEMBERS:
        raise DataError(f"a member of a shard is named {name!r}: expected <hex key>.{{{','.join(MEMBERS)}}}")
    return key, member


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleMeta:
    """What is known of one sample beside its pixels: the ``json`` member.

    Attributes:
        key: Keyed hash that names the sample; 16 or more hexadecimal digits.
        class_name: The class in words.
        label: The class's number: its place in the index's ``classes``.
        person: Keyed hash of the person, or None where the source names none.
        exam: Keyed hash of the exam, or None where the source names none.
        fold: The fold that holds the sample out.
        author_fold: The fold that the data set's publisher put it in, or None.
        plane: ``axial``, ``coronal`` or ``sagittal``, or None where unknown.
        spacing_mm: Size of a pixel or voxel along each axis of ``shape``, or None where unknown.
        shape: The image's (height, width), later (depth, height, width).
        volume: Shape of the whole that the image is a chunk of; ``shape`` for a whole image.
        origin: Where in ``volume`` the image begins; zeros for a whole image.
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
        """Return the text of the ``json`` member: sorted keys, the schema's version, no spaces."""
        return json.dumps({"schema": SCHEMA_VERSION, **asdict(self)}, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> SampleMeta:
        """Read what :meth:`to_json` wrote.

        Raises:
            DataError: Not JSON, another schema version, or fields that are missing, unknown or of a wrong type.
        """
        values = _parse(text)
        version = values.pop("schema", None)
        if version != SCHEMA_VERSION:
            raise DataError(f"a sample's json has schema {version!r}: this version reads {SCHEMA_VERSION}")
        _check_fields(values)
        spacing = values["spacing_mm"]
        values["spacing_mm"] = None if spacing is None else tuple(float(step) for step in spacing)
        for name in ("shape", "volume", "origin"):
            values[name] = tuple(values[name])
        return cls(**values)


def _parse(text: str | bytes) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise DataError(f"a sample's json cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"a sample's json holds a {type(values).__name__}: expected an object")
    return values


def _check_fields(values: dict[str, Any]) -> None:
    expected = {field.name for field in fields(SampleMeta)}
    if values.keys() != expected:
        odd = ", ".join(sorted(values.keys() ^ expected))
        raise DataError(f"a sample's json has missing or unknown fields: {odd}")
    wrong = [name for name, good in _RULES.items() if not good(values[name])]
    if wrong:
        raise DataError(f"a sample's json has wrong values for: {', '.join(wrong)}")
    if not _lies_within(values["origin"], values["shape"], values["volume"]):
        raise DataError("a sample's json has wrong values for: origin, shape, volume: the chunk leaves its volume")


def is_count(value: object) -> bool:
    """Say whether ``value`` is a whole number of at least 0, and no boolean."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_count_or_none(value: object) -> bool:
    """Say whether ``value`` is a whole number of at least 0, or None."""
    return value is None or is_count(value)


def is_text_or_none(value: object) -> bool:
    """Say whether ``value`` is a text or None."""
    return value is None or isinstance(value, str)


def _is_shape(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(is_count(side) and side > 0 for side in value)


def _lies_within(origin: list[int], shape: list[int], volume: list[int]) -> bool:
    if not len(origin) == len(shape) == len(volume):
        return False
    return all(start + side <= whole for start, side, whole in zip(origin, shape, volume, strict=True))


def _is_spacing(value: object) -> bool:
    if value is None:
        return True
    return isinstance(value, list) and all(isinstance(step, int | float) and step > 0 for step in value)


_RULES = {
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
