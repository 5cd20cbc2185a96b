"""Recipes as YAML: the only file that imports yaml and pydantic.

Scalars follow YAML 1.2 (``1e-3`` is a number, ``yes`` is text). Relative paths in ``data.shards`` and
``model.init_from`` are relative to the current directory, not to the recipe.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from hsadml_dist.config.check import allowed_words, disagreements, missing, transform_problems
from hsadml_dist.config.fields import build, fields, near_key, sections
from hsadml_dist.config.keys import leaves, rule_of
from hsadml_dist.config.recipe import Recipe
from hsadml_dist.errors import ConfigError, Fault, nearest

COMMAND_LINE = "command line"
DEFAULT = "default"
SCALARS = {
    "null": (re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF")),
    "int": (re.compile(r"[-+]?[0-9]+\Z"), list("-+0123456789")),
    "float": (re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z"), list("-+.0123456789")),
}
OCTAL = re.compile(r"[-+]?0[0-9]+\Z")
# A later layer (a recipe over its base, the command line over a recipe) that sets one of these lengths means it
# instead of the other, not beside it.
REPLACES = {"train.steps": "train.epochs", "train.epochs": "train.steps"}

Find = Callable[[str], Path]


@dataclass(frozen=True, kw_only=True)
class LoadedRecipe:
    """A recipe and where each of its values comes from.

    Attributes:
        recipe: The settings.
        provenance: By dotted key: ``recipe.yaml:12``, ``command line`` or ``default``.
    """

    recipe: Recipe
    provenance: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A value as written: ``text`` is how a fault shows it."""

    value: Any
    text: str
    where: str


_Layer = dict[str, _Entry]


class _BadValue(ValueError):
    """A value that cannot be read, or can be read in two ways."""


class _Loader(yaml.SafeLoader):
    """PyYAML with the scalars of YAML 1.2 and without aliases."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
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


def load_recipe(path: Path, overrides: Sequence[str] = (), find: Find | None = None) -> LoadedRecipe:
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
    recipe = build(values)
    places = {key: entry.where for key, entry in entries.items()}
    faults += [*missing(entries, path.name, faults), *disagreements(recipe, places, path.name, faults)]
    if faults:
        raise ConfigError(faults)
    return LoadedRecipe(recipe=recipe, provenance={key: places.get(key, DEFAULT) for key, _, _ in leaves(recipe)})


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
    for key, value, _ in leaves(recipe):
        title, _, name = key.partition(".")
        if title != section:
            section = title
            yield f"{title}:", ""
        yield f"  {name}: {_flow(value)}", key


def _flow(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.dump(
        plain, Dumper=_Dumper, default_flow_style=True, width=math.inf, sort_keys=False, allow_unicode=True
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _merged(layers: Sequence[_Layer]) -> _Layer:
    entries: _Layer = {}
    for layer in layers:
        for key, entry in layer.items():
            other = REPLACES.get(key, "")
            if other in entries and other not in layer and entry.value is not None:
                del entries[other]
            entries[key] = entry
    return entries


def _file_layers(path: Path, find: Find | None, faults: list[Fault], chain: tuple[Path, ...]) -> list[_Layer]:
    """Return the settings of the bases of ``path``, the furthest first, and last its own."""
    chain = (*chain, path.resolve())
    below: list[_Layer] = []
    layer: _Layer = {}
    for name, node, where in _pairs(_compose_file(path, faults), path.name, "", faults):
        if name == "base":
            base = _base(node, where, path, find, faults)
            if base is not None and base.resolve() in chain:
                faults.append(Fault(where=where, key="base", problem=f"{node.value!r} is based on this file in turn"))
            elif base is not None:
                below = _file_layers(base, find, faults, chain)
        elif name in sections():
            layer |= _section_entries(name, node, path.name, where, faults)
        else:
            problem = "unknown section" + nearest(name, [*sections(), "base"])
            faults.append(Fault(where=where, key=name, problem=problem))
    return [*below, layer]


def _compose_file(path: Path, faults: list[Fault]) -> yaml.MappingNode | None:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        problem = f"cannot be read: {getattr(fault, 'strerror', None) or 'it is no UTF-8 text'}"
        faults.append(Fault(where=str(path), key="recipe", problem=problem))
        return None
    root = _compose(text, path.name, "recipe", faults)
    if root is None or isinstance(root, yaml.MappingNode):
        return root
    faults.append(Fault(where=path.name, key="recipe", problem="must be a mapping of sections, such as 'train:'"))
    return None


def _compose(text: str, name: str, key: str, faults: list[Fault]) -> yaml.Node | None:
    """Return the node of ``text``; what is no YAML is a fault."""
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as fault:
        mark = fault.problem_mark
        where = name if mark is None or name == COMMAND_LINE else f"{name}:{mark.line + 1}"
        faults.append(Fault(where=where, key=key, problem=f"is not YAML: {fault.problem}"))
    except yaml.YAMLError as fault:
        faults.append(Fault(where=name, key=key, problem=f"is not YAML: {str(fault).splitlines()[0]}"))
    return None


def _base(node: yaml.Node, where: str, path: Path, find: Find | None, faults: list[Fault]) -> Path | None:
    if not isinstance(node, yaml.ScalarNode) or not node.value:
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


def _pairs(
    mapping: yaml.MappingNode | None, name: str, prefix: str, faults: list[Fault]
) -> Iterator[tuple[str, yaml.Node, str]]:
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


def _section_entries(section: str, node: yaml.Node, name: str, where: str, faults: list[Fault]) -> _Layer:
    if node.tag == "tag:yaml.org,2002:null":
        return {}
    if not isinstance(node, yaml.MappingNode):
        faults.append(Fault(where=where, key=section, problem="must be a mapping of settings"))
        return {}
    layer: _Layer = {}
    for setting, value_node, place in _pairs(node, name, f"{section}.", faults):
        key = f"{section}.{setting}"
        if key in fields():
            layer |= _entry(key, value_node, place, faults)
        else:
            faults.append(Fault(where=place, key=key, problem="unknown setting" + near_key(key)))
    return layer


def _override_layer(overrides: Sequence[str], faults: list[Fault]) -> _Layer:
    layer: _Layer = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            faults.append(Fault(where=COMMAND_LINE, key=override, problem="is not of the form key=value"))
        elif key not in fields():
            faults.append(Fault(where=COMMAND_LINE, key=key, problem="unknown setting" + near_key(key)))
        else:
            node = _compose(text or "null", COMMAND_LINE, key, faults)
            layer |= _entry(key, node, COMMAND_LINE, faults) if node is not None else {}
    return layer


def _entry(key: str, node: yaml.Node, where: str, faults: list[Fault]) -> _Layer:
    try:
        value = _plain(node)
    except _BadValue as fault:
        faults.append(Fault(where=where, key=key, problem=str(fault)))
        return {}
    as_written = isinstance(node, yaml.ScalarNode) and not isinstance(value, str)
    return {key: _Entry(value=value, text=(node.value or "null") if as_written else repr(value), where=where)}


def _plain(node: yaml.Node) -> Any:
    """Return the Python value of a node: None, bool, int, float, str, list or dict."""
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
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


def _checked(key: str, entry: _Entry, faults: list[Fault]) -> Iterator[Any]:
    """Yield the value of a setting if its type and its rule allow it, else record the fault."""
    field, kind = fields()[key]
    value = tuple(entry.value) if isinstance(entry.value, list) else entry.value
    problem = next(transform_problems(value), None) if key == "data.transforms" else None
    try:
        value = TypeAdapter(kind, config=ConfigDict(strict=True)).validate_python(value)
    except ValidationError:
        problem = problem or f"{entry.text} is not {allowed_words(kind, entry.value)}"
    broken = rule_of(field).broken_by(value)
    if problem is None and broken is not None:
        problem = f"{entry.text} {broken}"
    if problem is not None:
        faults.append(Fault(where=entry.where, key=key, problem=problem))
    else:
        yield value
