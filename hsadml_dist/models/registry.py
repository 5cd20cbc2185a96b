"""What is known of each backbone without building it: sizes, rules for images, sources. No torch, so that a login node
can check a recipe and list the backbones; tests hold every number against the net itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hsadml_dist.errors import did_you_mean

TIMM_PREFIX = "timm/"
"""Prefix of the names that the timm library resolves."""

REFERENCE_SIZE = 224
"""Pixels a side of the images that the table's weights and activations hold for."""

BATCH, GROUP, LAYER = "BatchNorm", "GroupNorm", "LayerNorm"

HE = "He et al., CVPR 2016"
HUANG = "Huang et al., CVPR 2017"
TAN = "Tan and Le, ICML 2019"
HU = "Hu et al., CVPR 2018"
DOSOVITSKIY = "Dosovitskiy et al., ICLR 2021"
TOUVRON = "Touvron et al., ICML 2021"
HATAMIZADEH = "Hatamizadeh et al., BrainLes 2021"


@dataclass(frozen=True)  # not by keyword: the table below has a line a backbone
class BackboneFacts:
    """Facts of a backbone.

    Attributes:
        weights: Trainable numbers for images of one channel and :data:`REFERENCE_SIZE` pixels a side, no neck.
        weights_3d: The same for volumes.
        features: Width of what it gives the neck.
        activations: Bytes kept for the backward pass, fp32, for each image of :data:`REFERENCE_SIZE` pixels a side.
        norm: Its kind of normalisation.
        source: Where it was published.
        least: Fewest pixels a side.
        multiple: What the pixels a side must be a multiple of.
        patches: Patches a side, where an image of any size is cut into that many.
    """

    weights: int
    weights_3d: int
    features: int
    activations: int
    norm: str
    source: str
    least: int = 1
    multiple: int = 1
    patches: int | None = None

    def activations_at(self, image_size: int) -> float:
        """Return the bytes kept for an image of another size: they grow with its area."""
        return self.activations * (1.0 if self.patches else (image_size / REFERENCE_SIZE) ** 2)


BACKBONE_FACTS: dict[str, BackboneFacts] = {
    "resnet_gn_small": BackboneFacts(963_360, 2_814_368, 208, 15_103_424, GROUP, HE),
    "resnet_gn_tiny": BackboneFacts(19_568, 58_032, 32, 6_422_584, GROUP, HE),
    "vit_small_patches": BackboneFacts(2_832_576, 6_982_848, 192, 4_779_008, LAYER, DOSOVITSKIY, least=8, patches=8),
    "monai_densenet121": BackboneFacts(6_947_584, 11_242_624, 1024, 130_089_728, BATCH, HUANG, least=64),
    "monai_densenet169": BackboneFacts(12_478_208, 18_542_720, 1664, 157_333_248, BATCH, HUANG, least=64),
    "monai_densenet201": BackboneFacts(18_086_656, 25_330_816, 1920, 203_276_032, BATCH, HUANG, least=64),
    "monai_densenet264": BackboneFacts(30_642_432, 40_245_888, 2688, 278_615_808, BATCH, HUANG, least=64),
    "monai_efficientnet_b0": BackboneFacts(4_006_972, 4_688_380, 1280, 91_273_864, BATCH, TAN, least=64),
    "monai_efficientnet_b1": BackboneFacts(6_512_608, 7_446_496, 1280, 127_535_556, BATCH, TAN, least=64),
    "monai_efficientnet_b2": BackboneFacts(7_700_418, 8_714_946, 1408, 134_096_148, BATCH, TAN, least=64),
    "monai_efficientnet_b3": BackboneFacts(10_695_512, 12_058_472, 1536, 177_373_584, BATCH, TAN, least=64),
    "monai_efficientnet_b4": BackboneFacts(17_547_752, 19_612_760, 1792, 235_047_976, BATCH, TAN, least=64),
    "monai_efficientnet_b5": BackboneFacts(28_339_920, 31_048_464, 2048, 323_764_100, BATCH, TAN, least=64),
    "monai_efficientnet_b6": BackboneFacts(40_734_696, 44_391_528, 2304, 414_888_604, BATCH, TAN, least=64),
    "monai_efficientnet_b7": BackboneFacts(63_785_808, 68_758_992, 2560, 557_116_100, BATCH, TAN, least=64),
    "monai_resnet18": BackboneFacts(11_171_136, 33_160_896, 512, 86_341_120, BATCH, HE, least=32),
    "monai_resnet34": BackboneFacts(21_279_296, 63_470_528, 512, 126_511_616, BATCH, HE, least=32),
    "monai_resnet50": BackboneFacts(23_505_600, 46_158_912, 2048, 341_409_280, BATCH, HE, least=32),
    "monai_resnet101": BackboneFacts(42_497_728, 85_205_056, 2048, 505_392_640, BATCH, HE, least=32),
    "monai_seresnet50": BackboneFacts(26_032_752, 48_686_064, 2048, 103_498_944, BATCH, HU, least=64),
    "monai_seresnet101": BackboneFacts(47_271_600, 89_978_928, 2048, 158_451_136, BATCH, HU, least=64),
    "monai_seresnet152": BackboneFacts(64_766_576, 123_988_976, 2048, 226_198_720, BATCH, HU, least=64),
    "monai_vit_small_16": BackboneFacts(21_454_464, 23_907_456, 384, 58_199_456, LAYER, TOUVRON, multiple=16),
    "monai_vit_base_16": BackboneFacts(85_376_256, 90_282_240, 768, 116_359_712, LAYER, DOSOVITSKIY, multiple=16),
    "monai_vit_large_16": BackboneFacts(302_701_568, 309_242_880, 1024, 309_462_048, LAYER, DOSOVITSKIY, multiple=16),
    "monai_vit_huge_14": BackboneFacts(630_137_600, 638_314_240, 1280, 673_056_768, LAYER, DOSOVITSKIY, multiple=14),
    "monai_swinunetr_encoder": BackboneFacts(6_306_810, 8_062_002, 768, 182_069_104, LAYER, HATAMIZADEH, multiple=32),
}


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes that a rank holds for the whole training, fp32 and AdamW, without the libraries' buffers.

    Source: Rajbhandari et al., SC 2020, section 3.
    """

    weights: float
    gradients: float
    moments: float

    @property
    def total(self) -> float:
        """The sum."""
        return self.weights + self.gradients + self.moments


def rank_memory_by_engine(weights: int, ranks: int) -> dict[str, RankMemory]:
    """Return what a rank holds of a net of so many weights, by engine: each stage of ZeRO cuts up one thing more.

    The optimiser of ZeRO steps weights of its own, so a rank holds its part of them once more.
    """
    one, parts = 4.0 * weights, 4.0 * weights / ranks
    return {
        "ddp": RankMemory(weights=one, gradients=one, moments=2 * one),
        "zero-1": RankMemory(weights=one + parts, gradients=one, moments=2 * parts),
        "zero-2": RankMemory(weights=one + parts, gradients=parts, moments=2 * parts),
        "zero-3": RankMemory(weights=2 * parts, gradients=parts, moments=2 * parts),
    }


def model_problems(name: str, image_size: int) -> Iterator[tuple[str, str]]:
    """Yield (setting, problem) for an unknown backbone, or an image that it cannot take.

    Args:
        name: The backbone. What timm calls its own is known only where timm is installed, and passes here.
        image_size: Pixels a side.
    """
    if name.startswith(TIMM_PREFIX):
        if name == TIMM_PREFIX:
            yield "model.name", f"{name!r} lacks the model's name, such as {TIMM_PREFIX}resnet18"
        return
    if name not in BACKBONE_FACTS:
        yield (
            "model.name",
            f"{name!r} is unknown{did_you_mean(name, BACKBONE_FACTS)}; allowed: {TIMM_PREFIX}NAME, and what hsadml models lists",
        )
        return
    facts = BACKBONE_FACTS[name]
    if image_size < max(facts.least, facts.multiple) or image_size % facts.multiple:
        yield (
            "data.image_size",
            f"{image_size} does not fit {name}: must be {size_rule(facts)}{_near(facts, image_size)}",
        )


def size_rule(facts: BackboneFacts) -> str:
    """Return in words how many pixels a side an image may have."""
    return f"a multiple of {facts.multiple}" if facts.multiple > 1 else f"at least {facts.least}"


def _near(facts: BackboneFacts, image_size: int) -> str:
    if facts.multiple == 1:
        return ""
    below = image_size // facts.multiple * facts.multiple
    near = [size for size in (below, below + facts.multiple) if size]
    return f", such as {' or '.join(map(str, near))}"
