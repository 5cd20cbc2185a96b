"""Turn stored images into network input by MONAI's transforms: preprocessing and augmentation.

MONAI is imported when a pipeline is built, that is, only in the parent of the loader workers. Its metadata tracking is
switched off: nothing here inverts a transform, and tracking costs a third of the time.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch

from hsadml_dist.config.transform_rules import PREFIX, TARGET, transform_problems
from hsadml_dist.errors import ConfigError, Fault

SEEDS = 2**32
"""MONAI's seeds are below this."""

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

STARTS_THREAD = "onnxruntime"
"""MONAI imports this package wherever it is installed, and its import starts a thread."""


def load_monai() -> ModuleType:
    """Import MONAI's transforms without starting a thread: none may exist when the loader forks its workers."""
    hidden = STARTS_THREAD not in sys.modules
    if hidden:
        sys.modules[STARTS_THREAD] = None  # type: ignore[assignment]  # its import fails as if it were not installed
    try:
        import monai.transforms
    finally:
        if hidden:
            del sys.modules[STARTS_THREAD]
    return monai.transforms


@contextlib.contextmanager
def single_threaded() -> Iterator[None]:
    """Run torch with one thread, as loader workers do: sums over large images round differently with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def seed_global_generators(seed: int) -> None:
    """Seed the generators of the whole process: those of Python, NumPy and torch on the CPU, and MONAI's shared one."""
    from monai.transforms import Randomizable

    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed also seeds GPUs and takes 500 times as long
    Randomizable.R.seed(seed)


@contextlib.contextmanager
def preserved_generators() -> Iterator[None]:
    """Restore the generators of Python, NumPy and torch on the CPU afterwards; it takes a tenth of a millisecond."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


@contextlib.contextmanager
def metadata_tracking_off() -> Iterator[None]:
    """Switch MONAI's metadata tracking off, and afterwards to what it was."""
    load_monai()
    from monai.data import get_track_meta, set_track_meta

    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)


class Preprocessing:
    """The deterministic part: resize by area, then normalise to zero mean and unit variance.

    Attributes:
        image_size: Side length of the output, in pixels.
        transforms: MONAI's transforms, applied one after another.
    """

    VERSION = 1
    """Increased whenever :meth:`__call__` returns other pixels."""

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size
        transforms = load_monai()
        from monai.data import set_track_meta

        set_track_meta(False)
        self.transforms = (transforms.Resize((image_size, image_size), mode="area"), transforms.NormalizeIntensity())
        self._compose = transforms.Compose(self.transforms)

    def __call__(self, image: np.ndarray) -> torch.Tensor:
        """Turn an image (H, W), uint16, into (1, image_size, image_size), fp32."""
        return self._compose(torch.from_numpy(image.astype(np.float32) / 65535)[None])

    def identity(self) -> str:
        """Return a text that changes with everything, except the image, that determines the last bit of a pixel."""
        import monai

        kernels = torch.backends.cpu.get_cpu_capability()
        return f"preparation {self.VERSION} {self.image_size} {torch.__version__} {kernels} {monai.__version__}"


class Augmentation:
    """The random part, by MONAI's transforms; its result depends on the image and the given seed only.

    The generators of the process are seeded too, in case a transform draws from them. A caller with other uses for them
    wraps the call in :func:`preserved_generators`; loader workers have none.
    """

    def __init__(self, specs: Sequence[dict[str, Any]] | None) -> None:
        self._transforms = build_transforms(specs)
        self._seed = TransformSeeder(self._transforms)

    def __call__(self, image: torch.Tensor, seed: int) -> torch.Tensor:
        """Augment an image (1, H, W), fp32, with the given seed, below 2**32."""
        seed_global_generators(seed)
        self._seed(seed)
        for transform in self._transforms:
            image = transform(image)
        return image.to(torch.float32)

    def batch(self, images: Sequence[torch.Tensor], seeds: Sequence[int]) -> torch.Tensor:
        """Augment B images (1, H, W), fp32, each with its seed; returns (B, 1, H, W), fp32."""
        return torch.stack([self(image, seed) for image, seed in zip(images, seeds, strict=True)])


class TransformSeeder:
    """Seeds transforms as MONAI's ``Compose.set_random_state`` does random ones, in a tenth of the time.

    A seed is drawn for each transform, whether it is random or not. MONAI creates a generator per transform and image,
    and a new one first asks the operating system for randomness. For transforms that are known to pass their seed on in
    a standard way, the generators are kept and seeded again.
    """

    def __init__(self, transforms: Sequence[Any]) -> None:
        self._seeders = [_seeder(transform) for transform in transforms]
        self._seeds = np.random.RandomState()

    def __call__(self, seed: int) -> None:
        """Seed all transforms from one number below 2**32."""
        self._seeds.seed(seed)
        for seed_transform in self._seeders:
            seed_transform(int(self._seeds.randint(SEEDS, dtype="uint32")))


def build_transforms(specs: Sequence[dict[str, Any]] | None) -> list[Any]:
    """Return the MONAI transforms of a recipe's ``data.transforms``; None means :data:`DEFAULT_AUGMENTATION`.

    Raises:
        ConfigError: A transform or an argument is not allowed, or MONAI refuses it.
    """
    specs = DEFAULT_AUGMENTATION if specs is None else specs
    items = list(enumerate(specs, start=1))
    problems = [(number, problem) for number, spec in items for problem in transform_problems(spec)]
    if problems:
        raise ConfigError(transform_fault(number, problem) for number, problem in problems)
    return [_build_transform(number, spec) for number, spec in items]


def transform_fault(number: int, problem: str) -> Fault:
    """Return the fault of an item of ``data.transforms``, counted from 1, with a problem that may have line breaks."""
    return Fault(where="recipe", key="data.transforms", problem=f"item {number}: {' '.join(problem.split())}")


def shear_matrix(coefficients: Sequence[float]) -> np.ndarray:
    """Return MONAI's shear matrix of a plane, (2, 2), fp64, which differs between its versions."""
    from monai.transforms.utils import create_shear

    return np.asarray(create_shear(2, coefficients))[:2, :2]


def _build_transform(number: int, spec: dict[str, Any]) -> Any:
    name = spec[TARGET].removeprefix(PREFIX)
    arguments = {
        key: tuple(value) if isinstance(value, list) else value for key, value in spec.items() if key != TARGET
    }
    kind = getattr(load_monai(), name, None)
    if kind is None:
        raise ConfigError([transform_fault(number, f"{PREFIX}{name} does not exist in this version of MONAI")])
    try:
        return kind(**arguments)
    except Exception as error:  # MONAI raises whatever its libraries do
        raise ConfigError([transform_fault(number, f"{PREFIX}{name}: {error}")]) from error


def _seeder(transform: Any) -> Callable[[int], object]:
    """Return a function that seeds one transform as its own ``set_random_state`` does."""
    from monai.transforms import RandAffine, Randomizable

    if not isinstance(transform, Randomizable):
        return lambda seed: None
    if type(transform) is RandAffine:
        parts: tuple[Any, ...] = (transform, transform.rand_affine_grid)
    elif type(transform).set_random_state is Randomizable.set_random_state:
        parts = (transform,)
    else:
        return lambda seed: transform.set_random_state(seed=seed)
    transform.set_random_state(seed=0)  # until now, all transforms share one generator
    return lambda seed: [part.R.seed(seed) for part in parts]
