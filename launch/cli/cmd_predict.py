"""``hsadml predict``: classify image files, with the nearest training cases and warnings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from hsadml_dist.atomic import write_text
from hsadml_dist.csv_text import csv_text
from hsadml_dist.errors import DataError, ExitCode, UsageError
from hsadml_dist.jobs.prepare import require_run_folder
from hsadml_dist.launch.cli.terminal import AsJson, echo, echo_json, progress
from hsadml_dist.printable import printable

if TYPE_CHECKING:
    from hsadml_dist.evaluation.model_loading import Inference
    from hsadml_dist.evaluation.predict import Gallery, ImagePrediction
    from hsadml_dist.launch.input_images import InputImage

RESEARCH_ONLY = "Research use only; not a medical device: no result may guide the care of a patient."
NEAREST = (1, 2, 3)
COLUMNS = (
    "path",
    "class",
    "probability",
    *(f"nearest_{place}_{part}" for place in NEAREST for part in ("key", "class", "cosine")),
    "warning",
    "error",
)
MAX_NAMED_FILES = 3

HELP = f"""{RESEARCH_ONLY}

JPEG, PNG and TIFF with 8 or 16 bits are read, and scaled as in the shards. The class is that of the nearest class
centre; the probability is not calibrated. "Far from all training cases" means farther than 99.5 % of the training
cases are from those of other patients, by embedding or by thumbnail. Files that cannot be read are reported, the others
are classified, and the exit code is 1."""

app = App(name="predict", help_epilogue=HELP, usage="Usage: hsadml predict RUN PATH ... [OPTIONS]")


@dataclass(frozen=True, kw_only=True)
class PredictionRow:
    """The prediction for one file, or why there is none.

    Attributes:
        path: Path as given by the user; for a file in a folder, below that folder.
        prediction: The prediction; None if the file could not be read.
        warnings: Remarks to consider before using the class.
        error: Why the file could not be read.
    """

    path: str
    prediction: ImagePrediction | None = None
    warnings: tuple[str, ...] = ()
    error: str = ""


@app.default
def predict(
    run: Path,
    /,
    *paths: Annotated[Path, Parameter(name="PATH", required=True)],
    csv_file: Annotated[Path | None, Parameter(name="--csv")] = None,
    shards: str | None = None,
    as_json: AsJson = False,
) -> int:
    """Classify images: class, probability, nearest training cases, and whether the image is far from all of them.

    Args:
        run: The run folder. On first use the training cases are embedded and stored there, in reference.npz.
        paths: Image files, and folders that are searched for images.
        csv_file: Write the predictions to this CSV file, one row per file, instead of printing them.
        shards: The run's shards, if they were moved after training.
        as_json: Print JSON instead of lines.
    """
    if csv_file is not None and not csv_file.absolute().parent.is_dir():
        raise UsageError(f"--csv {csv_file}: the folder {csv_file.parent} does not exist")
    folder = require_run_folder(run)
    from hsadml_dist.launch.input_images import list_input_files

    inputs = list_input_files(paths)
    from hsadml_dist.evaluation.model_loading import open_inference
    from hsadml_dist.evaluation.predict import load_gallery

    _log(RESEARCH_ONLY)
    _log_skipped(inputs.skipped)
    inference = open_inference(folder)
    with progress("slices") as show:
        gallery = load_gallery(inference, shards, _log, show)
    rows = []
    format_row = _row_formatter(inputs.files, gallery.table.classes)
    for row in predict_files(inference, gallery, inputs.files):
        rows.append(row)
        if csv_file is None and not as_json:
            echo(*format_row(row))
    if csv_file is not None:
        _write_csv(csv_file, rows)
    if as_json:
        echo_json(as_dict(run, gallery, rows), indent=2)
    else:
        echo(_summarize(rows, csv_file))
    return ExitCode.USER_ERROR if any(row.error for row in rows) else ExitCode.SUCCESS


def predict_files(inference: Inference, gallery: Gallery, files: Sequence[Path]) -> Iterator[PredictionRow]:
    """Yield a row for each file, in order. Holds no more images in memory than the run's evaluation batch."""
    from hsadml_dist.evaluation.predict import predict_images
    from hsadml_dist.launch.input_images import read_input_image

    batch = inference.recipe.evaluation.batch
    for start in range(0, len(files), batch):
        rows: list[PredictionRow] = []
        images: dict[int, InputImage] = {}
        for place, path in enumerate(files[start : start + batch]):
            rows.append(PredictionRow(path=path_text(path)))
            try:
                images[place] = read_input_image(path, gallery.size)
            except DataError as error:
                rows[place] = replace(rows[place], error=str(error))
        predictions = predict_images(inference, gallery, [image.pixels for image in images.values()])
        for (place, image), found in zip(images.items(), predictions, strict=True):
            rows[place] = replace(rows[place], prediction=found, warnings=(*found.warnings, *image.notes))
        yield from rows


def as_csv(rows: Sequence[PredictionRow]) -> str:
    """Return the rows as CSV with the header :data:`COLUMNS`."""
    return csv_text(COLUMNS, map(_cells, rows))


def as_dict(run: Path, gallery: Gallery, rows: Sequence[PredictionRow]) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    table = gallery.table
    return {
        "run": path_text(run),
        "checkpoint": table.checkpoint,
        "data_digest": table.data_digest,
        "note": RESEARCH_ONLY,
        "images": [_row_as_dict(row, table.classes) for row in rows],
        "unreadable": sum(bool(row.error) for row in rows),
    }


def path_text(path: Path) -> str:
    """Return a path as UTF-8 text; bytes that are not UTF-8 are escaped."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def _cells(row: PredictionRow) -> list[str]:
    found = row.prediction
    if found is None:
        return [row.path, *[""] * (len(COLUMNS) - 2), row.error]
    nearest = [cell for one in found.neighbours for cell in (one.key, one.class_name, f"{one.cosine:.6f}")]
    nearest += [""] * (3 * len(NEAREST) - len(nearest))
    return [row.path, found.class_name, f"{found.probability:.6f}", *nearest, "; ".join(row.warnings), ""]


def _row_as_dict(row: PredictionRow, classes: Sequence[str]) -> dict[str, Any]:
    found = row.prediction
    if found is None:
        return {"path": row.path, "error": row.error}
    return {
        "path": row.path,
        "class": found.class_name,
        "probability": found.probability,
        "probabilities": dict(zip(classes, found.probabilities, strict=True)),
        "nearest": [{"key": one.key, "class": one.class_name, "cosine": one.cosine} for one in found.neighbours],
        "far_by": list(found.far_by),
        "is_training_case": found.is_training_case,
        "warnings": list(row.warnings),
    }


def _row_formatter(files: Sequence[Path], classes: Sequence[str]) -> Callable[[PredictionRow], list[str]]:
    """Return a function that formats a row as lines with columns as wide as their widest cell."""
    path_width = max(len(printable(path)) for path in files)
    class_width = max(len(printable(name)) for name in classes)

    def format_row(row: PredictionRow) -> list[str]:
        found, path = row.prediction, f"{printable(row.path):<{path_width}}"
        if found is None:
            return [f"{path}  not classified: {row.error}"]
        nearest = "  ".join(
            f"{printable(one.class_name):<{class_width}} {one.cosine:6.3f} {one.key[:8]}" for one in found.neighbours
        )
        predicted = f"{printable(found.class_name):<{class_width}} {found.probability:7.1%}"
        return [f"{path}  {predicted}  nearest: {nearest}", *(f"    warning: {warning}" for warning in row.warnings)]

    return format_row


def _summarize(rows: Sequence[PredictionRow], csv_file: Path | None) -> str:
    unread = sum(bool(row.error) for row in rows)
    far = sum(row.prediction is not None and bool(row.prediction.far_by) for row in rows)
    where = "" if csv_file is None else f"{csv_file}: "
    classified = f"{len(rows) - unread} classified, {far} of them far from all training cases"
    return f"{where}{_count_files(len(rows))}: {classified}; {unread} not read"


def _count_files(count: int) -> str:
    return f"{count} file{'s' * (count != 1)}"


def _write_csv(path: Path, rows: Sequence[PredictionRow]) -> None:
    try:
        write_text(path, as_csv(rows))
    except OSError as error:
        raise DataError(f"--csv {path}: cannot be written: {error.strerror}") from error


def _log_skipped(files: Sequence[Path]) -> None:
    if files:
        names = ", ".join(path_text(path) for path in files[:MAX_NAMED_FILES])
        more = ", ..." if len(files) > MAX_NAMED_FILES else ""
        _log(f"skipped, not images by their names: {_count_files(len(files))} ({names}{more})")


def _log(text: str) -> None:
    echo(text, error=True)
