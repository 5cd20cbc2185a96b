"""Find names of classes, patients and exams that differ only in spelling: two spellings of one name are two names."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from hsadml_dist.shards.source import SourceRecord

MAX_HINTS = 20
DIFFERENCE = "differ only in case, leading zeros, spaces or Unicode form"


def spelling_key(name: str) -> str:
    """Return a text that names share if they differ only in spelling: ``Glioma``, ``glioma``; ``007``, ``7``."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"[\s_-]+", " ", folded).strip())


def similar_names(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Return the groups of two or more different names that differ only in spelling, sorted."""
    groups: defaultdict[str, set[str]] = defaultdict(set)
    for name in names:
        groups[spelling_key(name)].add(name)
    return sorted(tuple(sorted(group)) for group in groups.values() if len(group) > 1)


def class_name_hints(classes: Iterable[str]) -> Iterator[str]:
    """Yield a hint for each group of classes that differ only in spelling."""
    for group in similar_names(classes):
        named = ", ".join(repr(name) for name in group)
        yield f"Classes {named} {DIFFERENCE}; if they are one class, give it one name."


def identifier_hints(records: Sequence[SourceRecord]) -> tuple[str, ...]:
    """Return at most :data:`MAX_HINTS` hints on patients and exams that differ only in spelling.

    A hint names the first sample of each, because names of patients and exams are identifiers.
    """
    persons: dict[str, str] = {}
    exams: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for record in records:
        if record.person is not None:
            persons.setdefault(record.person, record.where)
        if record.exam is not None:
            exams[record.person or ""].setdefault(record.exam, record.where)
    found = [*_unit_hints("patients", persons), *(hint for own in exams.values() for hint in _unit_hints("exams", own))]
    return tuple(found[:MAX_HINTS])


def _unit_hints(units: str, first: dict[str, str]) -> Iterator[str]:
    for group in similar_names(first):
        places = " and ".join([where for name, where in first.items() if name in group][:2])
        yield f"the {units} of {places} have names that {DIFFERENCE}; if they are one, give all samples the same name"
