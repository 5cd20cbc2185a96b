"""Read JSON that a crash, a bad disk or a stranger may have changed: what it holds is checked before it is used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

INVALID = (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError)
"""What code raises that reads values of the wrong kind."""


def parse_json(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: It is not JSON, not Unicode, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def parse_json_object(text: str | bytes) -> dict[str, Any]:
    """Parse a JSON object; raises ValueError as :func:`parse_json`, and for any other JSON."""
    value = parse_json(text)
    if not isinstance(value, dict):
        raise ValueError("a JSON object is expected")
    return value


def valid_fields(row: Mapping[str, Any], kinds: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """Return a row without the fields of ``kinds`` whose values are of another kind; they count as missing."""
    return {name: value for name, value in row.items() if name not in kinds or isinstance(value, kinds[name])}
