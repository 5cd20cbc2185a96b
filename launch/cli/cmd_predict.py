"""``hsadml predict``."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from hsadml_dist.errors import DataError, ExitCode, UsageError
from hsadml_dist.jobs.prepare import require_run_folder
from hsadml_dist.launch.cli.terminal import progress
from hsadml_dist.launch.input_images import InputFiles, InputImage, list_input_files, read_input_image
from hsadml_dist.run.folder import replace_text

if TYPE_CHECKING:
    from hsadml_dist.evaluation.model_loading import Inference
    from hsadml_dist.evaluation.predict import Gallery, ImagePrediction

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
KEY_DIGITS = 8
MOST_NAMED = 3


HELP = f"""{RESEARCH_ONLY}

JPEG, PNG and TIFF of 8 or 16 bits are read, and scaled as in a build of shards. The class is that of the nearest class
centre; the probability is not calibrated. "Far from all training cases" means: farther than 99.5 % of the training
cases are from those of other persons, by embedding or by plain looks. A file that cannot be read is told, the others
are answered, and the exit code is 1."""

app = App(name="predict", help_epilogue=HELP, usage="Usage: hsadml predict RUN PATH ... [OPTIONS]")


@dataclass(frozen=True, kw_only=True)
class PredictionRow:
    """What is said of one file: an answer, or why there is none.

    Attributes:
        path: As the user gave it; below a folder, with the folder's.
        answer: See :class:`~hsadml_dist.evaluation.predict.ImagePrediction`.
        warnings: What a reader should know before the class.
        error: Why the file could not be read.
    """

    path: str
    answer: ImagePrediction | None = None
    warnings: tuple[str, ...] = ()
    error: str = ""


@app.default
def predict(
    run: Path,
    /,
    *paths: Annotated[Path, Parameter(name="PATH")],
    csv_file: Annotated[Path | None, Parameter(name="--csv")] = None,
    shards: str | None = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Tell what a run makes of images: class, probability, nearest training cases, and whether they are far from all.

    Args:
        run: The run folder. On first use the training cases are embedded and kept there, in reference.npz.
        paths: Image files, and folders of them with all that lies below.
        csv_file: Write the answers to this CSV file, one row a file, instead of showing them.
        shards: The run's shards, where they are not where they were in training.
        as_json: Print JSON instead of lines.
    """
    if not paths:
        raise UsageError("predict: name at least one image file or folder after the run folder")
    if csv_file is not None and not csv_file.absolute().parent.is_dir():
        raise UsageError(f"--csv {csv_file}: the folder {csv_file.parent} does not exist")
    folder, listed = require_run_folder(run), list_input_files(paths)
    from hsadml_dist.evaluation.model_loading import open_inference
    from hsadml_dist.evaluation.predict import load_gallery

    _tell(RESEARCH_ONLY)
    _tell_left_out(listed)
    inference = open_inference(folder)
    with progress("slices") as show:
        references = load_gallery(inference, shards, _tell, show)
    rows = []
    line = _liner(listed.files, references.table.classes)
    for row in answered(inference, references, listed.files):
        rows.append(row)
        if csv_file is None and not as_json:
            print(line(row))
    if csv_file is not None:
        _write(csv_file, as_csv(rows))
    print(json.dumps(as_dict(run, references, rows), indent=2) if as_json else _summary(rows, csv_file))
    if any(row.error for row in rows):
        raise SystemExit(int(ExitCode.USER_ERROR))


def answered(inference: Inference, references: Gallery, files: Sequence[Path]) -> Iterator[PredictionRow]:
    """Yield a row for each file, in order; as many images are held at a time as the run embeds at a time."""
    from hsadml_dist.evaluation.predict import predict_images

    batch = inference.recipe.evaluation.batch
    for start in range(0, len(files), batch):
        read = [(path, _read(path, references.size)) for path in files[start : start + batch]]
        found = iter(
            predict_images(inference, references, [one.pixels for _, one in read if isinstance(one, InputImage)])
        )
        for path, one in read:
            if isinstance(one, InputImage):
                answer = next(found)
                yield PredictionRow(path=printable(path), answer=answer, warnings=(*answer.warnings, *one.notes))
            else:
                yield PredictionRow(path=printable(path), error=one)


def as_csv(rows: Sequence[PredictionRow]) -> str:
    """Return the CSV's text: :data:`COLUMNS`, then a row a file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(map(_cells, rows))
    return text.getvalue()


def as_dict(run: Path, references: Gallery, rows: Sequence[PredictionRow]) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    table = references.table
    return {
        "run": printable(run),
        "checkpoint": table.checkpoint,
        "data_digest": table.data_digest,
        "note": RESEARCH_ONLY,
        "images": [_as_dict(row, table.classes) for row in rows],
        "unreadable": sum(bool(row.error) for row in rows),
    }


def printable(path: Path) -> str:
    """Return a path as UTF-8 can hold it; bytes that are none are written as escapes."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def _read(path: Path, size: int) -> InputImage | str:
    try:
        return read_input_image(path, size)
    except DataError as error:
        return str(error)


def _cells(row: PredictionRow) -> list[str]:
    answer = row.answer
    if answer is None:
        return [row.path, *[""] * (len(COLUMNS) - 2), row.error]
    near = [cell for one in answer.neighbours for cell in (one.key, one.class_name, f"{one.cosine:.6f}")]
    near += [""] * (3 * len(NEAREST) - len(near))
    return [row.path, answer.class_name, f"{answer.probability:.6f}", *near, "; ".join(row.warnings), ""]


def _as_dict(row: PredictionRow, classes: Sequence[str]) -> dict[str, Any]:
    if row.answer is None:
        return {"path": row.path, "error": row.error}
    answer = row.answer
    return {
        "path": row.path,
        "class": answer.class_name,
        "probability": answer.probability,
        "probabilities": dict(zip(classes, answer.probabilities, strict=True)),
        "nearest": [{"key": one.key, "class": one.class_name, "cosine": one.cosine} for one in answer.neighbours],
        "far_by": list(answer.far_by),
        "is_training_case": answer.is_training_case,
        "warnings": list(row.warnings),
    }


def _liner(files: Sequence[Path], classes: Sequence[str]) -> Callable[[PredictionRow], str]:
    """Return what makes a line of a row, in columns as wide as their widest entry."""
    path_width = max(len(printable(path)) for path in files)
    class_width = max(map(len, classes))

    def line(row: PredictionRow) -> str:
        if row.answer is None:
            return f"{row.path:<{path_width}}  not answered: {row.error}"
        near = "  ".join(
            f"{one.class_name:<{class_width}} {one.cosine:6.3f} {one.key[:KEY_DIGITS]}" for one in row.answer.neighbours
        )
        said = f"{row.answer.class_name:<{class_width}} {row.answer.probability:7.1%}"
        text = f"{row.path:<{path_width}}  {said}  nearest: {near}"
        return "\n".join([text, *(f"    warning: {warning}" for warning in row.warnings)])

    return line


def _summary(rows: Sequence[PredictionRow], csv_file: Path | None) -> str:
    bad = sum(bool(row.error) for row in rows)
    far = sum(row.answer is not None and bool(row.answer.far_by) for row in rows)
    text = f"{_files(len(rows))}: {len(rows) - bad} answered, {far} of them far from all training cases; {bad} not read"
    return text if csv_file is None else f"{csv_file}: {text}"


def _files(count: int) -> str:
    return f"{count} file{'s' * (count != 1)}"


def _write(path: Path, text: str) -> None:
    try:
        replace_text(path, text)
    except OSError as error:
        raise DataError(f"--csv {path}: cannot be written: {error.strerror}") from error


def _tell_left_out(listed: InputFiles) -> None:
    if listed.left_out:
        names = ", ".join(printable(path) for path in listed.left_out[:MOST_NAMED])
        more = ", ..." if len(listed.left_out) > MOST_NAMED else ""
        _tell(f"left out, no images by their names: {_files(len(listed.left_out))} ({names}{more})")


def _tell(text: str) -> None:
    print(text, file=sys.stderr)
