"""The usual augmentation as one resampling of a whole batch.

MONAI's own transforms draw the random numbers, image by image, from the same seeds. What they drew becomes one affine
map, one factor and one offset for each image, and all images are resampled at once. A mirror moves pixels exactly, so
mirror and affine map together are still one interpolation, the same that MONAI makes: pixels differ by rounding alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import grid_sample

from hsadml_dist.data.transforms import Augmentation, TransformSeeder, build_transforms, shear_matrix
from hsadml_dist.errors import ConfigError, Fault

KINDS = ("RandFlip", "RandAffine", "RandScaleIntensity", "RandShiftIntensity")
"""What can be fused, in the order in which it must stand; each may be left out."""

PADDINGS = ("border", "zeros", "reflection")
TOLERANCE = 0.01
"""Largest distance of a pixel from MONAI's, as a share of the image's range, that a construction accepts."""


@dataclass(frozen=True, kw_only=True)
class AugmentationDraw:
    """What was drawn for one image.

    Attributes:
        flips: Whether it is mirrored along (y, x).
        affine: (2, 3), fp64: where each pixel of the result lies in the mirrored image, in pixels from the centre, as
            (y, x) from (y, x, 1).
        factor: What its pixels are multiplied by.
        offset: What is added to them afterwards.
    """

    flips: tuple[bool, bool]
    affine: np.ndarray
    factor: float
    offset: float


class FusedAugmentation:
    """Does what :class:`Augmentation` does with the same recipe and seeds, in one resampling a batch."""

    def __init__(self, specs: Sequence[dict[str, Any]] | None) -> None:
        transforms = build_transforms(specs)
        _refuse_others(transforms)
        by_kind = {type(transform).__name__: transform for transform in transforms}
        self._flip, self._affine, self._scale, self._shift = (by_kind.get(kind) for kind in KINDS)
        self._padding = "border" if self._affine is None else str(self._affine.padding_mode)
        self._seed = TransformSeeder(transforms)
        self._refuse_another_monai(Augmentation(specs))

    def __call__(self, image: torch.Tensor, seed: int) -> torch.Tensor:
        """Augment an image (1, H, W), fp32, with the given seed, below 2**32."""
        return self.batch([image], [seed])[0]

    def batch(self, images: Sequence[torch.Tensor], seeds: Sequence[int]) -> torch.Tensor:
        """Augment B images (1, H, W), fp32, each with its seed; returns (B, 1, H, W), fp32."""
        image_B1HW = torch.stack(list(images))
        draws = [self._draw(seed) for seed in seeds]
        grid = sampling_grid(draws, *image_B1HW.shape[2:])
        result = grid_sample(image_B1HW, grid, mode="bilinear", padding_mode=self._padding, align_corners=False)
        factor, offset = torch.tensor([(draw.factor, draw.offset) for draw in draws]).T[..., None, None, None]
        return result.mul_(factor).add_(offset)

    def _draw(self, seed: int) -> AugmentationDraw:
        """Let MONAI's transforms draw as they do when they are applied."""
        self._seed(seed)
        return AugmentationDraw(
            flips=_drawn_flips(self._flip),
            affine=_drawn_affine(self._affine),
            factor=1 + _drawn_number(self._scale, "factor"),
            offset=_drawn_number(self._shift, "_offset"),
        )

    def _refuse_another_monai(self, plain: Augmentation) -> None:
        """Refuse to stand in for a MONAI whose transforms draw or map otherwise than is assumed here."""
        image = torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(0))
        worst = max(float((self(image, seed) - plain(image, seed)).abs().max()) for seed in range(8))
        if worst > TOLERANCE:
            raise _refused(f"fused is off by {worst:.1g} of the image's range with this version of MONAI; use monai")


def sampling_grid(draws: Sequence[AugmentationDraw], height: int, width: int) -> torch.Tensor:
    """Return where each pixel is taken from: (B, H, W, 2), fp32, as (x, y) in the units of ``grid_sample``."""
    affine_B23 = np.stack([draw.affine for draw in draws])
    signs = 1 - 2 * np.array([draw.flips for draw in draws], dtype=np.float64)
    units = np.array([2 / max(2, height), 2 / max(2, width)])
    # The planes come as (x, y), each contiguous: grid_sample reads those faster than pairs.
    theta = torch.from_numpy((affine_B23 * (signs * units)[:, :, None])[:, ::-1].astype(np.float32))
    y, x = _centred(height), _centred(width)
    from_y = theta[:, :, 0, None] * y
    from_x = theta[:, :, 1, None] * x + theta[:, :, 2, None]
    return (from_y[:, :, :, None] + from_x[:, :, None, :]).permute(0, 2, 3, 1)


def _centred(size: int) -> torch.Tensor:
    return torch.arange(size, dtype=torch.float32) - (size - 1) / 2


def _drawn_flips(flip: Any) -> tuple[bool, bool]:
    if flip is None:
        return (False, False)
    flip.randomize(None)
    if not flip._do_transform:
        return (False, False)
    axes = flip.flipper.spatial_axis
    axes = (0, 1) if axes is None else np.atleast_1d(axes) % 2
    return (0 in axes, 1 in axes)


def _drawn_affine(affine: Any) -> np.ndarray:
    if affine is not None:
        affine.randomize()
        if affine._do_transform:
            grid = affine.rand_affine_grid
            grid.randomize()  # MONAI draws again when it makes the grid, and that draw counts
            return _matrix(grid.rotate_params, grid.shear_params, grid.translate_params, grid.scale_params)
    return np.eye(2, 3)


def _drawn_number(transform: Any, name: str) -> float:
    if transform is None:
        return 0.0
    transform.randomize(None)
    return float(getattr(transform, name)) if transform._do_transform else 0.0


def _matrix(rotate: Sequence[float], shear: Sequence[float], translate: Sequence[float], scale: Sequence[float]) -> Any:
    """Return rotation @ shear @ translation @ scaling, (2, 3), fp64; numbers that were not drawn change nothing."""
    angle = rotate[0] if rotate else 0.0
    turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if shear:
        turned = turned @ shear_matrix(shear)
    return np.column_stack([turned * _two(scale, 1.0), turned @ _two(translate, 0.0)])


def _two(numbers: Sequence[float], otherwise: float) -> tuple[float, float]:
    first, second = (*numbers, otherwise, otherwise)[:2]
    return first, second


def _refuse_others(transforms: Sequence[Any]) -> None:
    """Refuse transforms that one resampling cannot stand in for."""
    names = [type(transform).__name__ for transform in transforms]
    places = [KINDS.index(name) if name in KINDS else -1 for name in names]
    unknown = [name for name, place in zip(names, places, strict=True) if place < 0]
    if unknown:
        raise _refused(f"fused does not know {unknown[0]}; {_ALLOWED}")
    if places != sorted(set(places)):
        raise _refused(f"fused cannot keep the order {', '.join(names)}; {_ALLOWED}")
    for transform in transforms:
        for name, allowed in _SETTINGS[type(transform).__name__].items():
            value = getattr(transform, name)
            if value not in allowed:
                choices = " or ".join(str(choice) for choice in allowed)
                raise _refused(
                    f"fused does not know {type(transform).__name__} with {name.strip('_')} {value}, only {choices}; "
                    "use monai"
                )


_ALLOWED = f"it allows {', '.join(KINDS)}, in this order, each once or not at all; for others use monai"
_SETTINGS: dict[str, dict[str, tuple[Any, ...]]] = {
    "RandFlip": {"lazy": (False,)},
    "RandAffine": {"lazy": (False,), "mode": ("bilinear",), "padding_mode": PADDINGS, "spatial_size": (None,)},
    "RandScaleIntensity": {"channel_wise": (False,), "dtype": (np.float32,)},
    "RandShiftIntensity": {"channel_wise": (False,)},
}


def _refused(problem: str) -> ConfigError:
    return ConfigError([Fault(where="recipe", key="data.augmentation", problem=problem)])
