"""How a setting may change on an existing run, and what values it may take: metadata carried by each field."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

KeyClass = Literal["identity", "movable", "extendable"]
"""identity: part of what the run is, a change is refused; movable: where and how it runs; extendable: may grow."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """What a field allows beyond its type, and how it may change on an existing run.

    Attributes:
        key_class: See :data:`KeyClass`.
        least: Smallest allowed number, if any.
        above: Number that the value must exceed, if any.
        most: Largest allowed number, if any.
        default: The value of who does not give one.
        later: Whether runs were made before the setting was there; at its default they are what they were.
        below: Number that the value must stay under, if any.
    """

    key_class: KeyClass = "identity"
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    default: Any = None
    later: bool = False

    def broken_by(self, value: Any) -> str | None:
        """Return the rule that ``value`` breaks, as words, or None."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            return None
        if self.least is not None and value < self.least:
            return f"must be at least {self.least:g}"
        if self.above is not None and value <= self.above:
            return f"must be greater than {self.above:g}"
        if self.most is not None and value > self.most:
            return f"must be at most {self.most:g}"
        if self.below is not None and value >= self.below:
            return f"must be less than {self.below:g}"
        return None


REQUIRED: Any = dataclasses.MISSING


def setting(
    default: Any = REQUIRED,
    *,
    key_class: KeyClass = "identity",
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    later: bool = False,
) -> Any:
    """Declare a recipe setting; returns a dataclass field that carries its :class:`Rule`."""
    rule = Rule(key_class=key_class, least=least, above=above, most=most, below=below, default=default, later=later)
    return dataclasses.field(default=default, metadata={"rule": rule})


def rule_of(field: dataclasses.Field[Any]) -> Rule:
    """Return the rule of a field; fields declared without :func:`setting` have the plain one."""
    return field.metadata.get("rule", Rule())


def leaves(recipe: Any, prefix: str = "") -> Iterator[tuple[str, Any, Rule]]:
    """Yield (dotted key, value, rule) for every setting of a recipe, in the order of declaration."""
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value, rule_of(field)
