"""No file written by a build, a training or an evaluation contains an identifier of the input."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from tests.distributed.training_runs import hsadml

CLASSES = ("glioma", "meningioma", "pituitary")
PERSONS = 12
SLICES = 3


def test_no_written_file_contains_identifiers(tmp_path: Path) -> None:
    table = write_table(tmp_path / "SECRET-hospital")
    out = tmp_path / "out"
    hsadml(
        "shards",
        "build",
        "table",
        table,
        "--out",
        out / "shards",
        "--size",
        "48",
        "--id-key",
        tmp_path / "id.key",
        "--folds",
        "3",
    )
    hsadml(
        "train",
        "demo",
        f"data.shards={out / 'shards'}",
        "data.image_size=32",
        "model.name=resnet_gn_tiny",
        "train.steps=2",
        "run.ledger=true",
        "--run",
        out / "run",
    )
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {"report.html", "result.json", "ledger.jsonl", "rank-0000.log"} <= {path.name for path in files}
    for path in files:
        assert "SECRET" not in path.name
        assert b"SECRET" not in path.read_bytes(), path


def write_table(folder: Path) -> Path:
    """Write JPEGs and a CSV whose names and identifiers can be recognised."""
    folder.mkdir()
    rows = [["file", "class", "person", "exam"]]
    for person in range(PERSONS):
        for number in range(SLICES):
            name = f"SECRET-file-{person}-{number}.jpg"
            pixels = np.random.default_rng([person, number]).integers(0, 256, (48, 48), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name)
            rows.append([name, CLASSES[person % 3], f"SECRET-person-{person}", f"SECRET-exam-{person}"])
    path = folder / "SECRET-list.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path
