"""Load recipes and other settings files from YAML; the only file that imports yaml and pydantic.

Scalars follow YAML 1.2: ``1e-3`` is a number and ``yes`` is text. Relative paths in ``data.shards`` and
``model.init_from`` are relative to the current directory, not to the recipe.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from hsadml_dist.config.recipe import Recipe
from hsadml_dist.config.schema import iter_settings, rule_for
from hsadml_dist.config.validation import (
    build_recipe,
    conflicting_settings,
    describe_allowed,
    missing_settings,
    recipe_fields,
    recipe_sections,
    suggest_key,
    transform_problems,
)
from hsadml_dist.errors import ConfigError, Fault, did_you_mean

COMMAND_LINE = "command line"
SCALARS = {
    "null": (re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF")),
    "int": (re.compile(r"[-+]?[0-9]+\Z"), list("-+0123456789")),
    "float": (re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z"), list("-+.0123456789")),
}
OCTAL = re.compile(r"[-+]?0[0-9]+\Z")


@dataclass(frozen=True, kw_only=True)
class YamlValue:
    """A value as written.

    Attributes:
        value: What it reads as.
        text: How a fault shows it.
        where: Where it stands, for instance ``recipe.yaml:12``.
    """

    value: Any
    text: str
    where: str


class _BadValue(ValueError):
    """A value that cannot be read, or can be read in two ways."""


class _Loader(yaml.SafeLoader):
    """PyYAML with the scalars of YAML 1.2 and without aliases."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """Refuse aliases, which may be endless; see the base class."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases are refused; write the value out", mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes what :class:`_Loader` or a reader of YAML 1.1 would not read as text."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write repeated values out."""
        return True


for _name, (_pattern, _starts) in SCALARS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, _starts)
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, _starts)


def compose_file(path: Path, word: str, shape: str, faults: list[Fault]) -> MappingNode | None:
    """Return the mapping in a file; None where it is empty, or where a fault was found.

    Args:
        path: The file.
        word: What it is, for instance ``recipe``: the key of a fault of the whole file.
        shape: What its mapping holds, in words.
        faults: Gets what is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        problem = f"cannot be read: {getattr(fault, 'strerror', None) or 'it is no UTF-8 text'}"
        faults.append(Fault(where=str(path), key=word, problem=problem))
        return None
    root = compose_text(text, path.name, word, faults)
    if root is None or isinstance(root, MappingNode):
        return root
    faults.append(Fault(where=path.name, key=word, problem=f"must be a mapping of {shape}"))
    return None


def compose_text(text: str, name: str, key: str, faults: list[Fault]) -> Node | None:
    """Return the node of ``text``; what is no YAML is a fault of ``key``."""
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as fault:
        mark = fault.problem_mark
        where = name if mark is None or name == COMMAND_LINE else f"{name}:{mark.line + 1}"
        faults.append(Fault(where=where, key=key, problem=f"is not YAML: {fault.problem}"))
    except yaml.YAMLError as fault:
        faults.append(Fault(where=name, key=key, problem=f"is not YAML: {str(fault).splitlines()[0]}"))
    return None


def mapping_items(
    mapping: MappingNode | None, name: str, prefix: str, faults: list[Fault]
) -> Iterator[tuple[str, Node, str]]:
    """Yield (key, value's node, place) of a mapping; keys given twice are faults."""
    lines: dict[str, int] = {}
    for key_node, node in mapping.value if mapping is not None else ():
        key, line = str(key_node.value), key_node.start_mark.line + 1
        where = f"{name}:{line}"
        if key in lines:
            faults.append(Fault(where=where, key=f"{prefix}{key}", problem=f"given twice, first in line {lines[key]}"))
            continue
        lines[key] = line
        yield key, node, where


def read_value(key: str, node: Node, where: str, faults: list[Fault]) -> YamlValue | None:
    """Return the value of a node; None, and a fault of ``key``, where it cannot be read in one way."""
    try:
        value = _plain(node)
    except _BadValue as fault:
        faults.append(Fault(where=where, key=key, problem=str(fault)))
        return None
    as_written = isinstance(node, ScalarNode) and not isinstance(value, str)
    return YamlValue(value=value, text=(node.value or "null") if as_written else repr(value), where=where)


def validate_type(kind: Any, found: YamlValue) -> tuple[Any, str | None]:
    """Return the value of ``found`` as the type ``kind``, and what is wrong with it, in words."""
    value = tuple(found.value) if isinstance(found.value, list) else found.value
    try:
        return TypeAdapter(kind, config=ConfigDict(strict=True)).validate_python(value), None
    except ValidationError:
        return value, f"{found.text} is not {describe_allowed(kind, found.value)}"


def to_inline_yaml(value: Any) -> str:
    """Return a value as YAML in one line; :func:`entry` reads it back unchanged."""
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.dump(
        plain, Dumper=_Dumper, default_flow_style=True, width=math.inf, sort_keys=False, allow_unicode=True
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _plain(node: Node) -> Any:
    """Return the Python value of a node: None, bool, int, float, str, list or dict."""
    if isinstance(node, SequenceNode):
        return [_plain(item) for item in node.value]
    if isinstance(node, MappingNode):
        keys = [_plain(key) for key, _ in node.value]
        if not all(isinstance(key, str) for key in keys) or len(set(keys)) < len(keys):
            raise _BadValue("the keys of a mapping must be text and differ")
        return dict(zip(keys, [_plain(value) for _, value in node.value], strict=True))
    return _scalar(node.value, node.tag.removeprefix("tag:yaml.org,2002:"))


def _scalar(text: str, kind: str) -> Any:
    if kind == "str":
        return text
    if kind not in SCALARS or not SCALARS[kind][0].match(text):
        raise _BadValue(f"{text!r} cannot be read with the tag {kind}")
    if kind == "int" and OCTAL.match(text):
        raise _BadValue(f"{text} may mean an octal number; write it without the leading zero")
    if kind in ("int", "float") and not math.isfinite(float(text)):
        raise _BadValue(f"{text} is too large for a number")
    if kind in ("int", "float"):
        return int(text) if kind == "int" else float(text)
    return text.lower() == "true" if kind == "bool" else None


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
    root = compose_file(path, word, "settings, such as 'partition: gpu'", faults)
    values = _read(root, kind, path.name, "", places, faults)
    faults += _broken_rules(problems(kind(**values)), places, path.name, faults)
    if faults:
        raise ConfigError(faults)
    return kind(**values)


def _read(
    mapping: MappingNode | None, kind: Any, name: str, prefix: str, places: dict[str, str], faults: list[Fault]
) -> dict[str, Any]:
    """Return the values of a mapping that are right as to their types; record where each key stands."""
    kinds = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for setting, node, where in mapping_items(mapping, name, prefix, faults):
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


def _part(kind: Any, key: str, node: Node, name: str, places: dict[str, str], faults: list[Fault]) -> Iterator[Any]:
    """Yield the dataclass of a mapping inside the mapping, if nothing is wrong with it."""
    if node.tag == "tag:yaml.org,2002:null":
        return
    if not isinstance(node, MappingNode):
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


def _value(kind: Any, key: str, node: Node, where: str, faults: list[Fault]) -> Iterator[Any]:
    if _is_number(node) and str in (kind, *typing.get_args(kind)):
        wrong = f'{node.value} is a number, and text is wanted; write it in quotes: "{node.value}"'
        faults.append(Fault(where=where, key=key, problem=wrong))
        return
    entry = read_value(key, node, where, faults)
    if entry is None:
        return
    value, problem = validate_type(kind, entry)
    if problem is None:
        yield value
    else:
        faults.append(Fault(where=where, key=key, problem=problem))


def _is_number(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.tag.removeprefix("tag:yaml.org,2002:") in ("int", "float")


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


DEFAULT_SOURCE = "default"
# A later layer (a recipe over its base, the command line over a recipe) that sets one of these lengths means it
# instead of the other, not beside it.
REPLACES = {"train.steps": "train.epochs", "train.epochs": "train.steps"}

FindRecipe = Callable[[str], Path]


@dataclass(frozen=True, kw_only=True)
class LoadedRecipe:
    """A recipe and where each of its values comes from.

    Attributes:
        recipe: The settings.
        provenance: By dotted key: ``recipe.yaml:12``, ``command line`` or ``default``.
    """

    recipe: Recipe
    provenance: Mapping[str, str]


_Layer = dict[str, YamlValue]


def load_recipe(path: Path, overrides: Sequence[str] = (), find: FindRecipe | None = None) -> LoadedRecipe:
    """Read a recipe, the recipes it is based on and the overrides of a command line.

    Args:
        path: The YAML file. Its ``base: other.yaml`` is relative to the file; a base without a suffix and without
            a slash is a name for ``find``.
        overrides: ``key=value`` texts; the values are YAML. The last one of a key counts.
        find: Turns a recipe's name into its file; none: names are refused.

    Raises:
        ConfigError: Holds all faults found.
    """
    faults: list[Fault] = []
    entries = _merged([*_file_layers(path, find, faults, ()), _override_layer(overrides, faults)])
    values = {key: value for key, entry in entries.items() for value in _checked(key, entry, faults)}
    recipe = build_recipe(values)
    places = {key: entry.where for key, entry in entries.items()}
    faults += [*missing_settings(entries, path.name, faults), *conflicting_settings(recipe, places, path.name, faults)]
    if faults:
        raise ConfigError(faults)
    return LoadedRecipe(
        recipe=recipe, provenance={key: places.get(key, DEFAULT_SOURCE) for key, _, _ in iter_settings(recipe)}
    )


def dump_recipe(recipe: Recipe, path: Path) -> None:
    """Write all settings of a recipe to ``path``, atomically; :func:`load_recipe` reads them back unchanged."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line, _ in _lines(recipe))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def print_config(loaded: LoadedRecipe) -> str:
    """Return all settings as YAML, each with a comment that says where its value comes from."""
    lines = list(_lines(loaded.recipe))
    column = max((len(line) for line, key in lines if key and len(line) <= 60), default=0)
    return "".join(f"{line:<{column}}  # {loaded.provenance[key]}\n" if key else f"{line}\n" for line, key in lines)


def _lines(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield (line of YAML, dotted key; empty for a section's title)."""
    section = ""
    for key, value, _ in iter_settings(recipe):
        title, _, name = key.partition(".")
        if title != section:
            section = title
            yield f"{title}:", ""
        yield f"  {name}: {to_inline_yaml(value)}", key


def _merged(layers: Sequence[_Layer]) -> _Layer:
    entries: _Layer = {}
    for layer in layers:
        for key, entry in layer.items():
            other = REPLACES.get(key, "")
            if other in entries and other not in layer and entry.value is not None:
                del entries[other]
            entries[key] = entry
    return entries


def _file_layers(path: Path, find: FindRecipe | None, faults: list[Fault], chain: tuple[Path, ...]) -> list[_Layer]:
    """Return the settings of the bases of ``path``, the furthest first, and last its own."""
    chain = (*chain, path.resolve())
    below: list[_Layer] = []
    layer: _Layer = {}
    root = compose_file(path, "recipe", "sections, such as 'train:'", faults)
    for name, node, where in mapping_items(root, path.name, "", faults):
        if name == "base":
            base = _base(node, where, path, find, faults)
            if base is not None and base.resolve() in chain:
                faults.append(Fault(where=where, key="base", problem=f"{node.value!r} is based on this file in turn"))
            elif base is not None:
                below = _file_layers(base, find, faults, chain)
        elif name in recipe_sections():
            layer |= _section_entries(name, node, path.name, where, faults)
        else:
            problem = "unknown section" + did_you_mean(name, [*recipe_sections(), "base"])
            faults.append(Fault(where=where, key=name, problem=problem))
    return [*below, layer]


def _base(node: Node, where: str, path: Path, find: FindRecipe | None, faults: list[Fault]) -> Path | None:
    if not isinstance(node, ScalarNode) or not node.value:
        faults.append(Fault(where=where, key="base", problem="must be the path of another recipe"))
        return None
    if find is not None and "/" not in node.value and not Path(node.value).suffix:
        try:
            return find(node.value)
        except ConfigError as fault:
            faults += [Fault(where=where, key="base", problem=found.problem) for found in fault.faults]
            return None
    base = path.parent / node.value
    if base.is_file():
        return base
    faults.append(Fault(where=where, key="base", problem=f"{node.value!r} does not exist ({base})"))
    return None


def _section_entries(section: str, node: Node, name: str, where: str, faults: list[Fault]) -> _Layer:
    if node.tag == "tag:yaml.org,2002:null":
        return {}
    if not isinstance(node, MappingNode):
        faults.append(Fault(where=where, key=section, problem="must be a mapping of settings"))
        return {}
    layer: _Layer = {}
    for setting, value_node, place in mapping_items(node, name, f"{section}.", faults):
        key = f"{section}.{setting}"
        if key in recipe_fields():
            layer |= _entry(key, value_node, place, faults)
        else:
            faults.append(Fault(where=place, key=key, problem="unknown setting" + suggest_key(key)))
    return layer


def _override_layer(overrides: Sequence[str], faults: list[Fault]) -> _Layer:
    layer: _Layer = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            faults.append(Fault(where=COMMAND_LINE, key=override, problem="is not of the form key=value"))
        elif key not in recipe_fields():
            faults.append(Fault(where=COMMAND_LINE, key=key, problem="unknown setting" + suggest_key(key)))
        else:
            node = compose_text(text or "null", COMMAND_LINE, key, faults)
            layer |= _entry(key, node, COMMAND_LINE, faults) if node is not None else {}
    return layer


def _entry(key: str, node: Node, where: str, faults: list[Fault]) -> _Layer:
    found = read_value(key, node, where, faults)
    return {} if found is None else {key: found}


def _checked(key: str, entry: YamlValue, faults: list[Fault]) -> Iterator[Any]:
    """Yield the value of a setting if its type and its rule allow it, else record the fault."""
    field, kind = recipe_fields()[key]
    value, problem = validate_type(kind, entry)
    if key == "data.transforms":
        problem = next(transform_problems(value), problem)
    broken = rule_for(field).broken_by(value)
    if problem is None and broken is not None:
        problem = f"{entry.text} {broken}"
    if problem is not None:
        faults.append(Fault(where=entry.where, key=key, problem=problem))
    else:
        yield value
