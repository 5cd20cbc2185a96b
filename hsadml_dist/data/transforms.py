"""From a stored image to the network's input, by MONAI's transforms.

MONAI is imported when a pipeline is built, that is in the loader workers' parent only. Metadata tracking is switched
off: nothing here inverts a transform, and it costs a third of the time.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch

from hsadml_dist.errors import ConfigError, Fault, did_you_mean

PREFIX = "monai.transforms."
IMAGE = "image"
SEEDS = 2**32
"""MONAI's seeds lie below."""

DEFAULT_AUGMENTATION: tuple[dict[str, Any], ...] = (
    {"_target_": "monai.transforms.RandFlip", "prob": 0.5, "spatial_axis": 1},
    {
        "_target_": "monai.transforms.RandAffine",
        "prob": 1.0,
        "rotate_range": 0.26,
        "scale_range": (0.1, 0.1),
        "translate_range": (7, 7),
        "padding_mode": "border",
        "mode": "bilinear",
    },
    {"_target_": "monai.transforms.RandScaleIntensity", "prob": 0.5, "factors": 0.1},
    {"_target_": "monai.transforms.RandShiftIntensity", "prob": 0.5, "offsets": 0.1},
)
"""A mirror, an affine map of up to 15 degrees, 10 % and 7 pixels, and small changes of contrast."""


THREADED = "onnxruntime"
"""MONAI imports it wherever it is installed, and its import starts a thread."""


def load_monai() -> ModuleType:
    """Import MONAI's transforms without a thread: none may exist when the loader forks its workers."""
    hidden = THREADED not in sys.modules
    if hidden:
        sys.modules[THREADED] = None  # type: ignore[assignment]  # an import of it fails as if it were not installed
    try:
        import monai.transforms
    finally:
        if hidden:
            del sys.modules[THREADED]
    return monai.transforms


class Preprocessing:
    """The deterministic part: resize by area, then zero mean and unit variance.

    Attributes:
        image_size: Side of what comes out, in pixels.
        transforms: MONAI's, applied one after the other.
    """

    VERSION = 1
    """Counts up whenever :meth:`__call__` gives other pixels."""

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size
        transforms = load_monai()
        from monai.data import set_track_meta

        set_track_meta(False)
        self.transforms = (transforms.Resize((image_size, image_size), mode="area"), transforms.NormalizeIntensity())
        self._steps = transforms.Compose(self.transforms)

    def __call__(self, image: np.ndarray) -> torch.Tensor:
        """Turn an image (H, W), uint16, into (1, image_size, image_size), fp32."""
        return self._steps(torch.from_numpy(image.astype(np.float32) / 65535)[None])

    def identity(self) -> str:
        """Return a text that changes with all that a pixel's last bit depends on, the image aside."""
        import monai

        kernels = torch.backends.cpu.get_cpu_capability()
        return f"preparation {self.VERSION} {self.image_size} {torch.__version__} {kernels} {monai.__version__}"


class Augmentation:
    """The random part; what it does to an image depends on the image and the given seed only."""

    def __init__(self, specs: Sequence[dict[str, Any]] | None) -> None:
        steps = [_on_image(transform) for transform in build_transforms(specs)]
        self._steps, self._seed = load_monai().Compose(steps), TransformSeeder(steps)

    def __call__(self, image: torch.Tensor, seed: int) -> torch.Tensor:
        """Augment an image (1, H, W), fp32, with the given seed, below 2**32."""
        self._seed(seed)
        return self._steps({IMAGE: image})[IMAGE].to(torch.float32)

    def batch(self, images: Sequence[torch.Tensor], seeds: Sequence[int]) -> torch.Tensor:
        """Augment B images (1, H, W), fp32, each with its seed; returns (B, 1, H, W), fp32."""
        return torch.stack([self(image, seed) for image, seed in zip(images, seeds, strict=True)])


class TransformSeeder:
    """Seeds transforms as MONAI's ``Compose.set_random_state`` does, in a tenth of the time.

    MONAI builds a new generator for each transform of each image, and a new one first asks the operating system for
    randomness. Where it is known how a transform passes its seed on, its generators are kept and seeded anew.
    """

    def __init__(self, transforms: Sequence[Any]) -> None:
        from monai.transforms import Randomizable

        self._each = [_seeder(transform) for transform in transforms if isinstance(transform, Randomizable)]
        self._seeds = np.random.RandomState()

    def __call__(self, seed: int) -> None:
        """Seed all transforms from one number below 2**32."""
        self._seeds.seed(seed)
        for seed_one in self._each:
            seed_one(int(self._seeds.randint(SEEDS, dtype="uint32")))


def _seeder(transform: Any) -> Callable[[int], None]:
    """Return what seeds one transform as its own ``set_random_state`` does."""
    from monai.transforms import RandAffine, Randomizable

    transform = getattr(transform, "wrapped", transform)
    if not isinstance(transform, Randomizable):
        return _seed_nothing
    if type(transform) is RandAffine:
        parts: tuple[Any, ...] = (transform, transform.rand_affine_grid)
    elif type(transform).set_random_state is Randomizable.set_random_state:
        parts = (transform,)
    else:
        return functools.partial(_seed_whole, transform)
    transform.set_random_state(seed=0)  # until now, all transforms share one generator
    return functools.partial(_seed_parts, parts)


def _seed_parts(parts: Sequence[Any], seed: int) -> None:
    for part in parts:
        part.R.seed(seed)


def _seed_whole(transform: Any, seed: int) -> None:
    transform.set_random_state(seed=seed)


def _seed_nothing(seed: int) -> None:
    """Stand in for a transform that draws nothing."""


def build_transforms(specs: Sequence[dict[str, Any]] | None) -> list[Any]:
    """Return the MONAI transforms of a recipe's ``data.transforms``; None: the package's own.

    Raises:
        ConfigError: A transform that MONAI does not have, or with arguments that it refuses.
    """
    load_monai()
    return [_built(spec) for spec in (DEFAULT_AUGMENTATION if specs is None else specs)]


def shear_matrix(coefficients: Sequence[float]) -> np.ndarray:
    """Return MONAI's shearing of a plane, (2, 2), fp64; its versions differ in what it is."""
    from monai.transforms.utils import create_shear

    return np.asarray(create_shear(2, coefficients))[:2, :2]


def _built(spec: dict[str, Any]) -> Any:
    """Return the MONAI transform that a recipe's mapping names."""
    import monai.transforms

    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in spec.items()}
    if "_target_" not in arguments:
        raise _refused(f"{spec} names no transform; give it as '_target_: {PREFIX}RandFlip'")
    name = str(arguments.pop("_target_")).removeprefix(PREFIX)
    kind = getattr(monai.transforms, name, None)
    if not isinstance(kind, type):
        raise _refused(f"{PREFIX}{name} does not exist{did_you_mean(name, dir(monai.transforms))}")
    try:
        return kind(**arguments)
    except (TypeError, ValueError) as fault:
        raise _refused(f"{PREFIX}{name}: {fault}") from fault


def _on_image(transform: Any) -> Any:
    """Return the transform as one of a dictionary: array transforms are applied to its image."""
    from monai.transforms import MapTransform, Randomizable

    if isinstance(transform, MapTransform):
        return transform

    class _OnImage(Randomizable):
        wrapped = transform

        def set_random_state(self, seed: int | None = None, state: Any = None) -> Any:
            if isinstance(transform, Randomizable):
                transform.set_random_state(seed, state)
            return self

        def randomize(self, data: Any) -> None:
            """Nothing to draw: the wrapped transform draws for itself."""

        def __call__(self, sample: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return sample | {IMAGE: transform(sample[IMAGE])}

    return _OnImage()


def _refused(problem: str) -> ConfigError:
    return ConfigError([Fault(where="recipe", key="data.transforms", problem=problem)])
