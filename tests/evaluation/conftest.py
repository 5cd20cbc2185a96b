"""Fixtures: ranks as real processes, small folders of shards, and a run with a checkpoint."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hsadml_dist.data.index import SampleRow, ShardFile, ShardIndex, samples_table, table_digest, write_index
from tests.conftest import Train
from tests.evaluation.picture_tables import SETTINGS, Pictures

SECONDS = 280
CLASSES = ("glioma", "meningioma", "pituitary")
SIDE = 24


def write_shards(folder: Path, *, seed: int, name_persons: bool = True) -> ShardIndex:
    """Write one shard: 12 patients of 4 slices each in 3 classes and 3 folds, split by patient."""
    generator = np.random.default_rng(seed)
    folder.mkdir()
    images, rows = [], []
    for person in range(12):
        label = person % 3
        for _ in range(4):
            images.append(_png(_picture(generator, label)))
            name = f"person{person}" if name_persons else None
            rows.append((label, name, person // 3 % 3))
    return _index(folder, images, rows)


def _picture(generator: np.random.Generator, label: int) -> np.ndarray:
    image = generator.random((SIDE, SIDE)) * 20000
    image[4 + 6 * label : 8 + 6 * label, 4:20] += 9000
    return image.astype(np.uint16)


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return file.getvalue()


def _index(folder: Path, images: Sequence[bytes], rows: Sequence[tuple[int, str | None, int]]) -> ShardIndex:
    samples, tar = [], folder / "shard-00000.tar"
    with tarfile.open(tar, "w") as archive:
        for number, (data, (label, person, fold)) in enumerate(zip(images, rows, strict=True)):
            key = hashlib.sha256(f"{number}".encode()).hexdigest()[:16]
            spans = {
                member: _add(archive, f"{key}.{member}", text) for member, text in (("png", data), ("json", b"{}"))
            }
            digest = hashlib.sha256(data).hexdigest()
            samples.append(
                SampleRow(
                    key=key,
                    shard=0,
                    members=spans,
                    sha256=digest,
                    label=label,
                    person=person,
                    exam=None,
                    fold=fold,
                )
            )
    index = ShardIndex(
        source="table",
        classes=CLASSES,
        split_unit="person",
        folds=3,
        seed=0,
        size=SIDE,
        digest=table_digest(samples_table(samples)),
        shards=(
            ShardFile(name=tar.name, bytes=tar.stat().st_size, sha256=hashlib.sha256(tar.read_bytes()).hexdigest()),
        ),
        samples=tuple(samples),
    )
    write_index(folder, index)
    return index


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> tuple[int, int]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    start = archive.offset
    archive.addfile(info, io.BytesIO(data))
    return start + 512, len(data)


@pytest.fixture(scope="session")
def id_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of the id key of the session's builds."""
    return tmp_path_factory.mktemp("key") / "id.key"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, id_key: Path, train_to_the_end: Train) -> Path:
    """Build pictures into ``shards`` and train ``run`` on all their folds but 0; tests copy what they change."""
    folder = tmp_path_factory.mktemp("trained")
    Pictures(folder=folder / "table").build(folder / "shards", "--folds", "3", id_key=id_key)
    train_to_the_end(folder / "run", f"data.shards={folder / 'shards'}", *SETTINGS, nproc=1)
    return folder


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Write a small folder of shards."""
    write_shards(tmp_path / "shards", seed=0)
    return tmp_path / "shards"


@pytest.fixture
def other_shards(tmp_path: Path) -> Path:
    """Write other images of the same classes, without patient ids."""
    write_shards(tmp_path / "others", seed=1, name_persons=False)
    return tmp_path / "others"


@pytest.fixture
def run(tmp_path: Path, shards: Path) -> Path:
    """Create a run of two steps on fold 0, with one checkpoint of untrained weights."""
    # Written with the package's own functions, so that a change of their formats shows here.
    from hsadml_dist.checkpoint.layout import TrainingProgress
    from hsadml_dist.checkpoint.save import save_checkpoint
    from hsadml_dist.checkpoint.tensor_files import TrainingState
    from hsadml_dist.config.recipe import DataConfig, EvaluationConfig, ModelConfig, Recipe, TrainConfig
    from hsadml_dist.config.yaml_loader import dump_recipe
    from hsadml_dist.data.index import load_index
    from hsadml_dist.losses.centres import initial_rows
    from hsadml_dist.model_factory import build_network
    from hsadml_dist.run.folder import RunFolder

    recipe = Recipe(
        data=DataConfig(shards=str(shards), fold=0, image_size=16),
        model=ModelConfig(name="resnet_gn_tiny", embedding_dim=8),
        train=TrainConfig(steps=2, global_batch=12),
        evaluation=EvaluationConfig(batch=5, block=7),
    )
    folder = RunFolder(tmp_path / "run")
    attempt = folder.attempt(1)
    attempt.path.mkdir(parents=True)
    dump_recipe(recipe, folder.config)
    rows = [{"step": step, "attempt": 1, "loss": 1.5 / step, "lr": 0.1} for step in (1, 2)]
    attempt.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    groups = {"model": dict(build_network(recipe).state_dict()), "centres": {"weight": initial_rows(range(3), 8, 0)}}
    progress = TrainingProgress(
        step=2, consumed=24, seed=0, fingerprint="", data_digest=load_index(shards).digest, world_size=1
    )
    save_checkpoint(folder, attempt, TrainingState(groups=groups, progress=progress))
    return folder.path
