"""Recipes as YAML.

Relative paths in ``data.shards`` and ``model.init_from`` are relative to the current directory, not to the recipe.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hsadml_dist.config import nodes
from hsadml_dist.config.check import conflicting_settings, missing_settings, transform_problems
from hsadml_dist.config.fields import build_recipe, recipe_fields, recipe_sections, suggest_key
from hsadml_dist.config.keys import iter_settings, rule_for
from hsadml_dist.config.nodes import COMMAND_LINE, YamlValue
from hsadml_dist.config.recipe import Recipe
from hsadml_dist.errors import ConfigError, Fault, did_you_mean

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
        yield f"  {name}: {nodes.to_inline_yaml(value)}", key


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
    root = nodes.compose_file(path, "recipe", "sections, such as 'train:'", faults)
    for name, node, where in nodes.mapping_items(root, path.name, "", faults):
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


def _base(node: nodes.Node, where: str, path: Path, find: FindRecipe | None, faults: list[Fault]) -> Path | None:
    if not isinstance(node, nodes.ScalarNode) or not node.value:
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


def _section_entries(section: str, node: nodes.Node, name: str, where: str, faults: list[Fault]) -> _Layer:
    if node.tag == "tag:yaml.org,2002:null":
        return {}
    if not isinstance(node, nodes.MappingNode):
        faults.append(Fault(where=where, key=section, problem="must be a mapping of settings"))
        return {}
    layer: _Layer = {}
    for setting, value_node, place in nodes.mapping_items(node, name, f"{section}.", faults):
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
            node = nodes.compose_text(text or "null", COMMAND_LINE, key, faults)
            layer |= _entry(key, node, COMMAND_LINE, faults) if node is not None else {}
    return layer


def _entry(key: str, node: nodes.Node, where: str, faults: list[Fault]) -> _Layer:
    found = nodes.read_value(key, node, where, faults)
    return {} if found is None else {key: found}


def _checked(key: str, entry: YamlValue, faults: list[Fault]) -> Iterator[Any]:
    """Yield the value of a setting if its type and its rule allow it, else record the fault."""
    field, kind = recipe_fields()[key]
    value, problem = nodes.validate_type(kind, entry)
    if key == "data.transforms":
        problem = next(transform_problems(value), problem)
    broken = rule_for(field).broken_by(value)
    if problem is None and broken is not None:
        problem = f"{entry.text} {broken}"
    if problem is not None:
        faults.append(Fault(where=entry.where, key=key, problem=problem))
    else:
        yield value
