import csv

import numpy as np
import pytest
from PIL import Image

from hsadml_dist.shards.build import BuildOptions, build_shards
from hsadml_dist.shards.pseudonyms import load_or_create_key
from hsadml_dist.shards.sources.phantom.phantom_source import PhantomSource

CLASSES = ("glioma", "meningioma", "pituitary")


@pytest.fixture(scope="session")
def key(tmp_path_factory):
    return load_or_create_key(tmp_path_factory.mktemp("key") / "id.key")


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    """CSV of generated JPEGs: 12 patients of 1 to 4 slices, three classes, all identifiers marked SECRET."""
    folder = tmp_path_factory.mktemp("table")
    (folder / "pictures").mkdir()
    rows = []
    for person in range(12):
        for slice_ in range(1 + person % 4):
            name = f"pictures/SECRETFILE-{person}-{slice_}.jpg"
            exif = Image.Exif()
            exif[0x010E] = f"SECRETEXIF-{person}"
            pixels = np.random.default_rng([person, slice_]).integers(0, 256, (40, 48), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name, quality=90, exif=exif)
            rows.append([name, CLASSES[person % 3], f"SECRETPERSON-{person}", f"SECRETEXAM-{slice_ // 2}", "axial"])
    with open(folder / "list.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file", "class", "person", "exam", "plane"], *rows])
    return folder / "list.csv"


@pytest.fixture
def small_table(tmp_path):
    """Write an image ``a.png``; return a function that writes a CSV of given lines next to it and returns its path."""
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "a.png")

    def write(*lines: str):
        path = tmp_path / "small.csv"
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


@pytest.fixture(scope="session")
def small_shards(tmp_path_factory, key):
    """Shards of 6 generated patients in 3 folds; read-only."""
    out = tmp_path_factory.mktemp("small") / "shards"
    options = BuildOptions(folds=3, samples_per_shard=8, size=32)
    build_shards(PhantomSource(patients=6, seed=0, size=32), out, options, key, 1, lambda done, total: None)
    return out
