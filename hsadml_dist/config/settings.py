"""A frozen dataclass from a YAML file: a flat mapping, whose values may be mappings for dataclasses of their own."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hsadml_dist.config import nodes
from hsadml_dist.errors import ConfigError, Fault, did_you_mean

Settings = TypeVar("Settings")


def load_settings(
    path: Path, kind: type[Settings], word: str, problems: Callable[[Settings], Iterable[tuple[str, str]]]
) -> Settings:
    """Read a file of settings.

    Args:
        path: The YAML file.
        kind: A frozen dataclass. Every field has a default and is a text, a number, a truth value, a tuple or a
            mapping of texts, or such a dataclass, whose own fields may lack one.
        word: What the file is, for instance ``profile``.
        problems: Yields (dotted key, problem) for what is wrong with the settings beyond their types.

    Raises:
        ConfigError: Holds all faults found.
    """
    faults: list[Fault] = []
    places: dict[str, str] = {}
    root = nodes.compose_file(path, word, "settings, such as 'partition: gpu'", faults)
    values = _read(root, kind, path.name, "", places, faults)
    faults += _broken_rules(problems(kind(**values)), places, path.name, faults)
    if faults:
        raise ConfigError(faults)
    return kind(**values)


def _read(
    mapping: nodes.MappingNode | None, kind: Any, name: str, prefix: str, places: dict[str, str], faults: list[Fault]
) -> dict[str, Any]:
    """Return the values of a mapping that are right as to their types; record where each key stands."""
    kinds = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for setting, node, where in nodes.mapping_items(mapping, name, prefix, faults):
        key = f"{prefix}{setting}"
        places[key] = where
        if setting not in kinds:
            faults.append(Fault(where=where, key=key, problem="unknown setting" + _near(setting, kinds)))
            continue
        part = _dataclass_in(kinds[setting])
        found = (
            _value(kinds[setting], key, node, where, faults)
            if part is None
            else _part(part, key, node, name, places, faults)
        )
        for value in found:
            values[setting] = value
    return values


def _part(
    kind: Any, key: str, node: nodes.Node, name: str, places: dict[str, str], faults: list[Fault]
) -> Iterator[Any]:
    """Yield the dataclass of a mapping inside the mapping, if nothing is wrong with it."""
    if node.tag == "tag:yaml.org,2002:null":
        return
    if not isinstance(node, nodes.MappingNode):
        allowed = ", ".join(field.name for field in dataclasses.fields(kind))
        faults.append(Fault(where=places[key], key=key, problem=f"must be a mapping of {allowed}"))
        return
    found: list[Fault] = []
    values = _read(node, kind, name, f"{key}.", places, found)
    for field in dataclasses.fields(kind):
        if field.default is dataclasses.MISSING and f"{key}.{field.name}" not in places:
            found.append(Fault(where=places[key], key=f"{key}.{field.name}", problem="must be given"))
    faults += found
    if not found:
        yield kind(**values)


def _value(kind: Any, key: str, node: nodes.Node, where: str, faults: list[Fault]) -> Iterator[Any]:
    if _is_number(node) and str in (kind, *typing.get_args(kind)):
        wrong = f'{node.value} is a number, and text is wanted; write it in quotes: "{node.value}"'
        faults.append(Fault(where=where, key=key, problem=wrong))
        return
    entry = nodes.read_value(key, node, where, faults)
    if entry is None:
        return
    value, problem = nodes.validate_type(kind, entry)
    if problem is None:
        yield value
    else:
        faults.append(Fault(where=where, key=key, problem=problem))


def _is_number(node: nodes.Node) -> bool:
    return isinstance(node, nodes.ScalarNode) and node.tag.removeprefix("tag:yaml.org,2002:") in ("int", "float")


def _dataclass_in(kind: Any) -> Any:
    options = [kind, *typing.get_args(kind)]
    return next((option for option in options if dataclasses.is_dataclass(option)), None)


def _near(setting: str, kinds: Mapping[str, Any]) -> str:
    """Return a hint at the closest name here, or inside one of the parts, or else all names."""
    inside = {f"{name}.{field.name}": field.name for name in kinds for field in _fields_of(kinds[name])}
    same = [key for key, name in inside.items() if name == setting]
    if same:
        return f" (did you mean {same[0]!r}?)"
    return did_you_mean(setting, kinds) or f"; allowed: {', '.join(kinds)}"


def _fields_of(kind: Any) -> Sequence[dataclasses.Field[Any]]:
    part = _dataclass_in(kind)
    return () if part is None else dataclasses.fields(part)


def _broken_rules(
    problems: Iterable[tuple[str, str]], places: Mapping[str, str], name: str, faults: Sequence[Fault]
) -> list[Fault]:
    """Return a fault for each problem of a key that has none yet."""
    wrong = {fault.key for fault in faults}
    return [
        Fault(where=_place(key, places, name), key=key, problem=problem)
        for key, problem in problems
        if key not in wrong
    ]


def _place(key: str, places: Mapping[str, str], name: str) -> str:
    """Return where a key stands, or what holds it."""
    while key and key not in places:
        key = key.rpartition(".")[0]
    return places.get(key, name)
