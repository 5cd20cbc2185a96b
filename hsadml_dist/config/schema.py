"""How a setting may change on an existing run, and what values it may take: metadata carried by each field."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

ResumePolicy = Literal["identity", "movable", "extendable"]
"""identity: part of what the run is, a change is refused; movable: where and how it runs; extendable: may grow."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SettingRule:
    """What a field allows beyond its type, and how it may change on an existing run.

    Attributes:
        on_resume: See :data:`ResumePolicy`.
        ge: Smallest allowed number, if any.
        gt: Number that the value must exceed, if any.
        le: Largest allowed number, if any.
        default: The value of who does not give one.
        added_later: Whether runs were made before the setting was there; at its default they are what they were.
        lt: Number that the value must stay under, if any.
    """

    on_resume: ResumePolicy = "identity"
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    default: Any = None
    added_later: bool = False

    def broken_by(self, value: Any) -> str | None:
        """Return the rule that ``value`` breaks, as words, or None."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            return None
        if self.ge is not None and value < self.ge:
            return f"must be at least {self.ge:g}"
        if self.gt is not None and value <= self.gt:
            return f"must be greater than {self.gt:g}"
        if self.le is not None and value > self.le:
            return f"must be at most {self.le:g}"
        if self.lt is not None and value >= self.lt:
            return f"must be less than {self.lt:g}"
        return None


REQUIRED: Any = dataclasses.MISSING


def setting(
    default: Any = REQUIRED,
    *,
    on_resume: ResumePolicy = "identity",
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    added_later: bool = False,
) -> Any:
    """Declare a recipe setting; returns a dataclass field that carries its :class:`SettingRule`."""
    rule = SettingRule(on_resume=on_resume, ge=ge, gt=gt, le=le, lt=lt, default=default, added_later=added_later)
    return dataclasses.field(default=default, metadata={"rule": rule})


def rule_for(field: dataclasses.Field[Any]) -> SettingRule:
    """Return the rule of a field; fields declared without :func:`setting` have the plain one."""
    return field.metadata.get("rule", SettingRule())


def iter_settings(recipe: Any, prefix: str = "") -> Iterator[tuple[str, Any, SettingRule]]:
    """Yield (dotted key, value, rule) for every setting of a recipe, in the order of declaration."""
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        if dataclasses.is_dataclass(value):
            yield from iter_settings(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value, rule_for(field)
