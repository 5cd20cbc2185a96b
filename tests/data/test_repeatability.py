import os
import random
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from hsadml_dist.config.recipe import DataConfig, TrainConfig
from hsadml_dist.config.transform_rules import TRANSFORMS, UNREPEATABLE
from hsadml_dist.data.loader import build_train_data
from hsadml_dist.data.repeatability import check_repeatability
from hsadml_dist.data.transforms import Augmentation, Preprocessing, build_transforms, load_monai
from hsadml_dist.distributed.topology import Topology
from hsadml_dist.errors import ConfigError

SIZE = 48
RANGES = {"rotate_range": 0.3, "shear_range": 0.1, "translate_range": 3, "scale_range": 0.1}
FIELD = {"spatial_size": [SIZE, SIZE], "rand_size": [4, 4]}
HOLES = {"holes": 2, "spatial_size": 8, "max_holes": 4}
ARGUMENTS = {
    "Affine": {"rotate_params": 0.2, "image_only": True},
    "AdjustContrast": {"gamma": 2},
    "BorderPad": {"spatial_border": 2},
    "CenterScaleCrop": {"roi_scale": 0.5},
    "CenterSpatialCrop": {"roi_size": 20},
    "ClipIntensityPercentiles": {"lower": 1, "upper": 99},
    "DivisiblePad": {"k": 7},
    "GridDistortion": {"num_cells": 2, "distort_steps": [[1, 1.1, 1], [1, 0.9, 1]]},
    "KSpaceSpikeNoise": {"loc": [3, 4], "k_intensity": 8},
    "Pad": {"to_pad": [[0, 0], [1, 2], [1, 2]]},
    "Rand2DElastic": {"spacing": 9, "magnitude_range": [1, 2]} | RANGES,
    "Rand3DElastic": {"sigma_range": [2, 3], "magnitude_range": [1, 2]} | RANGES,
    "RandAffine": RANGES,
    "RandCoarseDropout": HOLES,
    "RandCoarseShuffle": HOLES,
    "RandRotate": {"range_x": 0.4},
    "RandScaleCrop": {"roi_scale": 0.6},
    "RandScaleIntensity": {"factors": 0.3},
    "RandScaleIntensityFixedMean": {"factors": 0.3},
    "RandShiftIntensity": {"offsets": 0.3},
    "RandSimulateLowResolution": {"upsample_mode": "bilinear"},
    "RandSmoothDeform": FIELD | {"def_range": 0.2},
    "RandSmoothFieldAdjustContrast": FIELD,
    "RandSmoothFieldAdjustIntensity": FIELD,
    "RandSpatialCrop": {"roi_size": [20, 24]},
    "RandStdShiftIntensity": {"factors": 0.3},
    "Resize": {"spatial_size": [20, 20]},
    "ResizeWithPadOrCrop": {"spatial_size": 20},
    "Rotate": {"angle": 0.2},
    "ScaleIntensityFixedMean": {"factor": 0.2},
    "ScaleIntensityRange": {"a_min": -1, "a_max": 1, "b_min": 0, "b_max": 1, "clip": True},
    "ScaleIntensityRangePercentiles": {"lower": 1, "upper": 99, "b_min": 0, "b_max": 1},
    "ShiftIntensity": {"offset": 0.1},
    "SpatialCrop": {"roi_center": [20, 20], "roi_size": [10, 10]},
    "SpatialPad": {"spatial_size": 60},
    "StdShiftIntensity": {"factor": 0.1},
    "ThresholdIntensity": {"threshold": 0.1},
    "Zoom": {"zoom": 1.1},
}
"""Arguments of the transforms that need some; the others have defaults."""
DRAW_ELSEWHERE = ("RandIntensityRemap", "SignalRandAddGaussianNoise")
RESIZED = {"_target_": "monai.transforms.ResizeWithPadOrCrop", "spatial_size": 20}


@pytest.fixture(scope="module", autouse=True)
def plain_tensors():
    """As in training, where images are preprocessed before they are augmented."""
    Preprocessing(8)


def spec(name, **arguments):
    return {"_target_": f"monai.transforms.{name}", **arguments}


def check(*specs, size=SIZE):
    check_repeatability(partial(build_transforms, specs), size)


def refusal(build, size=SIZE):
    with pytest.raises(ConfigError) as caught:
        check_repeatability(build, size)
    (fault,) = caught.value.faults
    assert fault.key == "data.transforms"
    assert "\n" not in str(fault)
    return fault.problem


def is_random(kind):
    return issubclass(kind, load_monai().Randomizable)


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
def test_allowed_transform_repeats_its_result(name):
    item = spec(name, **ARGUMENTS.get(name, {}))
    following = [RESIZED] if name == "CropForeground" else []
    check(item, *following)
    if is_random(getattr(load_monai(), name)):
        image = torch.randn(1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
        often = item | ({"prob": 0.5} if "prob" in TRANSFORMS[name] else {})
        results = {Augmentation([often])(image.clone(), seed).numpy().tobytes() for seed in range(8)}
        assert len(results) > 1, "the arguments do not let it draw"


@pytest.mark.parametrize("name", DRAW_ELSEWHERE)
def test_unrepeatable_transform_is_refused_by_name(name):
    kind = getattr(load_monai(), name)
    problem = refusal(
        lambda: [load_monai().RandFlip(prob=1.0), kind(prob=0.1)] if name.startswith("Rand") else [kind()]
    )
    assert f"monai.transforms.{name} " in problem.replace(":", " ")


def test_unrepeatable_random_transforms_are_all_that_monai_has():
    """Run every random array transform of MONAI that works on an image with the arguments above."""
    unrepeatable = set()
    for name in dir(load_monai()):
        kind = getattr(load_monai(), name)
        if isinstance(kind, type) and is_random(kind) and not issubclass(kind, load_monai().MapTransform):
            try:
                check_repeatability(lambda kind=kind, name=name: [kind(**ARGUMENTS.get(name, {}))], SIZE)
            except ConfigError as error:
                if "does not repeat" in str(error):
                    unrepeatable.add(name)
            except (TypeError, ValueError):  # it cannot be built without images or functions
                continue
    assert unrepeatable == set(DRAW_ELSEWHERE) <= set(UNREPEATABLE)


def draw_from_monai():
    return load_monai().Randomizable.R.random_sample()


def draw_from_system():
    return np.random.default_rng().random()


def draw_from_torch():
    return torch.rand(()).item()


GLOBAL_DRAWS = {
    "numpy": np.random.random,
    "torch": draw_from_torch,
    "python": random.random,
    "monai": draw_from_monai,
}
ZOOM = spec("RandZoom", prob=0.5, min_zoom=2, max_zoom=2, keep_size=False)
DRAWS = GLOBAL_DRAWS | {"system": draw_from_system}


def shift_by(draw, monkeypatch):
    """Let RandShiftIntensity draw the shift by ``draw``, as another version of MONAI might."""

    def call(transform, image, randomize=True):
        transform.randomize(image)
        return image + draw() if transform._do_transform else image

    monkeypatch.setattr(load_monai().RandShiftIntensity, "__call__", call)


@pytest.mark.parametrize("source", DRAWS)
@pytest.mark.parametrize("prob", [1.0, 0.001])
def test_draw_from_another_generator_is_found(monkeypatch, source, prob):
    shift_by(DRAWS[source], monkeypatch)
    shift = spec("RandShiftIntensity", offsets=1, prob=prob)
    problem = refusal(partial(build_transforms, [spec("RandFlip", prob=1.0), shift, spec("RandZoom", prob=1.0)]))
    assert "item 2: monai.transforms.RandShiftIntensity" in problem


def test_transform_that_remembers_earlier_images_is_found(monkeypatch):
    seen = []
    shift_by(lambda: seen.append(None) or float(len(seen)), monkeypatch)
    assert "RandShiftIntensity" in refusal(partial(build_transforms, [spec("RandShiftIntensity", offsets=1)]))


def test_training_with_an_unrepeatable_transform_is_refused_at_its_start(monkeypatch, tiny_shards):
    data = DataConfig(shards=str(tiny_shards), fold=0, image_size=32)
    shift_by(DRAWS["numpy"], monkeypatch)
    with pytest.raises(ConfigError, match=r"data\.transforms: item 4: monai\.transforms\.RandShiftIntensity"):
        build_train_data(data, TrainConfig(steps=1, global_batch=6), Topology())
    build_train_data(replace(data, transforms=()), TrainConfig(steps=1, global_batch=6), Topology())


@pytest.mark.parametrize("source", GLOBAL_DRAWS)
def test_seeded_global_generators_repeat_such_draws_nevertheless(monkeypatch, source):
    shift_by(DRAWS[source], monkeypatch)
    augment = Augmentation([spec("RandShiftIntensity", offsets=1, prob=1.0)])
    image = torch.zeros(1, 8, 8)
    first = augment(image, 3)
    assert not torch.equal(augment(image, 4), first)
    assert torch.equal(augment(image, 3), first)


def test_idle_transform_stays_idle():
    check(spec("RandZoom", prob=0, keep_size=False), spec("RandRotate", prob=0, range_x=0.3, keep_size=False))


@pytest.mark.parametrize(
    ("specs", "facts"),
    [
        (
            [spec("RandFlip"), spec("RandSmoothFieldAdjustContrast", spatial_size=[9, 9], rand_size=[3, 3])],
            ["item 2", "48 x 48"],
        ),
        ([spec("RandSimulateLowResolution")], ["RandSimulateLowResolution", "trilinear"]),
        ([spec("Affine", rotate_params=0.2)], ["Affine", "tuple"]),
        ([spec("RandSpatialCrop", roi_size=8, random_size=True)], ["RandSpatialCrop", "sizes", "ResizeWithPadOrCrop"]),
        ([spec("RandFlip"), spec("CropForeground")], ["item 2: monai.transforms.CropForeground", "sizes"]),
        ([spec("RandRotate", range_x=0.5, keep_size=False)], ["RandRotate", "sizes"]),
        ([spec("RandFlip"), ZOOM], ["item 2: monai.transforms.RandZoom", "0.5", "ResizeWithPadOrCrop"]),
        ([ZOOM, spec("RandZoom", prob=0.5, min_zoom=0.5, max_zoom=0.5, keep_size=False)], ["item 1", "RandZoom"]),
    ],
)
def test_transform_that_fails_or_gives_no_batch_is_refused(specs, facts):
    problem = refusal(partial(build_transforms, specs))
    assert all(fact in problem for fact in facts), problem


@pytest.mark.parametrize("prob", [0.5, 1.0])
def test_random_transform_may_change_the_size_if_all_images_end_with_one(prob):
    zoom = ZOOM | {"prob": prob}
    check(zoom, spec("ResizeWithPadOrCrop", spatial_size=SIZE))
    if prob == 1:
        check(zoom)


def test_result_with_several_channels_is_refused():
    class TwoChannels:
        def __call__(self, image):
            return torch.cat([image, image])

    problem = refusal(lambda: [TwoChannels()])
    assert all(fact in problem for fact in ("TwoChannels", "2 channels"))


def test_no_transforms_need_no_check():
    check()


def test_result_with_nan_repeats(monkeypatch):
    shift_by(lambda: float("nan"), monkeypatch)
    check(spec("RandShiftIntensity", offsets=1))


def test_global_generators_keep_their_state():
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = random.random(), np.random.random(), torch.rand(3).tolist()
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    threads = torch.get_num_threads()
    check(*(spec(name, **ARGUMENTS.get(name, {})) for name in ("RandGaussianNoise", "Rand2DElastic", "RandBiasField")))
    assert (random.random(), np.random.random(), torch.rand(3).tolist()) == expected
    assert torch.get_num_threads() == threads


CHECK_ALL = """
import os
import torch
torch.set_num_threads(4)
from tests.data.test_repeatability import ARGUMENTS, TRANSFORMS, Preprocessing, check, spec
Preprocessing(8)
before = set(os.listdir("/proc/self/task"))
for name in TRANSFORMS:
    field = {"spatial_size": [192, 192]} if "Smooth" in name and "spatial_size" in TRANSFORMS[name] else {}
    after = [spec("ResizeWithPadOrCrop", spatial_size=20)] if name == "CropForeground" else []
    check(spec(name, **ARGUMENTS.get(name, {}) | field), *after, size=192)
print(len(set(os.listdir("/proc/self/task")) - before))
"""


def test_check_starts_no_thread():
    """The loader forks its workers afterwards."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, "-c", CHECK_ALL], env=environment, capture_output=True, text=True, check=True
    )
    assert int(done.stdout.split()[-1]) == 0
