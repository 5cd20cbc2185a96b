"""Create a source from the arguments of a command line. Each source's module is imported only when it is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from hsadml_dist.errors import UsageError, did_you_mean
from hsadml_dist.shards.source import ImageSource

PLANNED = ("nifti", "dicom")
SOURCES: Mapping[str, tuple[str, ...]] = {
    "table": ("columns", "images", "where"),
    "figshare": ("persons", "author_folds"),
    "folders": ("author_folds",),
    "phantom": (),
}
"""Source name -> names of its options."""


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Options that only some sources have; a field's name is the option's, with underscores for dashes.

    Attributes:
        columns: Role -> column name of a table.
        images: Folder of a table's relative files.
        where: Column name -> value that a table's row must have.
        persons: CSV with the patient of each file or exam.
        author_folds: Use the folds of the data set's publisher.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    images: Path | None = None
    where: Mapping[str, str] = field(default_factory=dict)
    persons: Path | None = None
    author_folds: bool = False


def create_source(name: str, given: str, options: SourceOptions, *, seed: int, size: int) -> ImageSource:
    """Return the source ``name`` of the input ``given``: a file, a folder or a number.

    Generated patients depend on ``seed``; ``size`` is the side of their images in pixels.

    Raises:
        UsageError: An unknown source, an input that does not fit it, or an option of another source.
    """
    if name not in SOURCES:
        hint = f" ({name!r} is not supported yet)" if name in PLANNED else did_you_mean(name, SOURCES)
        raise UsageError(f"SOURCE {name!r}: unknown source; allowed: {', '.join(SOURCES)}{hint}")
    for option in fields(options):
        if getattr(options, option.name) and option.name not in SOURCES[name]:
            others = " or ".join(other for other, supported in SOURCES.items() if option.name in supported)
            raise UsageError(f"--{option.name.replace('_', '-')}: not an option of SOURCE {name}; only for {others}")
    return _load_source(name, given, options, seed, size)


def _load_source(name: str, given: str, options: SourceOptions, seed: int, size: int) -> ImageSource:
    if name == "table":
        from hsadml_dist.shards.sources.table import TableSource

        return TableSource(table=Path(given), images=options.images, columns=options.columns, where=options.where)
    if name == "figshare":
        from hsadml_dist.shards.sources.figshare import FigshareSource

        return FigshareSource(folder=Path(given), persons=options.persons, author_folds=options.author_folds)
    if name == "folders":
        from hsadml_dist.shards.sources.folders import FoldersSource

        return FoldersSource(folder=Path(given), author_folds=options.author_folds)
    from hsadml_dist.shards.sources.phantom.phantom_source import PhantomSource, require_nilearn

    if not (given.isascii() and given.isdigit()):
        raise UsageError(f"INPUT {given!r}: not a number; SOURCE phantom takes a number of patients, 1 or more")
    require_nilearn()
    return PhantomSource(patients=int(given), seed=seed, size=size)
