"""Metadata of recipe settings: allowed numbers, and whether a setting may change when a run is resumed."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Literal

from hsadml_dist.errors import did_you_mean

REQUIRED: Any = dataclasses.MISSING

SYNONYMS: Mapping[str, str] = {
    "arch": "model.name",
    "backbone": "model.name",
    "batch_size": "train.global_batch",
    "batch": "train.global_batch",
    "dataset": "data.shards",
    "gradient_accumulation_steps": "engine.accumulate",
    "learning_rate": "optim.lr",
    "m": "loss.margin",
    "optimizer": "optim.name",
    "path": "data.shards",
    "s": "loss.scale",
}
"""Names that other packages use, and the settings that they mean here."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SettingRule:
    """The default of a setting, and its limits beyond its type.

    Attributes:
        fixed: True if the setting is part of the identity of a run, so that it cannot change on resume.
        added_later: True if older runs lack the setting; at its default, such runs keep their fingerprint.
        default: Value of the setting if none is given.
        constraints: Limits of a number, by pydantic's names: ``ge``, ``gt``, ``le`` and ``lt``.
    """

    fixed: bool = True
    added_later: bool = False
    default: Any = None
    constraints: Mapping[str, float] = dataclasses.field(default_factory=dict)


def setting(default: Any = REQUIRED, *, fixed: bool = True, added_later: bool = False, **constraints: float) -> Any:
    """Declare a recipe setting: a dataclass field that carries its :class:`SettingRule`."""
    rule = SettingRule(fixed=fixed, added_later=added_later, default=default, constraints=constraints)
    return dataclasses.field(default=default, metadata={"rule": rule})


@dataclasses.dataclass(frozen=True, kw_only=True)
class SettingField:
    """A declared setting: its type and its rule."""

    kind: Any
    rule: SettingRule


@cache
def section_types(recipe_type: type) -> Mapping[str, Any]:
    """Return the section classes of a recipe by name."""
    return typing.get_type_hints(recipe_type)


@cache
def setting_fields(recipe_type: type) -> Mapping[str, SettingField]:
    """Return every setting of a recipe by dotted key, in the order of declaration."""
    found: dict[str, SettingField] = {}
    for section, section_type in section_types(recipe_type).items():
        kinds = typing.get_type_hints(section_type)
        for field in dataclasses.fields(section_type):
            found[f"{section}.{field.name}"] = SettingField(kind=kinds[field.name], rule=field.metadata["rule"])
    return found


def iter_settings(recipe: object) -> Iterator[tuple[str, Any, SettingRule]]:
    """Yield (dotted key, value, rule) for every setting of a recipe, in the order of declaration."""
    recipe_type: Any = type(recipe)
    for key, field in setting_fields(recipe_type).items():
        section, _, name = key.partition(".")
        yield key, getattr(getattr(recipe, section), name), field.rule


def suggest_key(recipe_type: type, key: str) -> str:
    """Return a hint at the setting that ``key`` may mean: the same name elsewhere, or the closest spelling."""
    known = setting_fields(recipe_type)
    section, _, name = key.rpartition(".")
    if SYNONYMS.get(name) in known:
        return did_you_mean(SYNONYMS[name], [SYNONYMS[name]])
    same_name = [other for other in known if other.endswith(f".{name}")]
    if len(same_name) == 1:
        return did_you_mean(same_name[0], same_name)
    siblings = [other.partition(".")[2] for other in known if other.startswith(f"{section}.")]
    return did_you_mean(name, siblings) or did_you_mean(key, known)


def describe_allowed(kind: Any, value: Any) -> str:
    """Return in words what the type ``kind`` allows, with the spelling closest to ``value`` among named choices."""
    options = typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else (kind,)
    words = ["null" if option is type(None) else _describe_type(option) for option in options]
    choices = [str(choice) for option in options if typing.get_origin(option) is Literal for choice in option.__args__]
    return " or ".join(words) + (did_you_mean(value, choices) if isinstance(value, str) else "")


def _describe_type(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        return ("one of " if len(choices) > 1 else "") + ", ".join(repr(str(choice)) for choice in choices)
    scalars = {int: "an integer", float: "a number", bool: "true or false", str: "text (quote it)"}
    if kind in scalars:
        return scalars[kind]
    shape = "a list" if typing.get_origin(kind) is tuple else "a mapping"
    return f"{shape} of " + ("texts (quote them)" if str in typing.get_args(kind) else "mappings")
