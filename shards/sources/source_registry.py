"""From the words of a command line to a source; each source's module is imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from hsadml_dist.errors import UsageError, did_you_mean
from hsadml_dist.shards.source import ImageSource

LATER = ("nifti", "dicom")


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What only some sources know; a field's name is the option's, with dashes.

    Attributes:
        columns: Role to column name of a table.
        images: Folder of a table's relative files.
        where: Column name to the value that a table's row must have.
        persons: CSV that says whose each file is.
        author_folds: Obey the folds of the data set's publisher.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    images: Path | None = None
    where: Mapping[str, str] = field(default_factory=dict)
    persons: Path | None = None
    author_folds: bool = False


def create_source(name: str, given: str, options: SourceOptions, *, seed: int, size: int) -> ImageSource:
    """Return the source that the command line names.

    Args:
        name: One of :data:`SOURCES`.
        given: Its input: a file, a folder or a number.
        options: What was said beside it.
        seed: What generated patients are drawn from.
        size: Side of generated images in pixels.

    Raises:
        UsageError: No such source, an input that does not fit it, or an option of another source.
    """
    if name not in SOURCES:
        later = f" ({name!r} is not built in yet)" if name in LATER else did_you_mean(name, SOURCES)
        raise UsageError(f"SOURCE {name!r}: allowed: {', '.join(SOURCES)}{later}")
    make, known = SOURCES[name]
    for one in fields(options):
        if getattr(options, one.name) and one.name not in known:
            takers = " or ".join(other for other, (_, own) in SOURCES.items() if one.name in own)
            raise UsageError(f"--{one.name.replace('_', '-')}: only for SOURCE {takers}; this is {name}")
    return make(given, options, seed, size)


def _table(given: str, options: SourceOptions, seed: int, size: int) -> ImageSource:
    from hsadml_dist.shards.sources.table import TableSource

    return TableSource(table=Path(given), images=options.images, columns=options.columns, where=options.where)


def _figshare(given: str, options: SourceOptions, seed: int, size: int) -> ImageSource:
    from hsadml_dist.shards.sources.figshare import FigshareSource

    return FigshareSource(folder=Path(given), persons=options.persons, author_folds=options.author_folds)


def _folders(given: str, options: SourceOptions, seed: int, size: int) -> ImageSource:
    from hsadml_dist.shards.sources.folders import FoldersSource

    return FoldersSource(folder=Path(given), author_folds=options.author_folds)


def _phantom(given: str, options: SourceOptions, seed: int, size: int) -> ImageSource:
    from hsadml_dist.shards.sources.phantom.phantom_source import PhantomSource, require_anatomy

    if not (given.isascii() and given.isdigit()):
        raise UsageError(f"INPUT {given!r}: for SOURCE phantom a number of patients, 1 or more")
    require_anatomy()
    return PhantomSource(patients=int(given), seed=seed, size=size)


Maker = Callable[[str, SourceOptions, int, int], ImageSource]

SOURCES: Mapping[str, tuple[Maker, tuple[str, ...]]] = {
    "table": (_table, ("columns", "images", "where")),
    "figshare": (_figshare, ("persons", "author_folds")),
    "folders": (_folders, ("author_folds",)),
    "phantom": (_phantom, ()),
}
"""Source to what makes it and the options that it knows."""
