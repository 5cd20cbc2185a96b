"""The transforms that a recipe may name in ``data.transforms``, and the allowed values of each of their arguments.

An allow-list, because MONAI runs code that texts name: it locates a reader, a writer or another library's transform by
its dotted path and calls it, and evaluates ``$``, ``_target_`` and ``_mode_``. So only array transforms of one image
are listed, with numbers and named choices as arguments. Left out on purpose:

- input and output, Compose and its relatives, Lambda, wrappers of other libraries, and adapters: they run code;
- dictionary forms, such as RandFlipd: an array transform does the same without keys;
- arguments that take functions, tensors or slices, and the pad mode ``empty``, whose pixels are uninitialised memory;
- transforms that need a mask, a label or the image's affine, or that return several images or no image;
- :data:`UNREPEATABLE`.

Imports no MONAI, so that a login node refuses a recipe before a job is queued. Tests compare the list with MONAI.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hsadml_dist.errors import did_you_mean

PREFIX = "monai.transforms."
TARGET = "_target_"
MAX_DEPTH = 3
"""How deep lists of numbers may be nested."""
MAX_SHOWN = 80
"""Characters of a refused value that a message repeats."""
UNREPEATABLE = ("RandIntensityRemap", "SignalRandAddGaussianNoise", "SavitzkyGolaySmooth")
"""Transforms of MONAI 1.6.0 whose result depends on more than image and seed; all were run to find them.

The first draws from a generator that all transforms share, the second from torch's. The third solves a least-squares
problem per image, whose last bits depend on where the memory of MKL is. For other versions of MONAI,
:mod:`hsadml_dist.data.repeatability` checks the transforms of a recipe when a training starts.
"""


@dataclass(frozen=True, kw_only=True)
class ArgumentRule:
    """The values that an argument may have, besides null.

    Attributes:
        choices: The allowed texts, whole numbers or truth values; empty means numbers, and lists of numbers and nulls.
    """

    choices: tuple[str | int, ...] = ()

    def allows(self, value: Any) -> bool:
        """Return whether the argument may have this value; only plain values of exactly the listed types may pass."""
        if value is None:
            return True
        if self.choices:
            return any(type(value) is type(choice) and value == choice for choice in self.choices)
        return _holds_numbers(value, MAX_DEPTH)

    def describe(self) -> str:
        """Return the allowed values in words."""
        texts = [str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in self.choices]
        return ", ".join([*texts, "null"]) if texts else "a finite number, a list of such numbers, null"


def transform_problems(spec: Any) -> Iterator[str]:
    """Yield each problem of one item of ``data.transforms``: the value, the rule, what is allowed, a close spelling."""
    if not isinstance(spec, dict) or TARGET not in spec:
        yield f"{_shown(spec)} names no transform; must be a mapping with '{TARGET}: {PREFIX}NAME'"
        return
    target = spec[TARGET]
    name = target.removeprefix(PREFIX) if type(target) is str else ""
    if name not in TRANSFORMS:
        reason = "; its result depends on more than image and seed" if name in UNREPEATABLE else ""
        allowed = f"allowed: {PREFIX}NAME, where NAME is one of {', '.join(sorted(TRANSFORMS))}"
        yield f"{TARGET} {_shown(target)} is not allowed{did_you_mean(name, TRANSFORMS)}{reason}; {allowed}"
        return
    for argument, value in spec.items():
        if argument != TARGET:
            yield from _argument_problems(name, argument, value)


def _argument_problems(name: str, argument: Any, value: Any) -> Iterator[str]:
    rules, place = TRANSFORMS[name], f"{PREFIX}{name}"
    rule = rules.get(argument) if type(argument) is str else None
    if rule is None:
        close = did_you_mean(argument, rules) if type(argument) is str else ""
        allowed = ", ".join(rules) or "none"
        text = f"{_shown(argument)}, here {_shown(value)}, is not an allowed argument{close}"
        yield f"{place}: {text}; allowed: {allowed}"
    elif not rule.allows(value):
        close = did_you_mean(value, map(str, rule.choices)) if type(value) is str else ""
        yield f"{place}: {argument}: {_shown(value)} is not allowed{close}; allowed: {rule.describe()}"


def _holds_numbers(value: Any, depth: int) -> bool:
    """Return whether ``value`` is a finite number, or a list of them and nulls nested at most ``depth`` times."""
    if type(value) in (list, tuple):
        return depth > 0 and all(part is None or _holds_numbers(part, depth - 1) for part in value)
    return type(value) in (int, float) and math.isfinite(value)


def _shown(value: Any) -> str:
    text = str(value).lower() if type(value) is bool else repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


NUMBERS = ArgumentRule()
FLAG = ArgumentRule(choices=(True, False))
NOT_LAZY = ArgumentRule(choices=(False,))
"""Lazy transforms need MONAI's metadata tracking, which is off."""
CPU = ArgumentRule(choices=("cpu",))
"""Loader workers are forked, and a forked process cannot use a GPU."""
DTYPE = ArgumentRule(choices=("float16", "float32", "float64"))
SAMPLING = ArgumentRule(choices=("nearest", "bilinear", "bicubic", 0, 1, 2, 3, 4, 5))
BORDER = ArgumentRule(
    choices=(
        *("zeros", "border", "reflection"),
        *("reflect", "grid-mirror", "constant", "grid-constant", "nearest", "mirror", "grid-wrap", "wrap"),
    )
)
"""The first three are for named modes of sampling, the others for splines."""
INTERPOLATION = ArgumentRule(choices=("nearest", "nearest-exact", "linear", "bilinear", "bicubic", "trilinear", "area"))
PADDING = ArgumentRule(
    choices=(
        *("constant", "edge", "linear_ramp", "maximum", "mean", "median", "minimum"),
        *("reflect", "symmetric", "wrap", "replicate", "circular"),
    )
)
PAD_METHOD = ArgumentRule(choices=("symmetric", "end"))
GAUSSIAN = ArgumentRule(choices=("erf", "sampled", "scalespace"))


def _numbers(*names: str) -> dict[str, ArgumentRule]:
    return dict.fromkeys(names, NUMBERS)


def _flags(*names: str) -> dict[str, ArgumentRule]:
    return dict.fromkeys(names, FLAG)


_LAZY = {"lazy": NOT_LAZY}
_DTYPE = {"dtype": DTYPE}
_CPU = {"device": CPU}
_SAMPLING = {"mode": SAMPLING, "padding_mode": BORDER}
_ZOOM = (
    {"mode": INTERPOLATION, "padding_mode": PADDING}
    | _flags("align_corners", "keep_size")
    | _numbers("value", "constant_values")
    | _DTYPE
    | _LAZY
)
_ROTATE = _SAMPLING | _flags("align_corners", "keep_size") | _DTYPE | _LAZY
_RANGES = _numbers("rotate_range", "shear_range", "translate_range", "scale_range")
_PARAMS = _numbers("rotate_params", "shear_params", "translate_params", "scale_params")
_ELASTIC = _numbers("magnitude_range", "prob", "spatial_size") | _RANGES | _SAMPLING | _CPU
_PAD = {"mode": PADDING} | _numbers("value", "constant_values") | _LAZY
_SMOOTH_FIELD = (
    _numbers("spatial_size", "rand_size", "pad", "prob", "gamma")
    | {"mode": INTERPOLATION}
    | _flags("align_corners")
    | _CPU
)
_HOLES = _numbers("holes", "spatial_size", "max_holes", "max_spatial_size", "prob")
_SHARPENING = _numbers(*(f"sigma{number}_{axis}" for number in (1, 2) for axis in "xyz"))

SPATIAL: dict[str, dict[str, ArgumentRule]] = {
    "Affine": _PARAMS
    | _numbers("spatial_size")
    | _SAMPLING
    | _flags("normalized", "align_corners", "image_only")
    | _CPU
    | _DTYPE
    | _LAZY,
    "Flip": _numbers("spatial_axis") | _LAZY,
    "GridDistortion": _numbers("num_cells", "distort_steps") | _SAMPLING | _CPU,
    "Rand2DElastic": _numbers("spacing") | _ELASTIC,
    "Rand3DElastic": _numbers("sigma_range") | _ELASTIC,
    "RandAffine": _numbers("prob", "spatial_size") | _RANGES | _SAMPLING | _flags("cache_grid") | _CPU | _LAZY,
    "RandAxisFlip": _numbers("prob") | _LAZY,
    "RandFlip": _numbers("prob", "spatial_axis") | _LAZY,
    "RandGridDistortion": _numbers("num_cells", "prob", "distort_limit") | _SAMPLING | _CPU,
    "RandRotate": _numbers("range_x", "range_y", "range_z", "prob") | _ROTATE,
    "RandRotate90": _numbers("prob", "max_k", "spatial_axes") | _LAZY,
    "RandSimulateLowResolution": _numbers("prob", "zoom_range")
    | {"downsample_mode": INTERPOLATION, "upsample_mode": INTERPOLATION}
    | _flags("align_corners")
    | _CPU,
    "RandZoom": _numbers("prob", "min_zoom", "max_zoom") | _ZOOM,
    "Resize": _numbers("spatial_size", "anti_aliasing_sigma")
    | {"size_mode": ArgumentRule(choices=("all", "longest")), "mode": INTERPOLATION}
    | _flags("align_corners", "anti_aliasing")
    | _DTYPE
    | _LAZY,
    "Rotate": _numbers("angle") | _ROTATE,
    "Rotate90": _numbers("k", "spatial_axes") | _LAZY,
    "Zoom": _numbers("zoom") | _ZOOM,
}
"""``monai.transforms.spatial.array``."""

INTENSITY: dict[str, dict[str, ArgumentRule]] = {
    "AdjustContrast": _numbers("gamma") | _flags("invert_image", "retain_stats"),
    "ClipIntensityPercentiles": _numbers("lower", "upper", "sharpness_factor") | _flags("channel_wise") | _DTYPE,
    "GaussianSharpen": _numbers("sigma1", "sigma2", "alpha") | {"approx": GAUSSIAN},
    "GaussianSmooth": _numbers("sigma") | {"approx": GAUSSIAN},
    "GibbsNoise": _numbers("alpha"),
    "HistogramNormalize": _numbers("num_bins", "min", "max") | _DTYPE,
    "IntensityRemap": _numbers("kernel_size", "slope"),
    "KSpaceSpikeNoise": _numbers("loc", "k_intensity"),
    "MedianSmooth": _numbers("radius"),
    "NormalizeIntensity": _numbers("subtrahend", "divisor") | _flags("nonzero", "channel_wise") | _DTYPE,
    "RandAdjustContrast": _numbers("prob", "gamma") | _flags("invert_image", "retain_stats"),
    "RandBiasField": _numbers("degree", "coeff_range", "prob") | _DTYPE,
    "RandCoarseDropout": _HOLES | _numbers("fill_value") | _flags("dropout_holes"),
    "RandCoarseShuffle": _HOLES,
    "RandGaussianNoise": _numbers("prob", "mean", "std") | _flags("sample_std") | _DTYPE,
    "RandGaussianSharpen": _SHARPENING | _numbers("alpha", "prob") | {"approx": GAUSSIAN},
    "RandGaussianSmooth": _numbers("sigma_x", "sigma_y", "sigma_z", "prob") | {"approx": GAUSSIAN},
    "RandGibbsNoise": _numbers("prob", "alpha"),
    "RandHistogramShift": _numbers("num_control_points", "prob"),
    "RandKSpaceSpikeNoise": _numbers("prob", "intensity_range") | _flags("channel_wise"),
    "RandRicianNoise": _numbers("prob", "mean", "std") | _flags("channel_wise", "relative", "sample_std") | _DTYPE,
    "RandScaleIntensity": _numbers("factors", "prob") | _flags("channel_wise") | _DTYPE,
    "RandScaleIntensityFixedMean": _numbers("prob", "factors")
    | _flags("fixed_mean", "preserve_range", "channel_wise")
    | _DTYPE,
    "RandShiftIntensity": _numbers("offsets", "prob") | _flags("safe", "channel_wise"),
    "RandStdShiftIntensity": _numbers("factors", "prob") | _flags("nonzero", "channel_wise") | _DTYPE,
    "ScaleIntensity": _numbers("minv", "maxv", "factor") | _flags("channel_wise") | _DTYPE,
    "ScaleIntensityFixedMean": _numbers("factor") | _flags("preserve_range", "fixed_mean", "channel_wise") | _DTYPE,
    "ScaleIntensityRange": _numbers("a_min", "a_max", "b_min", "b_max") | _flags("clip") | _DTYPE,
    "ScaleIntensityRangePercentiles": _numbers("lower", "upper", "b_min", "b_max")
    | _flags("clip", "relative", "channel_wise")
    | _DTYPE,
    "ShiftIntensity": _numbers("offset") | _flags("safe"),
    "StdShiftIntensity": _numbers("factor") | _flags("nonzero", "channel_wise") | _DTYPE,
    "ThresholdIntensity": _numbers("threshold", "cval") | _flags("above"),
}
"""``monai.transforms.intensity.array``."""

CROP_AND_PAD: dict[str, dict[str, ArgumentRule]] = {
    "BorderPad": _numbers("spatial_border") | _PAD,
    "CenterScaleCrop": _numbers("roi_scale") | _LAZY,
    "CenterSpatialCrop": _numbers("roi_size") | _LAZY,
    "CropForeground": _numbers("channel_indices", "margin", "k_divisible") | _flags("allow_smaller") | _PAD,
    "DivisiblePad": _numbers("k") | {"method": PAD_METHOD} | _PAD,
    "Pad": _numbers("to_pad") | _PAD,
    "RandScaleCrop": _numbers("roi_scale", "max_roi_scale") | _flags("random_center", "random_size") | _LAZY,
    "RandSpatialCrop": _numbers("roi_size", "max_roi_size") | _flags("random_center", "random_size") | _LAZY,
    "ResizeWithPadOrCrop": _numbers("spatial_size") | {"method": PAD_METHOD} | _PAD,
    "SpatialCrop": _numbers("roi_center", "roi_size", "roi_start", "roi_end") | _LAZY,
    "SpatialPad": _numbers("spatial_size") | {"method": PAD_METHOD} | _PAD,
}
"""``monai.transforms.croppad.array``."""

SMOOTH_FIELD: dict[str, dict[str, ArgumentRule]] = {
    "RandSmoothDeform": _numbers("spatial_size", "rand_size", "pad", "prob", "def_range")
    | {"field_mode": INTERPOLATION, "grid_mode": SAMPLING, "grid_padding_mode": BORDER}
    | _flags("align_corners", "grid_align_corners")
    | _CPU,
    "RandSmoothFieldAdjustContrast": _SMOOTH_FIELD,
    "RandSmoothFieldAdjustIntensity": _SMOOTH_FIELD,
}
"""``monai.transforms.smooth_field.array``."""

TRANSFORMS: Mapping[str, Mapping[str, ArgumentRule]] = SPATIAL | INTENSITY | CROP_AND_PAD | SMOOTH_FIELD
"""The rules of all allowed transforms: by name, those of the arguments by name."""
