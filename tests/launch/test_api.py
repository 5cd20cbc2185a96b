"""The public API: its names, its laziness, and whole runs through it."""

import subprocess
import sys

import numpy as np
import pytest

import hsadml_dist as hsadml
from hsadml_dist.errors import ConfigError, DataError, UsageError

PUBLIC = {"ShardDataset", "__version__", "evaluate", "load", "losses", "train"}
LOSS_MODULES = {
    "AdaFace",
    "ArcFace",
    "CosFace",
    "NormFace",
    "SphereFace",
    "SphereFace2",
    "SphereFaceRv1",
    "SphereFaceRv2",
}
LIST_HEAVY = "import sys, hsadml_dist; print(sorted({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"


@pytest.fixture(scope="module")
def settings(tiny_shards):
    return {
        "data.shards": str(tiny_shards),
        "data.image_size": 32,
        "train.steps": 4,
        "train.global_batch": 6,
        "evaluation.at_end": False,
        "run.tensorboard": False,
    }


@pytest.fixture(scope="module")
def trained(settings, tmp_path_factory):
    return hsadml.train("demo", settings, run=tmp_path_factory.mktemp("api") / "run")


def test_package_exports_exactly_the_public_names():
    assert set(hsadml.__all__) == PUBLIC
    assert set(dir(hsadml)) >= PUBLIC
    assert all(getattr(hsadml, name) is not None for name in PUBLIC)
    with pytest.raises(AttributeError):
        hsadml.no_such_name  # noqa: B018


def test_losses_export_a_module_for_each_loss():
    assert set(hsadml.losses.__all__) >= LOSS_MODULES
    assert all(getattr(hsadml.losses, name).__doc__ for name in LOSS_MODULES)


def test_import_needs_no_heavy_package():
    done = subprocess.run([sys.executable, "-c", LIST_HEAVY], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_functions_stay_callable_after_their_modules_are_imported():

    assert callable(hsadml.train) and callable(hsadml.evaluate)


def test_train_returns_a_row_per_step(trained):
    assert [row["step"] for row in trained.metrics] == [1, 2, 3, 4]
    assert not trained.stopped
    assert trained.evaluation is None


def test_train_resumes_the_same_run(trained, settings):
    again = hsadml.train("demo", [f"{key}={value}" for key, value in settings.items()], run=trained.run)
    assert [row["step"] for row in again.metrics] == [1, 2, 3, 4]


def test_evaluate_returns_the_result(trained):
    result = hsadml.evaluate(trained.run)
    assert result["slices"] > 0
    assert hsadml.train.__module__ == "hsadml_dist.launch.api"


def test_load_embeds_and_predicts_arrays_and_files(trained, tiny_shards, tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (80, 80), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "slice.png")
    model = hsadml.load(trained.run)
    emb_ND = model.embed([pixels, tmp_path / "slice.png"])
    assert emb_ND.shape == (2, 64) and emb_ND.dtype == np.float32
    assert np.array_equal(emb_ND[0], emb_ND[1])
    predictions = model.predict([pixels])
    assert predictions[0].class_name in model.classes
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"bad\.png: it cannot be decoded"):
        model.embed([pixels, tmp_path / "bad.png"])


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: hsadml.train("demo", {"train.stepz": 1}), ConfigError),
        (lambda: hsadml.train("demo", nproc=0), UsageError),
        (lambda: hsadml.evaluate("no/such/run"), UsageError),
        (lambda: hsadml.load("no/such/run"), UsageError),
    ],
)
def test_bad_input_raises_one_clear_error(call, error):
    with pytest.raises(error):
        call()
