"""``hsadml shards``: build, verify, info."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from hsadml_dist.errors import ExitCode, UsageError
from hsadml_dist.launch.cli.terminal import progress

if TYPE_CHECKING:
    from hsadml_dist.shards.build import BuildReport
    from hsadml_dist.shards.summary import DatasetSummary, GroupCount

MOST_SKIPS = 20
"""Samples left out that a build names on the screen; the card has all."""

app = App(name="shards", help="Turn images into shards that training reads; check and list them.")

AsJson = Annotated[bool, Parameter(name="--json", negative="")]


@app.command
def build(
    source: str,
    input_: Annotated[str, Parameter(name="INPUT")],
    /,
    *,
    out: Path,
    split_by: str | None = None,
    folds: int = 5,
    seed: int = 0,
    samples_per_shard: int = 256,
    size: int = 256,
    workers: int | None = None,
    id_key: Path | None = None,
    columns: str = "",
    images: Path | None = None,
    where: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    persons: Path | None = None,
    author_folds: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write images into shards, in folds that share no person.

    The folder appears whole or not at all; a build that was killed goes on where it stopped. The same input, seed and
    id key give the same bytes, however many workers.

    8-bit images keep their values (v * 257); others are stretched, image by image, to 16 bits. Images are padded to a
    square and resampled to --size. An image that cannot be read is left out, named and counted.

    Args:
        source: table (a CSV with one row an image), figshare (Cheng's brain tumor dataset, 1512427), folders (a folder
            a class, as in the Kaggle sets of Nickparvar and of Sartaj) or phantom (generated patients).
        input_: The CSV; the folder; or the number of patients.
        out: The folder to make. It must not exist or be empty.
        split_by: What no two folds share: person, exam or slice. By default the largest that the source names. By
            slice, results are flattered: one person is on both sides.
        folds: Number of folds. A fold column in the table goes before it.
        seed: What folds, order and generated patients are drawn from.
        samples_per_shard: Most images in one tar.
        size: Side of the stored images in pixels.
        workers: Processes that read and encode images; by default one for each core.
        id_key: File with the key under which persons and exams are hashed. By default id.key in hsadml's folder of the
            user's configuration; made on first use. Keep it: it alone says who is who.
        columns: Other names of the table's columns file, class, person, exam, plane, fold, mask, for instance
            file=index,class=tumour.
        images: Folder of the table's relative files; by default the table's own.
        where: COLUMN=VALUE: take only the table's rows with this value. May be given more than once.
        persons: For figshare: a CSV with the columns person and index (the number of the .mat file) or exam (its PID).
        author_folds: Obey the publisher's folds: figshare's cvind.mat, which is disjoint by exam only, or a Kaggle
            set's Testing (fold 0) and Training (fold 1).
    """
    from hsadml_dist.shards import build as builder
    from hsadml_dist.shards.pseudonyms import default_key_path, load_or_create_key
    from hsadml_dist.shards.sources.source_registry import SourceOptions, create_source

    options = builder.BuildOptions(
        split_by=split_by, folds=folds, seed=seed, samples_per_shard=samples_per_shard, size=size
    )
    own = SourceOptions(
        columns=pairs(columns.split(","), "--columns"),
        images=images,
        where=pairs(where, "--where"),
        persons=persons,
        author_folds=author_folds,
    )
    chosen = create_source(source, input_, own, seed=seed, size=size)
    path = id_key or default_key_path()
    new_key = not path.exists()
    count = _cores() if workers is None else workers
    started = time.monotonic()
    with progress("slices") as show:
        report = builder.build_shards(chosen, out, options, load_or_create_key(path), count, show)
    if new_key:
        print(f"made a new id key: {path} (keep it; it alone says who is who)")
    _tell(report, out, time.monotonic() - started)


@app.command
def verify(folder: Annotated[Path, Parameter(name="DIR")], /) -> None:
    """Read every byte of a folder of shards and compare it with the index. Tells all faults; exit code 1 if any.

    Args:
        folder: The folder of shards.
    """
    from hsadml_dist.shards.verify import verify_shards as find_faults

    with progress("shards") as show:
        faults = find_faults(folder, show)
    for fault in faults:
        print(fault)
    if faults:
        print(f"{folder}: {len(faults)} fault{'s' * (len(faults) > 1)}")
        raise SystemExit(int(ExitCode.USER_ERROR))
    print(f"{folder}: all bytes are as written")


@app.command
def info(folder: Annotated[Path, Parameter(name="DIR")], /, *, as_json: AsJson = False) -> None:
    """Count a folder's slices and persons by class and fold.

    Args:
        folder: The folder of shards.
        as_json: Print JSON instead of tables.
    """
    from hsadml_dist.data.index import load_index
    from hsadml_dist.shards.card import RAW_PIXEL_KNN_KEY, load_raw_pixel_knn, remarks
    from hsadml_dist.shards.summary import summarise

    summary, control = summarise(load_index(folder)), load_raw_pixel_knn(folder)
    if as_json:
        print(json.dumps({**asdict(summary), RAW_PIXEL_KNN_KEY: control}, indent=2))
    else:
        _show_tables(summary)
        for remark in remarks(summary):
            print(f"note: {remark}")
        print(_control_line(control["accuracy"]))


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


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _tell(report: BuildReport, out: Path, seconds: float) -> None:
    from hsadml_dist.shards.card import remarks
    from hsadml_dist.shards.summary import summarise

    index = report.index
    fresh = len(index) - report.reused
    print(f"{out}: {len(index)} slices in {len(index.shards)} shards, digest {index.digest[:16]}")
    print(f"{fresh} slices written in {seconds:.1f} s ({fresh / max(seconds, 1e-9):.0f} a second)")
    if report.reused:
        print(f"{report.reused} slices taken over from a build that was stopped")
    for skip in index.skipped[:MOST_SKIPS]:
        print(f"left out: {skip.where}: {skip.reason}")
    for places in report.mixed_class_patients[:MOST_SKIPS]:
        print(f"one person in two classes: {places}")
    for remark in remarks(summarise(index)):
        print(f"note: {remark}")
    print(_control_line(report.leakage.accuracy))
    print(f"dataset card: {out / 'card.html'}")


def _control_line(accuracy: Mapping[str, float]) -> str:
    figures = ", ".join(f"{value:.3f} in folds by {unit}" for unit, value in accuracy.items())
    return f"raw pixels, nearest neighbour, nothing learnt: {figures}"


def _show_tables(summary: DatasetSummary) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for title, groups in (("class", summary.classes), ("fold", summary.folds)):
        names = list(summary.classes) if title == "fold" else []
        table = Table(title, "slices", "persons", "exams", *names)
        for name, count in [*groups.items(), ("all", summary.total)]:
            table.add_row(str(name), *_cells(count, names))
        console.print(table)
    console.print(
        f"split by {summary.unit}; {summary.size} x {summary.size} pixels; {summary.shards} shards, "
        f"{summary.megabytes:.1f} MB; digest {summary.digest[:16]}",
        highlight=False,
    )


def _cells(count: GroupCount, names: Sequence[str]) -> list[str]:
    known = ["unknown" if number is None else str(number) for number in (count.persons, count.exams)]
    return [str(count.samples), *known, *(str(count.by_class[name]) for name in names)]
