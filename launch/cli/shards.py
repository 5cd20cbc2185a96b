"""``hsadml shards``: build, verify, info."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from hsadml_dist.errors import ExitCode, UsageError, nearest

if TYPE_CHECKING:
    from hsadml_dist.shards.build import BuildOptions, BuildReport
    from hsadml_dist.shards.record import Source
    from hsadml_dist.shards.summary import GroupCount, Summary

SOURCES = ("table", "phantom")
PLANNED = ("figshare", "folders", "nifti", "dicom")
LINE_SECONDS = 30.0

app = App(name="shards", help="Turn images into shards that training reads; check and list them.")

AsJson = Annotated[bool, Parameter(name="--json", negative="")]


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """The options that only a table knows: role to column, folder of the images, column to value."""

    columns: Mapping[str, str]
    images: Path | None
    where: Mapping[str, str]


@app.command
def build(
    source: str,
    input_: Annotated[str, Parameter(name="INPUT")],
    /,
    *,
    out: Path,
    split_by: str = "person",
    folds: int = 5,
    seed: int = 0,
    samples_per_shard: int = 256,
    size: int = 256,
    workers: int | None = None,
    id_key: Path | None = None,
    columns: str = "",
    images: Path | None = None,
    where: Annotated[tuple[str, ...], Parameter(negative="")] = (),
) -> None:
    """Write images into shards, in folds that share no person.

    The folder appears whole or not at all; a build that was killed goes on where it stopped. The same input, seed and
    id key give the same bytes, however many workers.

    8-bit images keep their values (v * 257); others are stretched, image by image, to 16 bits. Images are padded to a
    square and resampled to --size.

    Args:
        source: table (a CSV with one row an image) or phantom (generated patients).
        input_: The CSV; or the number of patients.
        out: The folder to make. It must not exist or be empty.
        split_by: What no two folds share: person, exam or slice. By slice, results are flattered: one person is on both
            sides.
        folds: Number of folds. A fold column in the table goes before it.
        seed: What folds, order and generated patients are drawn from.
        samples_per_shard: Most images in one tar.
        size: Side of the stored images in pixels.
        workers: Processes that write at a time; by default one for each core.
        id_key: File with the key under which persons and exams are hashed. By default id.key in hsadml's folder of the
            user's configuration; made on first use. Keep it: it alone says who is who.
        columns: Other names of the table's columns file, class, person, exam, plane, fold, mask, for instance
            file=index,class=tumour.
        images: Folder of the table's relative files; by default the table's own.
        where: COLUMN=VALUE: take only the table's rows with this value. May be given more than once.
    """
    from hsadml_dist.shards import build as builder
    from hsadml_dist.shards.identity import default_key_path, load_key

    options = builder.BuildOptions(
        split_by=split_by, folds=folds, seed=seed, samples_per_shard=samples_per_shard, size=size
    )
    table = TableOptions(columns=pairs(columns.split(","), "--columns"), images=images, where=pairs(where, "--where"))
    chosen = choose_source(source, input_, table, options)
    path = id_key or default_key_path()
    new_key = not path.exists()
    count = _cores() if workers is None else workers
    started = time.monotonic()
    with progress("slices") as show:
        report = builder.build(chosen, out, options, load_key(path), count, show)
    if new_key:
        print(f"made a new id key: {path} (keep it; it alone says who is who)")
    _tell(report, out, time.monotonic() - started)


@app.command
def verify(folder: Annotated[Path, Parameter(name="DIR")], /) -> None:
    """Read every byte of a folder of shards and compare it with the index. Tells all faults; exit code 1 if any.

    Args:
        folder: The folder of shards.
    """
    from hsadml_dist.shards.verify import verify as find_faults

    with progress("shards") as show:
        faults = find_faults(folder, show)
    for fault in faults:
        print(fault)
    if faults:
        print(f"{folder}: {len(faults)} fault{'s' * (len(faults) > 1)}")
        raise SystemExit(int(ExitCode.USER))
    print(f"{folder}: all bytes are as written")


@app.command
def info(folder: Annotated[Path, Parameter(name="DIR")], /, *, as_json: AsJson = False) -> None:
    """Count a folder's slices and persons by class and fold.

    Args:
        folder: The folder of shards.
        as_json: Print JSON instead of tables.
    """
    from hsadml_dist.data.index import load_index
    from hsadml_dist.shards.summary import summarise

    summary = summarise(load_index(folder))
    if as_json:
        print(json.dumps(asdict(summary), indent=2))
    else:
        _show_tables(summary)


def pairs(items: Sequence[str], setting: str) -> dict[str, str]:
    """Read ``name=value`` items.

    Raises:
        UsageError: An item without ``=`` or name, or a name given twice.
    """
    found: dict[str, str] = {}
    for item in filter(None, (item.strip() for item in items)):
        name, equals, value = item.partition("=")
        if not (equals and name):
            raise UsageError(f"{setting} {item!r}: write NAME=VALUE")
        if name in found:
            raise UsageError(f"{setting} {item!r}: {name!r} is given twice")
        found[name] = value
    return found


def choose_source(name: str, given: str, table: TableOptions, options: BuildOptions) -> Source:
    """Return the source that the command line names.

    Raises:
        UsageError: No such source, an input that does not fit it, or an option of another source.
    """
    if name == "table":
        from hsadml_dist.shards.sources.table import TableSource

        return TableSource(table=Path(given), images=table.images, columns=table.columns, where=table.where)
    if name == "phantom":
        from hsadml_dist.shards.sources.phantom import PhantomSource

        for setting, value in (("--columns", table.columns), ("--images", table.images), ("--where", table.where)):
            if value:
                raise UsageError(f"{setting}: only for SOURCE table; this is phantom")
        return PhantomSource(patients=_patients(given), seed=options.seed, size=options.size)
    later = f" ({name!r} is not built in yet)" if name in PLANNED else nearest(name, SOURCES)
    raise UsageError(f"SOURCE {name!r}: allowed: {', '.join(SOURCES)}{later}")


def _patients(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise UsageError(f"INPUT {text!r}: for SOURCE phantom a number of patients, 1 or more")
    return int(text)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


@contextmanager
def progress(unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show how far a command is: a bar on a terminal, else a line every 30 seconds; on standard error."""
    if not sys.stderr.isatty():
        yield _lines(unit)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(unit), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(unit, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(unit: str) -> Callable[[int, int], None]:
    last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_SECONDS:
            last = time.monotonic()
            print(f"{done} of {total} {unit}", file=sys.stderr, flush=True)

    return show


def _tell(report: BuildReport, out: Path, seconds: float) -> None:
    index = report.index
    fresh = len(index) - report.reused
    print(f"{out}: {len(index)} slices in {len(index.shards)} shards, digest {index.digest[:16]}")
    print(f"{fresh} slices written in {seconds:.1f} s ({fresh / max(seconds, 1e-9):.0f} a second)")
    if report.reused:
        print(f"{report.reused} slices taken over from a build that was stopped")
    if report.persons_in_two_classes:
        print(f"note: {report.persons_in_two_classes} persons have slices of more than one class")
    if report.repeated_images:
        print(
            f"note: {report.repeated_images} images are exact copies of another, "
            f"{report.repeats_across_folds} of them in another fold"
        )


def _show_tables(summary: Summary) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for title, groups in (("class", summary.classes), ("fold", summary.folds)):
        names = list(summary.classes) if title == "fold" else []
        table = Table(title, "slices", "persons", *names)
        for name, count in [*groups.items(), ("all", summary.total)]:
            table.add_row(str(name), *_cells(count, names))
        console.print(table)
    console.print(
        f"split by {summary.split_unit}; {summary.size} x {summary.size} pixels; {summary.shards} shards, "
        f"{summary.megabytes:.1f} MB; digest {summary.digest[:16]}",
        highlight=False,
    )


def _cells(count: GroupCount, names: Sequence[str]) -> list[str]:
    persons = "unknown" if count.persons is None else str(count.persons)
    return [str(count.samples), persons, *(str(count.by_class[name]) for name in names)]
