"""Hostile entries of ``data.transforms``: each is refused with a ConfigError, and no code that it names has run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hsadml_dist.config.transform_rules import TRANSFORMS
from hsadml_dist.config.yaml_loader import load_recipe, to_inline_yaml
from hsadml_dist.data.transforms import Augmentation, load_monai
from hsadml_dist.errors import ConfigError

pytestmark = pytest.mark.soak

MARKER = "MARKER"
"""Replaced by the path of a file that the attack would create."""
TOUCH = f"touch {MARKER}"
PYTHON = f"__import__('pathlib').Path('{MARKER}').touch()"
IMPORT = f"$import os; os.system('{TOUCH}')"
CALL = {"_target_": "os.system", "command": TOUCH}


def monai(name, /, **arguments):
    return {"_target_": f"monai.transforms.{name}", **arguments}


TARGETS = [
    "os.system",
    "builtins.exec",
    "subprocess.getoutput",
    "pydoc.locate",
    "monai.utils.module.instantiate",
    "monai.utils.instantiate",
    "monai.bundle.ConfigParser",
    "monai.transforms.os.system",
    "monai.transforms.utils.os.system",
    "monai.transforms.io.array.LoadImage",
    "monai.transforms.transform.os.system",
    "monai.transforms.RandFlip.__init__.__globals__",
    "monai.transforms.spatial.array.RandFlip",
    "monai.transforms.monai.transforms.RandFlip",
    "monai.transforms..RandFlip",
    "monai.transforms.__builtins__",
    "monai.transforms.__loader__",
    "monai.transforms.RandFlip\n",
    " monai.transforms.RandFlip",
    "monai.transforms.RandFlip()",
    "monai.transforms.RandFl\u0131p",
    "monai.transforms.\uff32andFlip",
    "MONAI.TRANSFORMS.RANDFLIP",
    "",
    f"${PYTHON}",
    "@transform",
    f"%{MARKER}",
]
LOCATED = [
    monai("LoadImage", reader="os.system", command=TOUCH),
    monai("LoadImage", reader=["os.system"], command=TOUCH),
    monai("LoadImage", reader="subprocess.Popen", args=["touch", MARKER]),
    monai("LoadImaged", keys=["image"], reader="os.system", command=TOUCH),
    monai("LoadImageDict", keys=["image"], reader="subprocess.check_output", args=["touch", MARKER]),
    monai("SaveImage", writer="os.system", output_dir=MARKER),
    monai("SaveImage", output_dir=MARKER, separate_folder=True),
    monai("SaveImaged", keys=["image"], output_dir=MARKER, writer="builtins.eval"),
    monai("WriteFileMapping", mapping_file_path=MARKER),
    monai("TorchVision", name="functional.os.system", command=TOUCH),
    monai("RandTorchVision", name="RandomApply", transforms=[CALL]),
    monai("TorchIO", name="Lambda", function=f"${PYTHON}"),
    monai("RandTorchIO", name="Lambda", function=f"${PYTHON}"),
    monai("CuCIM", name="os.system", command=TOUCH),
    monai("RandCuCIM", name="os.system", command=TOUCH),
    monai("ForegroundMask", threshold="otsu.__globals__"),
    monai("MaskIntensity", select_fn="os.system"),
    monai("CropForeground", select_fn="os.system"),
    monai("CropForeground", select_fn=CALL),
    monai("BoundingRect", select_fn="os.system"),
    monai("ImageFilter", filter="os.system"),
    monai("Lambda", func="os.system"),
    monai("Lambda", func=f"${PYTHON}", inv_func=f"${PYTHON}"),
    monai("RandLambda", func=f"$lambda image: {PYTHON}"),
    monai("Lambdad", keys=["image"], func=f"${PYTHON}"),
    monai("Compose", transforms=[CALL]),
    monai("Compose", transforms=[monai("LoadImage", reader="os.system", command=TOUCH)]),
    monai("OneOf", transforms=[CALL], weights=[1]),
    monai("SomeOf", transforms=[CALL]),
    monai("RandomOrder", transforms=[CALL]),
    monai("Invert", transform=CALL),
    monai("adaptor", function="os.system", outputs=TOUCH),
    monai("apply_transform", transform="os.system", data=TOUCH),
    monai("ToDevice", device="cuda"),
    monai("DataStats", additional_info=f"${PYTHON}", name=MARKER),
    monai("Identityd", keys=["image"]),
]
KEYS = [
    monai("RandFlip", **{key: value})
    for key in (
        "_mode_",
        "_disabled_",
        "_requires_",
        "_desc_",
        "_debug_",
        "__class__",
        "self",
        "**",
        "@a",
        "%a",
        "$a",
        "",
    )
    for value in ("debug", "callable", True, IMPORT, CALL, 1)
]
HOSTILE_VALUES = [
    "os.system",
    "subprocess.getoutput",
    "monai.data.ITKReader",
    TOUCH,
    f"${PYTHON}",
    IMPORT,
    "@marker",
    f"%{MARKER}",
    MARKER,
    CALL,
    {"_target_": "monai.transforms.LoadImage", "reader": "os.system", "command": TOUCH},
    {"_mode_": "callable"},
    {},
    ["os.system"],
    [[f"${PYTHON}"]],
    [0.5, CALL],
    [[[[0.5]]]],
    "empty",
    "cuda",
    "meta",
    "",
]
"""Refused for every argument of every allowed transform."""
TAGGED = [
    f"[!!python/object/apply:os.system ['{TOUCH}']]",
    f"[{{_target_: monai.transforms.RandFlip, prob: !!python/object/apply:os.system ['{TOUCH}']}}]",
    "[{_target_: !!python/name:os.system ''}]",
    "[{? !!python/name:os.system '' : 1}]",
    "[&a {_target_: monai.transforms.RandFlip, prob: *a}]",
]
"""YAML whose tags create objects, for a careless reader."""


def with_marker(value, marker):
    """Return an entry with the path of the marker in each text."""
    if isinstance(value, dict):
        return {key: with_marker(part, marker) for key, part in value.items()}
    if isinstance(value, list):
        return [with_marker(part, marker) for part in value]
    return value.replace(MARKER, str(marker)) if isinstance(value, str) else value


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """Return the path that an attack would create; the working directory must stay empty too."""
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    return empty / "marker"


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("data: {shards: out/x}\ntrain: {steps: 5}\n")
    return path


def assert_refused(entry, recipe, marker):
    """Hand an entry over by a recipe and from Python."""
    entry = with_marker(entry, marker)
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe, [f"data.transforms={to_inline_yaml([entry])}"])
    assert {fault.key for fault in caught.value.faults} == {"data.transforms"}
    assert len(str(caught.value).splitlines()) == len(caught.value.faults)
    with pytest.raises(ConfigError):
        Augmentation([entry])
    assert list(marker.parent.iterdir()) == []


def test_the_attack_is_real(marker):
    """Without the check, MONAI runs the command."""
    with pytest.warns(UserWarning):
        load_monai().LoadImage(reader="os.system", command=f"touch {marker}")
    assert marker.exists()


@pytest.mark.parametrize("target", TARGETS)
def test_hostile_target_is_refused(target, recipe, marker):
    for arguments in ({}, {"command": TOUCH}, {"source": PYTHON}, {"prob": 0.5}):
        assert_refused({"_target_": target} | arguments, recipe, marker)


@pytest.mark.parametrize("target", [None, 3, True, [], ["monai.transforms.RandFlip"], {}, CALL])
def test_target_that_is_no_text_is_refused(target, recipe, marker):
    assert_refused({"_target_": target}, recipe, marker)


@pytest.mark.parametrize("entry", LOCATED, ids=lambda entry: entry["_target_"])
def test_transform_that_runs_code_is_refused(entry, recipe, marker):
    assert_refused(entry, recipe, marker)


@pytest.mark.parametrize("entry", KEYS, ids=str)
def test_hostile_key_is_refused(entry, recipe, marker):
    assert_refused(entry, recipe, marker)


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
def test_hostile_value_is_refused_for_every_argument(name, recipe, marker):
    for argument in TRANSFORMS[name]:
        for value in HOSTILE_VALUES:
            assert_refused(monai(name, **{argument: value}), recipe, marker)


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
def test_object_from_python_is_refused_for_every_argument(name, marker):
    class Text(str):
        """Equals an allowed choice and does something else."""

        def __eq__(self, other):
            return True

        def __hash__(self):
            return hash(str(self))

    for argument in TRANSFORMS[name]:
        for value in (
            os.system,
            print,
            Path,
            object(),
            Text("os.system"),
            marker,
            lambda image: image,
            b"x",
            [os.system],
        ):
            with pytest.raises(ConfigError):
                Augmentation([monai(name, **{argument: value})])
    assert list(marker.parent.iterdir()) == []


def test_every_other_name_of_monai_is_refused(recipe, marker):
    names = sorted(set(dir(load_monai())) - TRANSFORMS.keys())
    assert "LoadImage" in names
    for name in names:
        assert_refused(monai(name), recipe, marker)


@pytest.mark.parametrize("text", TAGGED)
def test_tag_that_creates_an_object_is_refused(text, recipe, marker):
    with pytest.raises(ConfigError):
        load_recipe(recipe, [f"data.transforms={text.replace(MARKER, str(marker))}"])
    assert list(marker.parent.iterdir()) == []


@pytest.mark.parametrize("entry", [LOCATED[0], monai("RandAffine", mode=CALL), CALL], ids=str)
@pytest.mark.parametrize("command", ["train", "rank"])
def test_process_refuses_a_hostile_entry(entry, command, marker, tmp_path, tiny_shards):
    """A rank also refuses a run folder whose recipe was changed by hand."""
    run = tmp_path / "run"
    run.mkdir()
    transforms = to_inline_yaml([with_marker(entry, marker)])
    text = f"data: {{shards: '{tiny_shards}', transforms: {transforms}}}\ntrain: {{steps: 5}}\n"
    (run / "config.yaml").write_text(text)
    words = {
        "train": ["cli", "train", str(run / "config.yaml"), "--run", str(tmp_path / "new")],
        "rank": ["rank", str(run)],
    }
    package, *arguments = words[command]
    done = subprocess.run(
        [sys.executable, "-m", f"hsadml_dist.launch.{package}", *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "config.yaml:1: data.transforms: item 1: " in done.stderr
    assert list(marker.parent.iterdir()) == []
    assert not (tmp_path / "new").exists()
