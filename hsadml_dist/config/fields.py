"""What settings a recipe has, by dotted key."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any

from hsadml_dist.config.keys import REQUIRED
from hsadml_dist.config.recipe import Recipe
from hsadml_dist.errors import did_you_mean


@cache
def recipe_sections() -> Mapping[str, Any]:
    """Return the section classes by name."""
    return typing.get_type_hints(Recipe)


@cache
def recipe_fields() -> Mapping[str, tuple[dataclasses.Field[Any], Any]]:
    """Return (field, type) of every setting by dotted key, in the order of declaration."""
    found: dict[str, tuple[dataclasses.Field[Any], Any]] = {}
    for section, kind in recipe_sections().items():
        hints = typing.get_type_hints(kind)
        found |= {f"{section}.{field.name}": (field, hints[field.name]) for field in dataclasses.fields(kind)}
    return found


@cache
def required_settings() -> frozenset[str]:
    """Return the dotted keys that have no default."""
    return frozenset(key for key, (field, _) in recipe_fields().items() if field.default is REQUIRED)


def suggest_key(key: str) -> str:
    """Return a hint at the setting that ``key`` may mean: the same name elsewhere, or the closest spelling."""
    section, _, name = key.rpartition(".")
    same = [known for known in recipe_fields() if known.endswith(f".{name}")]
    if len(same) == 1:
        return f" (did you mean {same[0]!r}?)"
    hint = did_you_mean(name, [known.partition(".")[2] for known in recipe_fields() if known.startswith(f"{section}.")])
    return hint or did_you_mean(key, recipe_fields())


def build_recipe(values: Mapping[str, Any]) -> Recipe:
    """Return the recipe of ``values`` by dotted key; a required one that is not there becomes the text ``?``."""
    parts: dict[str, dict[str, Any]] = {name: {} for name in recipe_sections()}
    for key, value in (dict.fromkeys(required_settings(), "?") | dict(values)).items():
        section, _, name = key.partition(".")
        parts[section][name] = value
    return Recipe(**{name: kind(**parts[name]) for name, kind in recipe_sections().items()})
