"""The usual augmentation as one resampling of a whole batch.

MONAI's own transforms draw the random numbers, image by image, from the same seeds. The draws become one affine map,
one factor and one offset per image, and all images are resampled at once. A mirror moves pixels exactly, so mirror and
affine map together are still one interpolation, the same one that MONAI computes: pixels differ by rounding alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import grid_sample

from hsadml_dist.data.transforms import (
    Augmentation,
    TransformSeeder,
    build_transforms,
    preserved_generators,
    shear_matrix,
)
from hsadml_dist.errors import ConfigError, Fault

FUSIBLE = ("RandFlip", "RandAffine", "RandScaleIntensity", "RandShiftIntensity")
"""The transforms that can be fused, in the required order; each may be left out."""
PADDINGS = ("border", "zeros", "reflection")
TOLERANCE = 0.01
"""Largest deviation of a pixel from MONAI's that a fused augmentation accepts, as a fraction of the image's range."""


@dataclass(frozen=True, kw_only=True)
class AugmentationDraw:
    """The random numbers of one image.

    Attributes:
        flips: True for each axis of (y, x) along which it is mirrored.
        affine: (2, 3), fp64: the source of each output pixel in the mirrored image, in pixels from the centre, as
            (y, x) from (y, x, 1).
        factor: Factor on its pixels.
        offset: Offset added to its pixels afterwards.
    """

    flips: tuple[bool, bool]
    affine: np.ndarray
    factor: float
    offset: float


class FusedAugmentation:
    """The same as :class:`Augmentation` with the same recipe and seeds, in one resampling per batch."""

    def __init__(self, specs: Sequence[dict[str, Any]] | None) -> None:
        transforms = build_transforms(specs)
        _require_fusible(transforms)
        by_kind = {type(transform).__name__: transform for transform in transforms}
        self._flip, self._affine, self._scale, self._shift = (by_kind.get(kind) for kind in FUSIBLE)
        self._padding = "border" if self._affine is None else str(self._affine.padding_mode)
        self._seed = TransformSeeder(transforms)
        self._compare_with_monai(Augmentation(specs))

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
            flips=_draw_flips(self._flip),
            affine=_draw_affine(self._affine),
            factor=1 + _draw_number(self._scale, "factor"),
            offset=_draw_number(self._shift, "_offset"),
        )

    def _compare_with_monai(self, plain: Augmentation) -> None:
        """Refuse a version of MONAI whose transforms draw or map in another way than is assumed here."""
        image = torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(0))
        with preserved_generators():
            worst = max(float((self(image, seed) - plain(image, seed)).abs().max()) for seed in range(8))
        if worst > TOLERANCE:
            deviation = f"{worst:.1g} of the image's range"
            raise _fused_error(f"fused differs from this version of MONAI by {deviation}; use monai")


def sampling_grid(draws: Sequence[AugmentationDraw], height: int, width: int) -> torch.Tensor:
    """Return the source of each pixel: (B, H, W, 2), fp32, as (x, y) in the units of ``grid_sample``."""
    affine_B23 = np.stack([draw.affine for draw in draws])
    signs = 1 - 2 * np.array([draw.flips for draw in draws], dtype=np.float64)
    units = np.array([2 / max(2, height), 2 / max(2, width)])
    # The planes are stored as (x, y), each contiguous: grid_sample reads those faster than pairs.
    theta = torch.from_numpy((affine_B23 * (signs * units)[:, :, None])[:, ::-1].astype(np.float32))
    y, x = (torch.arange(size, dtype=torch.float32) - (size - 1) / 2 for size in (height, width))
    from_y = theta[:, :, 0, None] * y
    from_x = theta[:, :, 1, None] * x + theta[:, :, 2, None]
    return (from_y[:, :, :, None] + from_x[:, :, None, :]).permute(0, 2, 3, 1)


def _draw_flips(flip: Any) -> tuple[bool, bool]:
    if flip is not None:
        flip.randomize(None)
    if flip is None or not flip._do_transform:
        return (False, False)
    axes = flip.flipper.spatial_axis
    axes = (0, 1) if axes is None else np.atleast_1d(axes) % 2
    return (0 in axes, 1 in axes)


def _draw_affine(affine: Any) -> np.ndarray:
    if affine is not None:
        affine.randomize()
        if affine._do_transform:
            grid = affine.rand_affine_grid
            grid.randomize()  # MONAI draws again when it makes the grid, and that draw counts
            return _affine_matrix(grid.rotate_params, grid.shear_params, grid.translate_params, grid.scale_params)
    return np.eye(2, 3)


def _draw_number(transform: Any, name: str) -> float:
    if transform is None:
        return 0.0
    transform.randomize(None)
    return float(getattr(transform, name)) if transform._do_transform else 0.0


def _affine_matrix(
    rotate: Sequence[float], shear: Sequence[float], translate: Sequence[float], scale: Sequence[float]
) -> np.ndarray:
    """Return rotation @ shear @ translation @ scaling, (2, 3), fp64; numbers that were not drawn change nothing."""
    angle = rotate[0] if rotate else 0.0
    linear = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if shear:
        linear = linear @ shear_matrix(shear)
    return np.column_stack([linear * (*scale, 1.0, 1.0)[:2], linear @ (*translate, 0.0, 0.0)[:2]])


def _require_fusible(transforms: Sequence[Any]) -> None:
    """Refuse transforms that one resampling cannot replace."""
    names = [type(transform).__name__ for transform in transforms]
    places = [FUSIBLE.index(name) if name in FUSIBLE else -1 for name in names]
    if -1 in places:
        raise _fused_error(f"fused does not support {names[places.index(-1)]}; {_FUSIBLE_RULE}")
    if places != sorted(set(places)):
        raise _fused_error(f"fused does not support the order {', '.join(names)}; {_FUSIBLE_RULE}")
    for transform in transforms:
        for name, allowed in _FUSIBLE_ARGUMENTS[type(transform).__name__].items():
            value = getattr(transform, name)
            if value not in allowed:
                choices = " or ".join(str(choice) for choice in allowed)
                argument = f"{type(transform).__name__} with {name.strip('_')} {value}"
                raise _fused_error(f"fused does not support {argument}; allowed: {choices}; for others use monai")


_FUSIBLE_RULE = f"allowed: {', '.join(FUSIBLE)}, in this order, each at most once; for others use monai"
_FUSIBLE_ARGUMENTS: dict[str, dict[str, tuple[Any, ...]]] = {
    "RandFlip": {},
    "RandAffine": {"mode": ("bilinear",), "padding_mode": PADDINGS, "spatial_size": (None,)},
    "RandScaleIntensity": {"channel_wise": (False,), "dtype": (np.float32,)},
    "RandShiftIntensity": {"channel_wise": (False,)},
}


def _fused_error(problem: str) -> ConfigError:
    return ConfigError([Fault(where="recipe", key="data.augmentation", problem=problem)])
