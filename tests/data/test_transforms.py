import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from hsadml_dist.data.order import sample_seed
from hsadml_dist.data.transforms import (
    DEFAULT_AUGMENTATION,
    Augmentation,
    Preprocessing,
    TransformSeeder,
    build_transforms,
    load_monai,
    preserved_generators,
    seed_global_generators,
)
from hsadml_dist.errors import ConfigError

NOISE = {"_target_": "monai.transforms.RandGaussianNoise", "prob": 1.0, "std": 0.5}


@pytest.fixture(scope="module")
def image():
    return torch.randn(1, 32, 32, generator=torch.Generator().manual_seed(0))


def test_preprocessing_resizes_and_normalises():
    stored = np.random.default_rng(0).integers(0, 65536, (64, 48), dtype=np.uint16)
    image = Preprocessing(24)(stored)
    assert isinstance(image, torch.Tensor)
    assert (type(image), image.shape, image.dtype) == (torch.Tensor, (1, 24, 24), torch.float32)
    assert float(image.mean()) == pytest.approx(0, abs=1e-5)
    assert float(image.std(correction=0)) == pytest.approx(1, rel=1e-4)


def test_preprocessing_averages_over_areas():
    stored = np.zeros((4, 4), dtype=np.uint16)
    stored[0, 0], stored[2:, 2:] = 40000, 20000
    image = Preprocessing(2)(stored)[0]
    expected = torch.tensor([[10000.0, 0], [0, 20000]])
    torch.testing.assert_close(image, (expected - expected.mean()) / expected.std(correction=0), rtol=1e-4, atol=1e-5)


def test_preprocessing_keeps_16_bit_levels():
    stored = np.arange(1024, dtype=np.uint16).reshape(32, 32) + 30000
    assert len(Preprocessing(32)(stored).unique()) == 1024


@pytest.mark.parametrize("level", [0, 777, 65535])
def test_constant_image_stays_constant_and_finite(level):
    image = Preprocessing(8)(np.full((8, 8), level, dtype=np.uint16))
    assert len(image.unique()) == 1
    assert image.abs().max() <= 1


@pytest.mark.parametrize("specs", [None, [NOISE], [NOISE, NOISE]])
def test_augmentation_depends_on_seed_only(image, specs):
    augment = Augmentation(specs)
    first = augment(image, 11)
    augment(image.flip(1), 12)
    np.random.seed(5)
    torch.manual_seed(5)
    assert torch.equal(augment(image, 11), first)
    assert torch.equal(Augmentation(specs)(image, 11), first)
    assert (first.dtype, first.shape, type(first)) == (torch.float32, (1, 32, 32), torch.Tensor)
    seen = [first, *(augment(image, seed) for seed in (0, 12, 2**32 - 1))]
    assert all(not torch.equal(one, other) for place, one in enumerate(seen) for other in seen[:place])


AFFINE = {"rotate_range": 0.4, "translate_range": [3, 3], "scale_range": 0.2}
SEEDED = {
    "default": None,
    "affine with probability": [{"_target_": "monai.transforms.RandAffine", "prob": 0.5} | AFFINE],
    "deterministic transform between": [NOISE, {"_target_": "monai.transforms.Flip"}, NOISE],
    "elastic deformation": [
        {"_target_": "monai.transforms.Rand2DElastic", "prob": 0.7, "spacing": 9, "magnitude_range": [1, 2]} | AFFINE
    ],
    "normal draws before": [
        {"_target_": "monai.transforms.RandGibbsNoise", "prob": 0.5},
        {"_target_": "monai.transforms.RandRicianNoise", "prob": 0.5},
        {"_target_": "monai.transforms.RandAdjustContrast", "prob": 0.5},
    ],
}


def on_image(transform):
    """Return a transform for MONAI's Compose, which seeds it whether it draws or not."""
    from monai.transforms import Randomizable

    class OnImage(Randomizable):
        def set_random_state(self, seed=None, state=None):
            if isinstance(transform, Randomizable):
                transform.set_random_state(seed, state)
            return self

        def __call__(self, image):
            return transform(image)

    return OnImage()


@pytest.mark.parametrize("name", SEEDED)
def test_seeding_matches_monai(image, name):
    augment = Augmentation(SEEDED[name])
    expected = load_monai().Compose([on_image(transform) for transform in build_transforms(SEEDED[name])])
    augmented = []
    for seed in [*range(30), 2**32 - 1]:
        expected.set_random_state(seed=seed)
        augmented.append(expected(image))
        assert torch.equal(augment(image, seed), augmented[-1])
    assert len({image.numpy().tobytes() for image in augmented}) > 10


def test_augmentations_have_their_own_generators():
    one, other = build_transforms(None), build_transforms(None)
    TransformSeeder(one)(4)
    expected = [transform.R.random_sample() for transform in one]
    TransformSeeder(one)(4)
    TransformSeeder(other)(5)
    assert [transform.R.random_sample() for transform in one] == expected


def test_batch_matches_single_images(image):
    augment = Augmentation(None)
    batch = augment.batch([image, image.flip(1), image], [5, 6, 7])
    assert (batch.shape, batch.dtype) == ((3, 1, 32, 32), torch.float32)
    for place, (one, seed) in enumerate([(image, 5), (image.flip(1), 6), (image, 7)]):
        assert torch.equal(batch[place], augment(one, seed))


def test_preprocessing_identity_changes_with_everything_that_changes_pixels(monkeypatch):
    identities = [Preprocessing(8).identity(), Preprocessing(9).identity()]
    monkeypatch.setattr(Preprocessing, "VERSION", 2)
    identities.append(Preprocessing(8).identity())
    monkeypatch.setattr(torch, "__version__", "0.1")
    identities.append(Preprocessing(8).identity())
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "ABACUS")
    identities.append(Preprocessing(8).identity())
    assert len(set(identities)) == 5


def test_augmentation_differs_between_epochs(image):
    augment = Augmentation(None)
    epochs = [augment(image, sample_seed(0, epoch, "00ff")) for epoch in range(3)]
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])


def test_augmentation_does_not_modify_its_input(image):
    before = image.clone()
    Augmentation(None)(image, 3)
    assert torch.equal(image, before)


def test_empty_list_means_no_augmentation(image):
    assert torch.equal(Augmentation([])(image, 3), image)


def test_none_means_default_augmentation(image):
    assert torch.equal(Augmentation(None)(image, 3), Augmentation(DEFAULT_AUGMENTATION)(image, 3))
    assert not torch.equal(Augmentation(None)(image, 3), image)


def test_default_augmentation_keeps_images_similar():
    wave = torch.sin(torch.arange(64.0) / 8)[None, :, None].expand(1, 64, 64).contiguous()
    cosines = [
        float(torch.nn.functional.cosine_similarity(Augmentation(None)(wave, seed).flatten(), wave.flatten(), dim=0))
        for seed in range(20)
    ]
    assert min(cosines) > 0.2
    assert np.mean(cosines) < 0.999


def test_deterministic_transform_is_applied(image):
    assert torch.equal(
        Augmentation([{"_target_": "monai.transforms.Flip", "spatial_axis": 1}])(image, 0), image.flip(2)
    )


def test_target_may_omit_the_package(image):
    assert torch.equal(Augmentation([{"_target_": "Flip", "spatial_axis": 0}])(image, 0), image.flip(1))


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"_target_": "monai.transforms.RandFlop"}, r"RandFlop.*\(did you mean 'RandFlip'"),
        ({"_target_": "os.system", "command": "true"}, r"os\.system"),
        ({"_target_": "monai.transforms.utils"}, "utils"),
        ({"prob": 0.5}, "_target_"),
        ({"_target_": "monai.transforms.RandFlip", "probe": 1}, "RandFlip: .*probe"),
        ({"_target_": "monai.transforms.RandAffine", "mode": "bilinear", "padding_mode": 3}, "RandAffine: "),
        ({"_target_": "monai.transforms.RandFlipd", "keys": ["image"]}, "RandFlipd.*'RandFlip'"),
        ({"_target_": "monai.transforms.RandScaleIntensity"}, "RandScaleIntensity: .*factors"),
        ({"_target_": "monai.transforms.RandRotate90", "prob": 1, "max_k": [1, "2"]}, "RandRotate90: max_k"),
        ({"_target_": "monai.transforms.GibbsNoise", "alpha": 7}, "GibbsNoise: "),
        ({"_target_": "monai.transforms.KSpaceSpikeNoise", "loc": []}, "KSpaceSpikeNoise: "),
    ],
)
def test_unknown_transform_or_argument_is_refused(spec, text):
    with pytest.raises(ConfigError, match=f"data\\.transforms: .*{text}") as caught:
        Augmentation([spec])
    assert "\n" not in str(caught.value)


def test_all_faults_of_the_transforms_are_reported():
    flip, affine = "monai.transforms.RandFlip", "monai.transforms.RandAffine"
    with pytest.raises(ConfigError) as caught:
        build_transforms([{"_target_": flip, "prob": "x"}, {"_target_": affine}, {"_target_": affine, "mode": "y"}])
    assert [fault.problem.partition(":")[0] for fault in caught.value.faults] == ["item 1", "item 3"]


def test_transform_that_this_monai_lacks_is_refused(monkeypatch):
    monkeypatch.delattr(load_monai(), "RandAxisFlip")
    with pytest.raises(ConfigError, match=r"item 1: monai\.transforms\.RandAxisFlip .*version"):
        Augmentation([{"_target_": "monai.transforms.RandAxisFlip"}])


def test_preserved_generators_restore_their_state():
    def draws():
        return random.random(), float(np.random.random()), float(torch.rand(()))

    seed_global_generators(5)
    expected = draws()
    seed_global_generators(5)
    with pytest.raises(ValueError), preserved_generators():
        seed_global_generators(6)
        assert draws() != expected
        raise ValueError
    assert draws() == expected


STARTS_A_THREAD = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
THREADS = """
import os, sys
import torch
from hsadml_dist.data.transforms import load_monai
load_monai()
assert "onnxruntime" not in sys.modules
print(len(os.listdir("/proc/self/task")))
import onnxruntime
print(len(os.listdir("/proc/self/task")))
"""


def test_load_monai_starts_no_thread(tmp_path):
    (tmp_path / "onnxruntime.py").write_text(STARTS_A_THREAD)  # the real one may or may not start a thread
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", THREADS], env=environment, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert (before, after) == (1, 2)
