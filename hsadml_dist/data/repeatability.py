"""Check at the start of a training that the transforms' result depends on image and seed only.

MONAI seeds each transform's own generator. A transform that draws elsewhere, or that remembers earlier images, gives
other pixels after a resume than without it, so that the weights are not bit-identical. All allowed transforms of MONAI
1.6.0 pass; those that fail are in :data:`~hsadml_dist.config.transform_rules.UNREPEATABLE`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from hsadml_dist.config.transform_rules import PREFIX
from hsadml_dist.data.transforms import (
    TransformSeeder,
    preserved_generators,
    seed_global_generators,
    single_threaded,
    transform_fault,
)
from hsadml_dist.errors import ConfigError

MAX_REASON = 200
"""Characters of an error of MONAI that a message repeats."""
ONE_SIZE = f"end with one size, such as {PREFIX}ResizeWithPadOrCrop"

Build = Callable[[], list[Any]]


def check_repeatability(build: Build, image_size: int) -> None:
    """Apply the transforms twice to the same images and seeds, with other global generators and in another order.

    Each transform is applied with probability 1: a rare one must not pass by staying idle. It takes as long as the
    augmentation of four images. No thread is started, and the generators of this process keep their state.

    Args:
        build: Returns new transforms at each call; they are modified here.
        image_size: Side length of the images, in pixels.

    Raises:
        ConfigError: A transform gives other pixels the second time, fails on such an image or does not return one
            image, or the results differ in size, if only because it is applied to some images, or are not grey.
    """
    with single_threaded(), preserved_generators():
        images = _test_images(image_size)
        first = _apply(build(), images, (0, 1), global_seed=1)
        transforms = build()
        second = _apply(transforms, images, (1, 0), global_seed=2)
        _compare(transforms, first, second)
        if transforms:
            _check_sizes(_last_shapes(first), len(transforms) - 1, transforms[-1])
            _check_idle_sizes(build, images, first)


def _test_images(size: int) -> list[torch.Tensor]:
    """Return two images (1, size, size), fp32: noise, and the same with a dark margin, for crops to the foreground."""
    noise = torch.randn(1, size, size, generator=torch.Generator().manual_seed(0))
    inner = slice(size // 4, size - size // 4)
    framed = torch.full_like(noise, -1)
    framed[:, inner, inner] = noise[:, inner, inner]
    return [noise, framed]


def _apply(
    transforms: Sequence[Any], images: Sequence[torch.Tensor], order: Sequence[int], *, global_seed: int
) -> list[list[torch.Tensor]]:
    """Return by image the results of each transform, with the image's place as the seed; applied in ``order``."""
    for transform in transforms:
        if getattr(transform, "prob", 0) > 0:
            transform.prob = 1.0
    seed_transforms = TransformSeeder(transforms)
    seed_global_generators(global_seed)
    results: list[list[torch.Tensor]] = [[] for _ in images]
    for number in order:
        seed_transforms(number)
        image = images[number]
        for place, transform in enumerate(transforms):
            image = _transformed(place, transform, image)
            results[number].append(image)
    return results


def _transformed(place: int, transform: Any, image: torch.Tensor) -> torch.Tensor:
    try:
        result = transform(image.clone())  # some transforms work in place
    except Exception as error:  # MONAI raises whatever its libraries do
        size = " x ".join(map(str, image.shape[1:]))
        problem = f"fails on an image of {size} pixels: {type(error).__name__}: {str(error)[:MAX_REASON]}"
        raise _refusal(place, transform, problem) from error
    if not isinstance(result, torch.Tensor) or result.ndim != image.ndim:
        raise _refusal(place, transform, f"returns {type(result).__name__}, not one image; remove or change it")
    return result


def _compare(
    transforms: Sequence[Any], first: Sequence[Sequence[torch.Tensor]], second: Sequence[Sequence[torch.Tensor]]
) -> None:
    """Refuse the first transform of which a result differs."""
    for place, transform in enumerate(transforms):
        if not all(_same_bits(one[place], other[place]) for one, other in zip(first, second, strict=True)):
            problem = "does not repeat its result for the same image and seed, so a resumed training would differ"
            raise _refusal(place, transform, f"{problem} from an uninterrupted one; remove it")


def _last_shapes(results: Sequence[Sequence[torch.Tensor]]) -> list[tuple[int, ...]]:
    return [tuple(outputs[-1].shape) for outputs in results]


def _check_idle_sizes(build: Build, images: Sequence[torch.Tensor], results: Sequence[Sequence[torch.Tensor]]) -> None:
    """Refuse a transform that changes the size of some images only, unless a later one gives all images one size."""
    wanted = _last_shapes(results)
    for place, transform in enumerate(build()):
        inputs = [outputs[place - 1] if place else image for image, outputs in zip(images, results, strict=True)]
        resizes = any(one.shape != outputs[place].shape for one, outputs in zip(inputs, results, strict=True))
        if not resizes or getattr(transform, "prob", 1) >= 1:
            continue
        others = build()
        del others[place]
        without = _apply(others, images, (0, 1), global_seed=1) if others else [[image] for image in images]
        if _last_shapes(without) != wanted:
            problem = f"changes the size of some images only, with probability {transform.prob:g}"
            raise _refusal(place, transform, f"{problem}; {ONE_SIZE}")


def _check_sizes(shapes: Sequence[tuple[int, ...]], place: int, transform: Any) -> None:
    """Refuse results that cannot form a batch of grey images."""
    if len(set(shapes)) > 1:
        sizes = " and ".join(" x ".join(map(str, shape[1:])) for shape in shapes)
        problem = f"the results have different sizes, here {sizes} pixels, and cannot form a batch"
        raise _refusal(place, transform, f"{problem}; {ONE_SIZE}")
    if shapes[0][0] != 1:
        raise _refusal(place, transform, f"the results have {shapes[0][0]} channels; only 1 is allowed")


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Compare type, shape and bits; unlike ``torch.equal``, it accepts NaN that repeats."""
    same_kind = (one.dtype, one.shape) == (other.dtype, other.shape)
    return same_kind and one.contiguous().numpy().tobytes() == other.contiguous().numpy().tobytes()


def _refusal(place: int, transform: Any, problem: str) -> ConfigError:
    return ConfigError([transform_fault(place + 1, f"{PREFIX}{type(transform).__name__}: {problem}")])
