"""``hsadml shards``: convert images into shards, verify shards, count their contents."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from hsadml_dist.errors import ExitCode, UsageError
from hsadml_dist.launch.cli.terminal import AsJson, echo, echo_json, progress
from hsadml_dist.printable import printable

if TYPE_CHECKING:
    from hsadml_dist.shards.build import BuildReport
    from hsadml_dist.shards.summary import DatasetSummary, GroupCount

MAX_PRINTED = 20
"""Skipped samples that a build prints; the dataset card lists all."""

app = App(name="shards", help="Convert images to shards for training; verify and list them.")


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
    keep_copies_together: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Convert images into shards, in folds that share no patient.

    The folder is complete or does not exist. An interrupted build resumes when you repeat the command. The same input,
    seed and id key give the same bytes for any number of workers.

    8-bit images keep their values (v * 257), others are scaled image by image to 16 bits. Images are padded to a square
    and resampled to --size. Images that cannot be read are skipped and reported.

    Args:
        source: table (a CSV with one row per image), figshare (Cheng's brain tumor dataset, 1512427), folders (one
            folder per class, as in the Kaggle datasets of Nickparvar and Sartaj) or phantom (generated patients).
        input_: The CSV, the folder, or the number of patients.
        out: The folder to create. It must not exist, or be empty.
        split_by: Unit that no two folds share: person, exam or slice. By default the largest that the source names.
            With slice, results are optimistic, because patients are in training and test.
        folds: Number of folds; ignored if the table has a fold column.
        seed: Seed for folds, order and generated patients.
        samples_per_shard: Maximum number of images in a tar file.
        size: Width and height of the stored images in pixels.
        workers: Processes that read and encode images; by default one per core.
        id_key: File with the secret key that pseudonymises patients and exams. By default id.key in hsadml's
            configuration folder, created on first use. Keep it: only this key links pseudonyms to patients.
        columns: For table: names of the columns if they are not file, class, person, exam, plane, fold and mask, for
            instance file=index,class=tumour.
        images: For table: folder of relative file names; by default the table's folder.
        where: For table: COLUMN=VALUE, use only rows with this value. May be repeated.
        persons: For figshare: a CSV with the columns person and index (number of the .mat file) or exam (PID).
        author_folds: For figshare and folders: use the publisher's folds: figshare's cvind.mat, which is disjoint by
            exam only, or Testing (fold 0) and Training (fold 1) of a Kaggle dataset.
        keep_copies_together: Keep identical images in one fold, with the patients or exams that have them. Reads every
            image twice.
    """
    from hsadml_dist.shards import build as builder
    from hsadml_dist.shards.pseudonyms import default_key_path, load_or_create_key
    from hsadml_dist.shards.sources.source_registry import SourceOptions, create_source

    options = builder.BuildOptions(
        split_by=split_by,
        folds=folds,
        seed=seed,
        samples_per_shard=samples_per_shard,
        size=size,
        keep_copies_together=keep_copies_together,
    )
    source_options = SourceOptions(
        columns=pairs(columns.split(","), "--columns"),
        images=images,
        where=pairs(where, "--where"),
        persons=persons,
        author_folds=author_folds,
    )
    images_source = create_source(source, input_, source_options, seed=seed, size=size)
    path = id_key or default_key_path()
    new_key = not path.exists()
    count = len(os.sched_getaffinity(0)) if workers is None else workers
    start = time.monotonic()
    with progress("slices") as show:
        report = builder.build_shards(images_source, out, options, load_or_create_key(path), count, show)
    if new_key:
        echo(f"made a new id key: {path} (keep it: only this key links pseudonyms to patients)")
    _print_report(report, out, time.monotonic() - start)


@app.command
def verify(folder: Annotated[Path, Parameter(name="DIR")], /) -> None:
    """Read every byte of a folder of shards, compare it with the index and list all faults; exit code 1 if any.

    Args:
        folder: The folder of shards.
    """
    from hsadml_dist.shards.verify import verify_shards

    with progress("shards") as show:
        faults = verify_shards(folder, show)
    for fault in faults:
        echo(str(fault))
    if faults:
        echo(f"{folder}: {len(faults)} fault{'s' * (len(faults) > 1)}")
        raise SystemExit(int(ExitCode.USER_ERROR))
    echo(f"{folder}: all bytes are as written")


@app.command
def info(folder: Annotated[Path, Parameter(name="DIR")], /, *, as_json: AsJson = False) -> None:
    """Count the slices and patients of a folder of shards by class and fold.

    Args:
        folder: The folder of shards.
        as_json: Print JSON instead of tables.
    """
    from hsadml_dist.data.index import load_index
    from hsadml_dist.shards.card import RAW_PIXEL_KNN_KEY, load_raw_pixel_knn, remarks
    from hsadml_dist.shards.summary import summarise

    summary, baseline = summarise(load_index(folder)), load_raw_pixel_knn(folder)
    if as_json:
        echo_json({**asdict(summary), RAW_PIXEL_KNN_KEY: baseline}, indent=2)
    else:
        _show_tables(summary)
        for remark in remarks(summary):
            echo(f"note: {remark}")
        echo(_format_baseline(baseline["accuracy"]))


def pairs(items: Sequence[str], setting: str) -> dict[str, str]:
    """Parse ``name=value`` items.

    Raises:
        UsageError: An item has no ``=`` or no name, or a name is given twice.
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


def _print_report(report: BuildReport, out: Path, seconds: float) -> None:
    from hsadml_dist.shards.card import remarks
    from hsadml_dist.shards.summary import summarise

    index = report.index
    written = len(index) - report.reused
    echo(f"{out}: {len(index)} slices in {len(index.shards)} shards, digest {index.digest[:16]}")
    echo(f"{written} slices written in {seconds:.1f} s ({written / max(seconds, 1e-9):.0f} per second)")
    if report.reused:
        echo(f"{report.reused} slices reused from an interrupted build")
    for skip in index.skipped[:MAX_PRINTED]:
        echo(f"skipped: {skip.where}: {skip.reason}")
    for places in report.mixed_class_patients[:MAX_PRINTED]:
        echo(f"one patient in two classes: {places}")
    for places in report.label_conflicts[:MAX_PRINTED]:
        echo(f"one image in two classes: {places}")
    for hint in report.name_hints:
        echo(f"hint: {hint}")
    for remark in (*_conversion_remarks(report), *remarks(summarise(index))):
        echo(f"note: {remark}")
    echo(_format_baseline(report.leakage.accuracy))
    echo(f"dataset card: {out / 'card.html'}")


def _conversion_remarks(report: BuildReport) -> list[str]:
    count = report.lossy_masks
    if not count:
        return []
    return [
        f"{count} mask{'s' * (count > 1)} in JPEG, which blurs edges: inside is what has at least half of the mask's "
        "maximum. PNG masks are exact."
    ]


def _format_baseline(accuracy: Mapping[str, float]) -> str:
    figures = ", ".join(f"{value:.3f} in folds by {unit}" for unit, value in accuracy.items())
    return f"accuracy of nearest neighbours on raw pixels (control): {figures}"


def _show_tables(summary: DatasetSummary) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for title, groups in (("class", summary.classes), ("fold", summary.folds)):
        names = list(summary.classes) if title == "fold" else []
        # As texts, because in a string rich reads what is in brackets as a style.
        table = Table(title, "slices", "patients", "exams")
        for name in names:
            table.add_column(Text(printable(name)))
        for name, count in [*groups.items(), ("all", summary.total)]:
            table.add_row(Text(printable(name)), *_cells(count, names))
        console.print(table)
    about = (
        f"split by {summary.unit}; {summary.size} x {summary.size} pixels; {summary.shards} shards, "
        f"{summary.megabytes:.1f} MB; digest {summary.digest[:16]}"
    )
    console.print(Text(printable(about)))


def _cells(count: GroupCount, names: Sequence[str]) -> list[str]:
    known = ["unknown" if number is None else str(number) for number in (count.persons, count.exams)]
    return [str(count.samples), *known, *(str(count.by_class[name]) for name in names)]
