"""Facts about each backbone: sizes, accepted images, memory and sources.

Imports no torch, so that a login node can check recipes and list backbones. Tests compare every number with the
network itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hsadml_dist.errors import did_you_mean

TIMM_PREFIX = "timm/"
"""Prefix of names that are looked up in the timm library."""

REFERENCE_SIZE = 224
"""Pixels per side of the images to which the weights and activations of the table refer."""

BATCH, GROUP, LAYER = "BatchNorm", "GroupNorm", "LayerNorm"

HE = "He et al., CVPR 2016"
HUANG = "Huang et al., CVPR 2017"
TAN = "Tan and Le, ICML 2019"
HU = "Hu et al., CVPR 2018"
DOSOVITSKIY = "Dosovitskiy et al., ICLR 2021"
TOUVRON = "Touvron et al., ICML 2021"
HATAMIZADEH = "Hatamizadeh et al., BrainLes 2021"


@dataclass(frozen=True)  # positional, so that the table below has one line per backbone
class BackboneFacts:
    """Facts about a backbone.

    Attributes:
        weights: Trainable weights for images of one channel and :data:`REFERENCE_SIZE` pixels per side, without neck.
        weights_3d: The same for volumes.
        features: Number of features, the input width of the neck.
        activations: Bytes saved for the backward pass, fp32, per image of :data:`REFERENCE_SIZE` pixels per side.
        norm: Type of its normalisation layers.
        source: Publication.
        least: Smallest number of pixels per side.
        multiple: The number of pixels per side must be a multiple of this.
        patches: Patches per side, if their number does not depend on the image size.
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
        """Return the bytes saved per image of another size; they grow with its area."""
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
    """Bytes per rank for weights, gradients and AdamW moments in fp32, without the buffers of the libraries.

    Source: Rajbhandari et al., SC 2020, section 3.
    """

    weights: float
    gradients: float
    moments: float

    @property
    def total(self) -> float:
        """Total bytes."""
        return self.weights + self.gradients + self.moments


def rank_memory_by_engine(weights: int, ranks: int) -> dict[str, RankMemory]:
    """Return the memory per rank by engine; each ZeRO stage partitions one thing more.

    The optimizer of ZeRO steps its own copy of the weights, so a rank holds its part of them twice.
    """
    one, parts = 4.0 * weights, 4.0 * weights / ranks
    return {
        "ddp": RankMemory(weights=one, gradients=one, moments=2 * one),
        "zero-1": RankMemory(weights=one + parts, gradients=one, moments=2 * parts),
        "zero-2": RankMemory(weights=one + parts, gradients=parts, moments=2 * parts),
        "zero-3": RankMemory(weights=2 * parts, gradients=parts, moments=2 * parts),
    }


def model_problems(name: str, image_size: int) -> Iterator[tuple[str, str]]:
    """Yield (setting, problem) for an unknown backbone or an image that it does not accept.

    Args:
        name: The backbone. Names of timm are not checked here, because timm may not be installed.
        image_size: Pixels per side.
    """
    if name.startswith(TIMM_PREFIX):
        if name == TIMM_PREFIX:
            yield "model.name", f"{name!r} has no model name; write for example {TIMM_PREFIX}resnet18"
        return
    if name not in BACKBONE_FACTS:
        allowed = f"allowed: {TIMM_PREFIX}NAME and the names that hsadml models lists"
        yield "model.name", f"{name!r} is unknown{did_you_mean(name, BACKBONE_FACTS)}; {allowed}"
        return
    facts = BACKBONE_FACTS[name]
    if image_size < max(facts.least, facts.multiple) or image_size % facts.multiple:
        yield (
            "data.image_size",
            f"{image_size} does not fit {name}: must be {size_rule(facts)}{_nearest_sizes(facts, image_size)}",
        )


def size_rule(facts: BackboneFacts) -> str:
    """Return the rule for the pixels per side as text."""
    return f"a multiple of {facts.multiple}" if facts.multiple > 1 else f"at least {facts.least}"


def _nearest_sizes(facts: BackboneFacts, image_size: int) -> str:
    if facts.multiple == 1:
        return ""
    below = image_size // facts.multiple * facts.multiple
    near = [size for size in (below, below + facts.multiple) if size]
    return f", such as {' or '.join(map(str, near))}"
