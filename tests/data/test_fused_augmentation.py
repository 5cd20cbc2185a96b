import re

import pytest
import torch

from hsadml_dist.data.fused_augmentation import FusedAugmentation
from hsadml_dist.data.order import sample_seed
from hsadml_dist.data.transforms import DEFAULT_AUGMENTATION, Augmentation, Preprocessing
from hsadml_dist.errors import ConfigError

MAX_DEVIATION = 1e-4
"""As a fraction of the image's range; 0.01 would be accepted."""

SEEDS = 300

FLIP = {"_target_": "monai.transforms.RandFlip", "prob": 0.5}
AFFINE = {"_target_": "monai.transforms.RandAffine", "prob": 0.5, "rotate_range": 0.5, "padding_mode": "border"}
SCALE = {"_target_": "monai.transforms.RandScaleIntensity", "prob": 0.5, "factors": [-0.3, 0.7]}
SHIFT = {"_target_": "monai.transforms.RandShiftIntensity", "prob": 0.5, "offsets": [0.2, 0.9]}
SHEAR = AFFINE | {"shear_range": [0.2, [0.1, 0.3]], "scale_range": [[-0.2, 0.1], 0.3], "translate_range": [0, 5]}

RECIPES = {
    "default": None,
    "nothing": [],
    "mirror along both": [FLIP],
    "mirror along y": [FLIP | {"spatial_axis": 0}],
    "mirror by a list, and by a negative axis": [FLIP | {"spatial_axis": [-1, 0]}],
    "all with probability": [FLIP | {"spatial_axis": -1}, SHEAR, SCALE, SHIFT],
    "zeros outside": [FLIP, SHEAR | {"padding_mode": "zeros", "prob": 1.0}],
    "reflection outside": [SHEAR | {"padding_mode": "reflection", "prob": 1.0}, SHIFT],
    "affine map only": [AFFINE],
    "one scale": [AFFINE | {"scale_range": 0.4}],
    "intensity only": [SCALE, SHIFT],
}


@pytest.fixture(scope="module", autouse=True)
def plain_tensors():
    """As in training, where an image is preprocessed before it is augmented."""
    Preprocessing(8)


@pytest.fixture(scope="module")
def noise():
    """The hardest image: every pixel is an edge; not square."""
    return torch.randn(1, 45, 56, generator=torch.Generator().manual_seed(0))


def distance(one, other, image):
    """Return the largest deviation of a pixel, as a fraction of the image's range."""
    return float((one - other).abs().max() / (image.max() - image.min()))


@pytest.mark.parametrize("name", RECIPES)
def test_pixels_match_monai(noise, name):
    plain, quick = Augmentation(RECIPES[name]), FusedAugmentation(RECIPES[name])
    seeds = [sample_seed(3, epoch, "00ff") for epoch in range(SEEDS)]
    expected, got = plain.batch([noise] * SEEDS, seeds), quick.batch([noise] * SEEDS, seeds)
    assert (got.shape, got.dtype, type(got)) == (expected.shape, torch.float32, torch.Tensor)
    assert max(distance(one, other, noise) for one, other in zip(got, expected, strict=True)) < MAX_DEVIATION
    if name != "nothing":
        assert len({image.numpy().tobytes() for image in expected.round(decimals=3)}) > 1


def test_pixels_of_a_prepared_slice_match_monai(tiny_shards):
    from hsadml_dist.data.index import load_index
    from hsadml_dist.data.reader import ShardReader

    image = Preprocessing(112)(ShardReader(tiny_shards, load_index(tiny_shards)).image(3))
    plain, quick = Augmentation(None), FusedAugmentation(None)
    assert max(distance(quick(image, seed), plain(image, seed), image) for seed in range(100)) < MAX_DEVIATION


@pytest.mark.parametrize("size", [1, 2, 7, 48])
def test_image_does_not_depend_on_its_batch(size):
    images = torch.randn(size, 1, 37, 37, generator=torch.Generator().manual_seed(size))
    augment = FusedAugmentation(None)
    whole = augment.batch(list(images), range(size))
    assert all(torch.equal(whole[i], augment(images[i], i)) for i in range(size))
    assert torch.equal(augment.batch(list(images.flip(0)), range(size)[::-1]).flip(0), whole)


def test_images_are_not_modified(noise):
    before = noise.clone()
    FusedAugmentation(None).batch([noise, noise], [3, 4])
    assert torch.equal(noise, before)


@pytest.mark.parametrize(
    ("specs", "text"),
    [
        (
            [FLIP, {"_target_": "monai.transforms.RandGaussianNoise"}],
            "RandGaussianNoise",
        ),
        ([AFFINE, FLIP], "RandAffine, RandFlip; allowed: RandFlip, RandAffine, RandScale"),
        ([FLIP, FLIP], "RandFlip, RandFlip"),
        ([AFFINE | {"mode": "nearest"}], "RandAffine with mode nearest; allowed: bilinear"),
        ([AFFINE | {"mode": 3}], "RandAffine with mode 3; allowed: bilinear"),
        ([AFFINE | {"padding_mode": "wrap"}], "padding_mode wrap; allowed: border or zeros or reflection"),
        ([AFFINE | {"spatial_size": [20, 20]}], "spatial_size (20, 20); allowed: None"),
        ([SCALE | {"channel_wise": True}], "RandScaleIntensity with channel_wise True; allowed: False"),
        ([SHIFT | {"channel_wise": True}], "RandShiftIntensity with channel_wise True; allowed: False"),
        ([SCALE | {"dtype": "float16"}], "RandScaleIntensity with dtype float16"),
    ],
)
def test_transform_that_cannot_be_fused_is_refused(specs, text):
    with pytest.raises(ConfigError, match=f"data\\.augmentation: .*{re.escape(text)}") as caught:
        FusedAugmentation(specs)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("use monai")


def test_monai_that_draws_differently_is_refused(monkeypatch):
    from monai.transforms import RandAffineGrid

    call = RandAffineGrid.__call__
    once = {"randomize": False}
    monkeypatch.setattr(RandAffineGrid, "__call__", lambda self, *words, **more: call(self, *words, **more | once))
    with pytest.raises(ConfigError, match=r"data\.augmentation: .*use monai"):
        FusedAugmentation(DEFAULT_AUGMENTATION)
