"""What can be wrong with a recipe beyond the types of its values, in words."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from hsadml_dist.config.fields import required_settings
from hsadml_dist.config.recipe import Recipe
from hsadml_dist.errors import Fault, did_you_mean

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
