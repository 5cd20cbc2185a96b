"""Write small pictures with a table of them, build shards as a user does, and count trained slices by a slow loop."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from hsadml_dist.data.index import load_index, write_index
from hsadml_dist.data.reader import ShardReader
from hsadml_dist.launch import cli

CLASSES = ("glioma", "meningioma", "pituitary")
PERSONS, SLICES, SIDE = 12, 3, 24
SETTINGS = (
    "model.name=resnet_gn_tiny",
    "model.embedding_dim=8",
    "data.image_size=16",
    "data.transforms=[]",
    "train.steps=1",
    "train.global_batch=6",
    "evaluation.classifiers=false",
    "run.tensorboard=false",
)
"""Settings of a training on them."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Pictures of 12 patients, 3 each, in 3 classes; the picture of a number is the same for the same seed.

    Attributes:
        folder: Folder of the pictures and their table; created by :meth:`build`.
        seed: Seed of the pictures.
        classes: Names of the three classes.
        person: Format of a patient's name.
        named: The table names the patients.
        copies: Number of a picture to the number of another one, whose content it gets.
    """

    folder: Path
    seed: int = 0
    classes: tuple[str, ...] = CLASSES
    person: str = "patient {}"
    named: bool = True
    copies: Mapping[int, int] = field(default_factory=dict)

    def build(self, out: Path, *options: str, id_key: Path) -> Path:
        """Write the pictures and run ``hsadml shards build``; return ``out``.

        The folds depend on the id key, which is made from the name of its file if that is missing.
        """
        if not id_key.exists():
            id_key.write_bytes(hashlib.sha256(id_key.name.encode()).digest())
            id_key.chmod(0o600)
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "list.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["file", "class", *(["person"] if self.named else [])])
            for number in range(PERSONS * SLICES):
                Image.fromarray(self._picture(self.copies.get(number, number))).save(self.folder / f"{number}.png")
                person = number // SLICES
                name = [self.person.format(person)] if self.named else []
                rows.writerow([f"{number}.png", self.classes[person % 3], *name])
        words = ["shards", "build", "table", str(self.folder / "list.csv"), "--out", str(out), "--workers", "1"]
        sides = [] if "--size" in options else ["--size", str(SIDE)]
        assert cli.main([*words, "--id-key", str(id_key), *sides, *options]) == 0
        return out

    def _picture(self, number: int) -> np.ndarray:
        generator = np.random.default_rng([self.seed, number])
        image, label = generator.integers(0, 60, (SIDE, SIDE)), number // SLICES % 3
        image[3 + 6 * label : 8 + 6 * label, 4:20] += 120
        return image.astype(np.uint8)


def replace_in_place(shards: Path, build: Callable[[Path], Path]) -> None:
    """Replace a folder of shards by another build."""
    shutil.rmtree(shards)
    build(shards)


def without_contents(shards: Path) -> Path:
    """Make a folder of shards as one of an older version, without content hashes."""
    index = load_index(shards)
    (shards / "contents.json").unlink()
    write_index(shards, replace(index, files=tuple(file for file in index.files if file.name != "contents.json")))
    return shards


def slow_overlap(trained: Path, trained_fold: int, tested: Path, fold: int) -> tuple[int, int, int, int]:
    """Compare each pixel: return trained slices, all slices, patients with trained slices, all patients of the fold."""
    known = [image for row_fold, _, image in _images(trained) if row_fold != trained_fold]
    queries = [(person, image) for row_fold, person, image in _images(tested) if row_fold == fold]
    seen = [person for person, image in queries if any(np.array_equal(image, other) for other in known)]
    return len(seen), len(queries), len(set(seen)), len({person for person, _ in queries})


def _images(shards: Path) -> list[tuple[int, str | None, np.ndarray]]:
    index = load_index(shards)
    reader = ShardReader(shards, index)
    return [(row.fold, row.person, reader.image(position)) for position, row in enumerate(index.samples)]


def plain_values(shards: Path) -> set[str]:
    """Return every hash and pseudonym in a folder of shards, as stored."""
    index, contents = load_index(shards), json.loads((shards / "contents.json").read_text())
    values = {text for row in index.samples for text in (row.key, row.sha256, row.person) if text}
    return values | {*contents["pixels"], *contents["sources"], contents["id_key"]}
