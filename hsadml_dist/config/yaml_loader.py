"""Load recipes and other settings files from YAML; the only file that imports yaml and pydantic.

Scalars follow YAML 1.2: ``1e-3`` is a number and ``yes`` is text. Relative paths in ``data.shards`` and
``model.init_from`` are relative to the current directory, not to the recipe.
"""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from hsadml_dist.addresses import contains_key, display_address
from hsadml_dist.atomic import write_text
from hsadml_dist.config.recipe import Recipe
from hsadml_dist.config.schema import (
    REQUIRED,
    describe_allowed,
    iter_settings,
    section_types,
    setting_fields,
    suggest_key,
)
from hsadml_dist.errors import ConfigError, Fault, did_you_mean

COMMAND_LINE = "command line"
DEFAULT_SOURCE = "default"
TAG = "tag:yaml.org,2002:"
SCALARS = {
    "null": (re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF")),
    "int": (re.compile(r"[-+]?[0-9]+\Z"), list("-+0123456789")),
    "float": (re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z"), list("-+.0123456789")),
}
MAX_DEPTH = 20
"""How deep lists and mappings may be nested."""
OCTAL = re.compile(r"[-+]?0[0-9]+\Z")
CONSTRAINTS = {
    "greater_than_equal": "must be at least {ge:g}",
    "greater_than": "must be greater than {gt:g}",
    "less_than_equal": "must be at most {le:g}",
    "less_than": "must be less than {lt:g}",
}
"""Pydantic's error types to messages."""
REPLACES = {"train.steps": "train.epochs", "train.epochs": "train.steps"}
"""A later layer (a recipe over its base, the command line over a recipe) that sets one length replaces the other."""

FindRecipe = Callable[[str], Path]
Settings = TypeVar("Settings")


@dataclass(frozen=True, kw_only=True)
class LoadedRecipe:
    """A recipe and the source of each of its values.

    Attributes:
        recipe: The settings.
        provenance: By dotted key: ``recipe.yaml:12``, ``command line`` or ``default``.
    """

    recipe: Recipe
    provenance: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class _Located:
    """A value as written, and where: for instance ``recipe.yaml:12``."""

    node: Node
    where: str


_Layer = dict[str, _Located]


def load_recipe(
    path: Path, overrides: Sequence[str] = (), find: FindRecipe | None = None, *, stored: bool = False
) -> LoadedRecipe:
    """Read a recipe, the recipes it is based on, and the overrides of a command line.

    Args:
        path: The YAML file. Its ``base: other.yaml`` is relative to the file; a base without a suffix and without a
            slash is a name for ``find``.
        overrides: ``key=value`` texts; the values are YAML, and the last one of a key counts.
        find: Returns the file of a named recipe; None means that names are refused.
        stored: True for the recipe of a run folder that is only read, not trained; see :meth:`Recipe.conflicts`.

    Raises:
        ConfigError: With all faults found.
    """
    faults: list[Fault] = []
    found = _merged([*_file_layers(path, find, faults, ()), _override_layer(overrides, faults)])
    fields = setting_fields(Recipe)
    values = {
        key: value
        for key, located in found.items()
        for value in _read(key, located, fields[key].kind, faults, fields[key].rule.constraints)
    }
    recipe = build_recipe(values)
    places = {key: located.where for key, located in found.items()}
    if not any(fault.key in ("recipe", "base") for fault in faults):
        missing = [key for key in sorted(set(_required()) - set(found)) if not _has_fault(key, faults)]
        conflicts = _conflicts(recipe.conflicts(stored=stored), places, path.name, faults)
        faults += [*(Fault(where=path.name, key=key, problem="must be given") for key in missing), *conflicts]
    if faults:
        raise ConfigError(faults)
    provenance = {key: places.get(key, DEFAULT_SOURCE) for key, _, _ in iter_settings(recipe)}
    return LoadedRecipe(recipe=recipe, provenance=provenance)


def build_recipe(values: Mapping[str, Any]) -> Recipe:
    """Return the recipe with ``values`` by dotted key; a required setting that is missing becomes the text ``?``."""
    sections: dict[str, dict[str, Any]] = {name: {} for name in section_types(Recipe)}
    for key, value in (dict.fromkeys(_required(), "?") | dict(values)).items():
        section, _, name = key.partition(".")
        sections[section][name] = value
    return Recipe(**{name: kind(**sections[name]) for name, kind in section_types(Recipe).items()})


def dump_recipe(recipe: Recipe, path: Path) -> None:
    """Write all settings of a recipe to ``path``, atomically; :func:`load_recipe` reads them back unchanged.

    Only the user can read the file if it contains an address with a key.
    """
    has_key = any(contains_key(value) for _, value, _ in iter_settings(recipe))
    write_text(path, "".join(f"{line}\n" for line, _ in _lines(recipe)), mode=0o600 if has_key else 0o666)


def print_config(loaded: LoadedRecipe) -> str:
    """Return all settings as YAML, each with the source of its value as a comment; keys of addresses are left out."""
    sources = {
        key: f"{loaded.provenance[key]}{'; its key is not shown' * contains_key(value)}"
        for key, value, _ in iter_settings(loaded.recipe)
    }
    lines = list(_lines(loaded.recipe, lambda value: display_address(value) if contains_key(value) else value))
    column = max((len(line) for line, key in lines if key and len(line) <= 60), default=0)
    return "".join(f"{line:<{column}}  # {sources[key]}\n" if key else f"{line}\n" for line, key in lines)


def to_inline_yaml(value: Any) -> str:
    """Return a value as one line of YAML that reads back unchanged."""
    style: dict[str, Any] = {"default_flow_style": True, "width": math.inf, "sort_keys": False, "allow_unicode": True}
    text = yaml.dump(value, Dumper=_Dumper, **style)
    return text.removesuffix("\n").removesuffix("\n...")


def load_settings(
    path: Path, kind: type[Settings], word: str, problems: Callable[[Settings], Iterable[tuple[str, str]]]
) -> Settings:
    """Read a file of settings other than a recipe.

    Args:
        path: The YAML file.
        kind: A frozen dataclass. Every field has a default and is a text, a number, a truth value, a tuple or a mapping
            of texts, or such a dataclass, whose own fields may be required.
        word: The kind of file, for instance ``profile``.
        problems: Yields (dotted key, problem) for faults of the settings beyond their types.

    Raises:
        ConfigError: With all faults found.
    """
    faults: list[Fault] = []
    places: dict[str, str] = {}
    root = _compose_file(path, word, "settings, such as 'partition: gpu'", faults)
    values = _read_mapping(root, kind, path.name, "", places, faults)
    conflicts = (((key,), problem) for key, problem in problems(kind(**values)))
    faults += _conflicts(conflicts, places, path.name, faults)
    if faults:
        raise ConfigError(faults)
    return kind(**values)


def _required() -> list[str]:
    return [key for key, field in setting_fields(Recipe).items() if field.rule.default is REQUIRED]


def _lines(recipe: Recipe, shown: Callable[[Any], Any] = lambda value: value) -> Iterator[tuple[str, str]]:
    """Yield (line of YAML, dotted key; empty for a section's title), with each value as ``shown`` returns it."""
    section = ""
    for key, value, _ in iter_settings(recipe):
        title, _, name = key.partition(".")
        if title != section:
            section = title
            yield f"{title}:", ""
        yield f"  {name}: {to_inline_yaml(shown(value))}", key


def _merged(layers: Sequence[_Layer]) -> _Layer:
    merged: _Layer = {}
    for layer in layers:
        for key, located in layer.items():
            other = REPLACES.get(key, "")
            if other in merged and other not in layer and not _is_null(located.node):
                del merged[other]
            merged[key] = located
    return merged


def _file_layers(path: Path, find: FindRecipe | None, faults: list[Fault], chain: tuple[Path, ...]) -> list[_Layer]:
    """Return the settings of the bases of ``path``, the furthest first, followed by its own."""
    chain = (*chain, path.resolve())
    bases: list[_Layer] = []
    layer: _Layer = {}
    root = _compose_file(path, "recipe", "sections, such as 'train:'", faults)
    for name, located in _items(root, path.name, "", faults):
        if name == "base":
            base = _base_path(located, path, find, faults)
            if base is not None and base.resolve() in chain:
                problem = f"{located.node.value!r} is based on this file in turn"
                faults.append(Fault(where=located.where, key="base", problem=problem))
            elif base is not None:
                bases = _file_layers(base, find, faults, chain)
        elif name in section_types(Recipe):
            layer |= _section_layer(name, located, path.name, faults)
        else:
            problem = "unknown section" + did_you_mean(name, [*section_types(Recipe), "base"])
            faults.append(Fault(where=located.where, key=name, problem=problem))
    return [*bases, layer]


def _base_path(located: _Located, path: Path, find: FindRecipe | None, faults: list[Fault]) -> Path | None:
    node, where = located.node, located.where
    if not isinstance(node, ScalarNode) or not node.value:
        faults.append(Fault(where=where, key="base", problem="must be the path of another recipe"))
        return None
    if find is not None and "/" not in node.value and not Path(node.value).suffix:
        try:
            return find(node.value)
        except ConfigError as error:
            faults += [Fault(where=where, key="base", problem=fault.problem) for fault in error.faults]
            return None
    base = path.parent / node.value
    if base.is_file():
        return base
    faults.append(Fault(where=where, key="base", problem=f"{node.value!r} does not exist ({base})"))
    return None


def _section_layer(section: str, located: _Located, name: str, faults: list[Fault]) -> _Layer:
    if _is_null(located.node):
        return {}
    if not isinstance(located.node, MappingNode):
        faults.append(Fault(where=located.where, key=section, problem="must be a mapping of settings"))
        return {}
    layer: _Layer = {}
    for setting_name, value in _items(located.node, name, f"{section}.", faults):
        _add(f"{section}.{setting_name}", value, layer, faults)
    return layer


def _override_layer(overrides: Sequence[str], faults: list[Fault]) -> _Layer:
    layer: _Layer = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            faults.append(Fault(where=COMMAND_LINE, key=override, problem="is not of the form key=value"))
            continue
        node = _compose(text or "null", COMMAND_LINE, key, faults)
        if node is not None:
            _add(key, _Located(node=node, where=COMMAND_LINE), layer, faults)
    return layer


def _add(key: str, located: _Located, layer: _Layer, faults: list[Fault]) -> None:
    if key in setting_fields(Recipe):
        layer[key] = located
    else:
        faults.append(Fault(where=located.where, key=key, problem="unknown setting" + suggest_key(Recipe, key)))


def _conflicts(
    conflicts: Iterable[tuple[tuple[str, ...], str]], places: Mapping[str, str], name: str, faults: Sequence[Fault]
) -> list[Fault]:
    """Return a fault for each conflict, at the first key or else at ``name``, unless a key has a fault of its own."""
    return [
        Fault(where=_place(keys[0], places, name), key=keys[0], problem=problem)
        for keys, problem in conflicts
        if not any(_has_fault(key, faults) for key in keys)
    ]


def _has_fault(key: str, faults: Sequence[Fault]) -> bool:
    return any(key == fault.key or key.startswith(f"{fault.key}.") for fault in faults)


def _place(key: str, places: Mapping[str, str], name: str) -> str:
    """Return where a key, or else the mapping around it, is written."""
    while key and key not in places:
        key = key.rpartition(".")[0]
    return places.get(key, name)


def _read_mapping(
    mapping: MappingNode | None, kind: Any, name: str, prefix: str, places: dict[str, str], faults: list[Fault]
) -> dict[str, Any]:
    """Return the values of a mapping that have the right types, and record where each key is written."""
    kinds = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for setting_name, located in _items(mapping, name, prefix, faults):
        key = f"{prefix}{setting_name}"
        places[key] = located.where
        if setting_name not in kinds:
            problem = "unknown setting" + _suggest_name(setting_name, kinds)
            faults.append(Fault(where=located.where, key=key, problem=problem))
            continue
        part = _dataclass_in(kinds[setting_name])
        found = (
            _read(key, located, kinds[setting_name], faults)
            if part is None
            else _read_part(part, key, located, name, places, faults)
        )
        values.update((setting_name, value) for value in found)
    return values


def _read_part(
    kind: Any, key: str, located: _Located, name: str, places: dict[str, str], faults: list[Fault]
) -> Iterator[Any]:
    """Yield the dataclass of a nested mapping, if it has no faults."""
    if _is_null(located.node):
        return
    if not isinstance(located.node, MappingNode):
        allowed = ", ".join(field.name for field in dataclasses.fields(kind))
        faults.append(Fault(where=located.where, key=key, problem=f"must be a mapping of {allowed}"))
        return
    found: list[Fault] = []
    values = _read_mapping(located.node, kind, name, f"{key}.", places, found)
    for field in dataclasses.fields(kind):
        if field.default is dataclasses.MISSING and f"{key}.{field.name}" not in places:
            found.append(Fault(where=located.where, key=f"{key}.{field.name}", problem="must be given"))
    faults += found
    if not found:
        yield kind(**values)


def _dataclass_in(kind: Any) -> Any:
    options = [kind, *typing.get_args(kind)]
    return next((option for option in options if dataclasses.is_dataclass(option)), None)


def _suggest_name(name: str, kinds: Mapping[str, Any]) -> str:
    """Return a hint at the same name inside a nested mapping, or the closest one here, or else all names."""
    parts = {part_name: part for part_name, kind in kinds.items() if (part := _dataclass_in(kind)) is not None}
    same = [f"{part_name}.{name}" for part_name, part in parts.items() if name in typing.get_type_hints(part)]
    return did_you_mean(same[0], same) if same else did_you_mean(name, kinds) or f"; allowed: {', '.join(kinds)}"


def _read(
    key: str, located: _Located, kind: Any, faults: list[Fault], constraints: Mapping[str, float] | None = None
) -> Iterator[Any]:
    """Yield the value of a node as the type ``kind`` within ``constraints``, or record a fault."""
    node = located.node
    try:
        if node.tag in (f"{TAG}int", f"{TAG}float") and str in (kind, *typing.get_args(kind)):
            raise _BadValue(f'{node.value} is a number, and text is wanted; write it in quotes: "{node.value}"')
        value = _plain(node)
        adapter = TypeAdapter(Annotated[kind, Field(**(constraints or {}))], config=ConfigDict(strict=True))
        yield adapter.validate_python(tuple(value) if isinstance(value, list) else value)
    except _BadValue as error:
        faults.append(Fault(where=located.where, key=key, problem=str(error)))
    except ValidationError as error:
        as_written = isinstance(node, ScalarNode) and not isinstance(value, str)
        text = (node.value or "null") if as_written else repr(value)
        found = error.errors()[0]
        message = CONSTRAINTS.get(found["type"])
        problem = message.format(**found["ctx"]) if message else f"is not {describe_allowed(kind, value)}"
        faults.append(Fault(where=located.where, key=key, problem=f"{text} {problem}"))


class _BadValue(ValueError):
    """A value cannot be read, or can be read in two ways."""


class _Loader(yaml.SafeLoader):
    """PyYAML with the scalars of YAML 1.2, without aliases, and nested at most :data:`MAX_DEPTH` times."""

    yaml_implicit_resolvers: dict[str, Any] = {}
    depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """Refuse aliases, which may be endless, and nesting that would exhaust the stack; see the base class."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases are refused; write the value out", mark)
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, f"nested more than {MAX_DEPTH} times", mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes what :class:`_Loader` or a reader of YAML 1.1 would not read as text."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write repeated values out."""
        return True


for _name, (_pattern, _starts) in SCALARS.items():
    _Loader.add_implicit_resolver(f"{TAG}{_name}", _pattern, _starts)
    _Dumper.add_implicit_resolver(f"{TAG}{_name}", _pattern, _starts)


def _compose_file(path: Path, word: str, content: str, faults: list[Fault]) -> MappingNode | None:
    """Return the mapping in a file; None if it is empty or has a fault, which is reported at the key ``word``."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problem = f"cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}"
        faults.append(Fault(where=str(path), key=word, problem=problem))
        return None
    root = _compose(text, path.name, word, faults)
    if root is None or isinstance(root, MappingNode):
        return root
    faults.append(Fault(where=path.name, key=word, problem=f"must be a mapping of {content}"))
    return None


def _compose(text: str, name: str, key: str, faults: list[Fault]) -> Node | None:
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = name if mark is None or name == COMMAND_LINE else f"{name}:{mark.line + 1}"
        problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else str(error).splitlines()[0]
        faults.append(Fault(where=where, key=key, problem=f"is not YAML: {problem}"))
    return None


def _items(mapping: MappingNode | None, name: str, prefix: str, faults: list[Fault]) -> Iterator[tuple[str, _Located]]:
    """Yield the keys and values of a mapping; a key that is given twice is a fault."""
    lines: dict[str, int] = {}
    for key_node, node in mapping.value if mapping is not None else ():
        key, line = str(key_node.value), key_node.start_mark.line + 1
        where = f"{name}:{line}"
        if key in lines:
            faults.append(Fault(where=where, key=f"{prefix}{key}", problem=f"given twice, first in line {lines[key]}"))
            continue
        lines[key] = line
        yield key, _Located(node=node, where=where)


def _is_null(node: Node) -> bool:
    return node.tag == f"{TAG}null"


def _plain(node: Node) -> Any:
    """Return the Python value of a node: None, bool, int, float, str, list or dict."""
    if isinstance(node, SequenceNode):
        return [_plain(item) for item in node.value]
    if isinstance(node, MappingNode):
        keys = [_plain(key) for key, _ in node.value]
        if not all(isinstance(key, str) for key in keys) or len(set(keys)) < len(keys):
            raise _BadValue("the keys of a mapping must be text and differ")
        return dict(zip(keys, [_plain(value) for _, value in node.value], strict=True))
    return _scalar(node.value, node.tag.removeprefix(TAG))


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
