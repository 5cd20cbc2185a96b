"""YAML as nodes with lines, and their values with types: the only file that imports yaml and pydantic.

Scalars follow YAML 1.2 (``1e-3`` is a number, ``yes`` is text).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from hsadml_dist.config.check import describe_allowed
from hsadml_dist.errors import Fault

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
