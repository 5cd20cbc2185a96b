"""Checks of a recipe beyond the types of its values, and look-ups of its settings by dotted key."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Literal

from hsadml_dist.config.recipe import Recipe
from hsadml_dist.config.schema import REQUIRED
from hsadml_dist.errors import Fault, did_you_mean


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


TRANSFORM = re.compile(r"monai\.transforms\.[A-Z]\w*\Z")


def describe_allowed(kind: Any, value: Any) -> str:
    """Return what the type ``kind`` allows, as words, with the closest spelling of ``value`` among named choices."""
    options = typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else (kind,)
    words = ["null" if option is type(None) else _words(option) for option in options]
    choices = [str(choice) for option in options if typing.get_origin(option) is Literal for choice in option.__args__]
    return " or ".join(words) + (did_you_mean(value, choices) if isinstance(value, str) else "")


def _words(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        return ("one of " if len(choices) > 1 else "") + ", ".join(repr(str(choice)) for choice in choices)
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text (quote it)"}
    return names.get(kind) or _collection_words(kind)


def _collection_words(kind: Any) -> str:
    shape = "a list" if typing.get_origin(kind) is tuple else "a mapping"
    return f"{shape} of " + ("texts (quote them)" if str in typing.get_args(kind) else "mappings")


def transform_problems(items: Any) -> Iterator[str]:
    """Yield what is wrong with a list of transforms: only MONAI's may be named, and nothing of a recipe is code."""
    if not isinstance(items, list | tuple):
        return
    for number, item in enumerate(items, start=1):
        if not isinstance(item, dict) or "_target_" not in item:
            yield f"item {number} must be a mapping with '_target_: monai.transforms.NAME'"
        for problem in _code_in(item):
            yield f"item {number}: {problem}"


def _code_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        # One capitalised name only: a longer path would reach any module that MONAI's own modules import.
        if "_target_" in value and not TRANSFORM.match(str(value["_target_"])):
            yield f"_target_ {value['_target_']!r} must be a transform's name, monai.transforms.NAME"
        for part in (*value, *value.values()):
            yield from _code_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from _code_in(part)
    elif isinstance(value, str) and value.startswith(("$", "@", "%")):
        yield f"{value!r} is an expression; expressions are refused"


def missing_settings(given: Iterable[str], name: str, faults: Sequence[Fault]) -> Iterator[Fault]:
    """Yield a fault for each required setting that is not given, unless what holds it is faulty as a whole."""
    wrong = {fault.key for fault in faults}
    for key in sorted(required_settings() - set(given) - wrong):
        if not wrong & {"recipe", "base", key.partition(".")[0]}:
            yield Fault(where=name, key=key, problem="must be given")


def conflicting_settings(
    recipe: Recipe, places: Mapping[str, str], name: str, faults: Sequence[Fault]
) -> Iterator[Fault]:
    """Yield a fault for each pair of settings that do not fit each other.

    Args:
        recipe: Settings; those with a fault of their own stand at their defaults.
        places: Where each given setting stands, by dotted key.
        name: The place of settings that are not given.
        faults: What was found before; a disagreement that may only follow from one of them is left out.
    """
    wrong = {fault.key for fault in faults}
    if wrong & {"recipe", "base"}:
        return
    for key, problem in recipe.conflicts():
        section = key.partition(".")[0]
        if not any(bad.partition(".")[0] == section or bad in problem for bad in wrong):
            yield Fault(where=places.get(key, name), key=key, problem=problem)
