import importlib
import inspect
import os

import pytest

from hsadml_dist.config.transform_rules import (
    CROP_AND_PAD,
    FLAG,
    INTENSITY,
    NOT_LAZY,
    NUMBERS,
    SAMPLING,
    SMOOTH_FIELD,
    SPATIAL,
    TRANSFORMS,
    UNREPEATABLE,
    ArgumentRule,
    transform_problems,
)
from hsadml_dist.data.transforms import DEFAULT_AUGMENTATION

MODULES = {"spatial": SPATIAL, "intensity": INTENSITY, "croppad": CROP_AND_PAD, "smooth_field": SMOOTH_FIELD}
LEFT_OUT = {
    "spatial": {
        *("SpatialResample", "ResampleToMatch", "Spacing", "Orientation"),  # need the image's affine
        *("AffineGrid", "RandAffineGrid", "RandDeformGrid", "Resample"),  # of a grid, not of an image
        *("GridSplit", "GridPatch", "RandGridPatch"),  # several images
    },
    "intensity": {
        *("MaskIntensity", "ForegroundMask", "ComputeHoVerMaps"),  # a mask, or a function located by its name
        *("DetectEnvelope", "UltrasoundConfidenceMapTransform"),  # for ultrasound
        "RandCoarseTransform",  # abstract
        *("RandIntensityRemap", "SavitzkyGolaySmooth"),  # not repeatable
    },
    "croppad": {
        *("Crop", "BoundingRect"),  # slices at the call; no image
        *("RandSpatialCropSamples", "RandWeightedCrop", "RandCropByPosNegLabel", "RandCropByLabelClasses"),  # several
    },
    "smooth_field": {"SmoothField"},  # no image
}
"""Decide about each new transform of MONAI: allow it, or leave it out for a reason."""


def module(name):
    from hsadml_dist.data.transforms import load_monai

    load_monai()
    return importlib.import_module(f"monai.transforms.{name}.array")


def parameters(name):
    """Return the parameters of a transform's constructor by name."""
    from hsadml_dist.data.transforms import load_monai

    return inspect.signature(getattr(load_monai(), name)).parameters


def spec(name, **arguments):
    return {"_target_": f"monai.transforms.{name}", **arguments}


@pytest.mark.parametrize("name", MODULES)
def test_every_array_transform_is_allowed_or_left_out_for_a_reason(name):
    assert set(module(name).__all__) == MODULES[name].keys() | LEFT_OUT[name]
    assert not MODULES[name].keys() & LEFT_OUT[name]


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
def test_arguments_exist_and_their_defaults_are_allowed(name):
    known = parameters(name)
    takes_more = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    for argument, rule in TRANSFORMS[name].items():
        assert argument in known or (takes_more and argument in ("value", "constant_values")), argument
        default = known[argument].default if argument in known else None
        default = str(default) if isinstance(default, str) else default  # MONAI's texts are enums
        written_as_text = argument == "dtype"  # the default is a class, which a recipe cannot name
        assert default is inspect.Parameter.empty or written_as_text or rule.allows(default), argument


def test_flags_are_those_with_a_truth_value_as_default():
    for name, rules in TRANSFORMS.items():
        for argument, parameter in parameters(name).items():
            if isinstance(parameter.default, bool) and argument in rules:
                assert rules[argument] in (FLAG, NOT_LAZY), (name, argument)


def test_no_choice_is_a_dotted_path_or_an_expression():
    texts = {choice for rules in TRANSFORMS.values() for rule in rules.values() for choice in rule.choices}
    assert all(text.replace("-", "_").isidentifier() for text in texts if isinstance(text, str))


@pytest.mark.parametrize("value", [None, 0, -1, 2.5, [], [1, None], (1, 2.0), [[1, 2], [3, 4]], [[[1]]]])
def test_numbers_and_lists_of_numbers_are_allowed(value):
    assert NUMBERS.allows(value)


@pytest.mark.parametrize("value", ["1", "", True, [True], ["1"], {}, [{}], [[[[1]]]], os.system, [os.system], b"1", 1j])
def test_anything_else_is_not_a_number(value):
    assert not NUMBERS.allows(value)


def test_choices_are_compared_with_their_types():
    assert all(SAMPLING.allows(value) for value in ("bilinear", 3, None))
    assert not any(SAMPLING.allows(value) for value in ("Bilinear", "os.system", 3.0, True, 6, ["bilinear"], {}))
    assert [FLAG.allows(value) for value in (True, False, None, 1, "true")] == [True, True, True, False, False]
    assert [NOT_LAZY.allows(value) for value in (False, True, 0)] == [True, False, False]


def test_text_that_only_equals_a_choice_is_refused():
    class Text(str):
        pass

    assert not ArgumentRule(choices=("area",)).allows(Text("area"))


@pytest.mark.parametrize("item", [*DEFAULT_AUGMENTATION, spec("RandFlip"), {"_target_": "RandFlip", "prob": 1}])
def test_allowed_transform_has_no_problem(item):
    assert list(transform_problems(item)) == []


@pytest.mark.parametrize(
    ("item", "facts"),
    [
        ([], ["[]", "_target_: monai.transforms.NAME"]),
        ({"prob": 0.5}, ["'prob'", "_target_: monai.transforms.NAME"]),
        (spec("RandFlop"), ["'monai.transforms.RandFlop'", "(did you mean 'RandFlip'?)", "RandAffine, RandAxisFlip"]),
        (spec("RandFlipd", keys=["image"]), ["(did you mean 'RandFlip'?)"]),
        (spec("LoadImage", reader="os.system"), ["'monai.transforms.LoadImage'", "RandAffine, RandAxisFlip"]),
        (spec("RandIntensityRemap"), ["'monai.transforms.RandIntensityRemap'", "image and seed"]),
        ({"_target_": 3}, ["_target_ 3", "monai.transforms.NAME"]),
        ({"_target_": ["monai.transforms.RandFlip"]}, ["['monai.transforms.RandFlip']"]),
        (spec("RandFlip", probe=1), ["RandFlip: 'probe'", "here 1", "(did you mean 'prob'?)", "prob, spatial_axis"]),
        (spec("RandFlip", _mode_="debug"), ["'_mode_'", "'debug'", "prob, spatial_axis"]),
        (spec("RandFlip", prob="often"), ["RandFlip: prob: 'often'", "number"]),
        (spec("RandFlip", prob=True), ["RandFlip: prob: true", "number"]),
        (spec("RandFlip", prob=float("nan")), ["RandFlip: prob: nan", "a finite number"]),
        (spec("RandZoom", max_zoom=[1, float("-inf")]), ["RandZoom: max_zoom: [1, -inf]", "a finite number"]),
        (spec("RandFlip", lazy=True), ["RandFlip: lazy: true", "allowed: false"]),
        (spec("RandAffine", mode="bilinaer"), ["mode: 'bilinaer'", "(did you mean 'bilinear'?)", "nearest, bilinear"]),
        (spec("RandAffine", mode={"_target_": "os.system"}), ["mode: {'_target_': 'os.system'}"]),
    ],
)
def test_problem_names_value_rule_allowed_and_spelling(item, facts):
    (problem,) = transform_problems(item)
    assert all(fact in problem for fact in facts), problem
    assert "\n" not in problem


def test_all_problems_of_an_item_are_reported():
    problems = list(transform_problems(spec("RandFlip", prob="x", spatial_axis="y", z=1)))
    assert [fact in problem for fact, problem in zip(("'x'", "'y'", "'z'"), problems, strict=True)] == [True] * 3


def test_long_value_is_shortened():
    (problem,) = transform_problems(spec("RandFlip", prob="x" * 10_000))
    assert len(problem) < 300


def test_unrepeatable_transforms_are_not_allowed():
    assert not set(UNREPEATABLE) & TRANSFORMS.keys()
