from pathlib import Path

import pytest

from hsadml_dist.config.yaml_loader import dump_recipe, load_recipe, print_config
from hsadml_dist.errors import ConfigError, Fault

GOOD = "data: {shards: out/x}\ntrain: {steps: 5}\n"


@pytest.fixture
def recipe(tmp_path):
    def write(text, name="recipe.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def faults(path, overrides=(), find=None):
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides, find)
    return [str(fault) for fault in caught.value.faults]


def one(path, overrides=()):
    found = faults(path, overrides)
    assert len(found) == 1, found
    return found[0]


def test_values_and_defaults_with_provenance(recipe):
    loaded = load_recipe(recipe("data:\n  shards: out/x\noptim:\n  lr: 1e-3\n"), ["train.steps=7"])
    assert (loaded.recipe.data.shards, loaded.recipe.optim.lr, loaded.recipe.train.steps) == ("out/x", 0.001, 7)
    assert loaded.provenance["data.shards"] == "recipe.yaml:2"
    assert loaded.provenance["optim.lr"] == "recipe.yaml:4"
    assert loaded.provenance["train.steps"] == "command line"
    assert loaded.provenance["train.seed"] == "default"


def test_all_faults_come_at_once_each_with_its_line(recipe):
    path = recipe("data: {shards: out/x}\ntrain:\n  global_bach: 3\n  seed: abc\n  steps: 5\noptm: {}\n")
    assert faults(path, ["model.dropout=2"]) == [
        "recipe.yaml:3: train.global_bach: unknown setting (did you mean 'global_batch'?)",
        "recipe.yaml:6: optm: unknown section (did you mean 'optim'?)",
        "recipe.yaml:4: train.seed: 'abc' is not an integer",
        "command line: model.dropout: 2 must be at most 0.95",
    ]


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("train.seed=true", "true is not an integer"),
        ("train.seed=1.0", "1.0 is not an integer"),
        ("train.seed='3'", "'3' is not an integer"),
        ("train.seed=010", "010 may mean an octal number; write it without the leading zero"),
        ("train.seed=", "null is not an integer"),
        ("train.seed=-1", "-1 must be at least 0"),
        ("train.seed=[1]", "[1] is not an integer"),
        ("train.seed=!!python/name:os.system 1", "'1' cannot be read with the tag python/name:os.system"),
        ("optim.lr=true", "true is not a number"),
        ("optim.lr=0", "0 must be greater than 0"),
        ("optim.ema_decay=1", "1 must be less than 1"),
        ("optim.ema_decay=0", "0 must be greater than 0"),
        ("optim.layer_decay=1.1", "1.1 must be at most 1"),
        ("optim.lr=1e999", "1e999 is too large for a number"),
        ("optim.lr=.nan", "'.nan' is not a number"),
        ("run.ledger=1", "1 is not true or false"),
        ("run.ledger=yes", "'yes' is not true or false"),
        ("model.name=12", "12 is not text (quote it)"),
        ("engine.clip_norm=x", "'x' is not a number or null"),
        (
            "loss.name=spherefase",
            "'spherefase' is not one of 'softmax', 'sphereface', 'sphereface_r_v1', 'sphereface_r_v2', 'cosface', "
            "'arcface', 'sphereface2', 'adaface' (did you mean 'sphereface'?)",
        ),
        ("data.val_fold=[1", "is not YAML: expected ',' or ']', but got '<stream end>'"),
        ("data.fold=*x", "is not YAML: aliases are refused; write the value out"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(recipe, setting, problem):
    key = setting.partition("=")[0]
    assert one(recipe(GOOD), [setting]) == f"command line: {key}: {problem}"


def test_integers_pass_for_floats_and_the_last_override_counts(recipe):
    loaded = load_recipe(recipe(GOOD), ["optim.lr=1", "optim.lr=2"])
    assert loaded.recipe.optim.lr == 2.0
    assert isinstance(loaded.recipe.optim.lr, float)


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("steps=3", "steps: unknown setting (did you mean 'train.steps'?)"),
        ("train.stebs=3", "train.stebs: unknown setting (did you mean 'steps'?)"),
        ("train", "train: is not of the form key=value"),
    ],
)
def test_a_wrong_override_is_a_fault_of_the_command_line(recipe, override, fault):
    assert one(recipe(GOOD), [override]) == f"command line: {fault}"


def test_duplicates_are_refused(recipe):
    path = recipe(GOOD + "train: {steps: 6}\nloss:\n  scale: 3\n  scale: 4\n")
    assert faults(path) == [
        "recipe.yaml:3: train: given twice, first in line 2",
        "recipe.yaml:6: loss.scale: given twice, first in line 5",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "recipe.yaml: data.shards: must be given"),
        ("- a\n", "recipe.yaml: recipe: must be a mapping of sections, such as 'train:'"),
        ("data: {shards: x\ntrain:\n", "recipe.yaml:2: recipe: is not YAML: expected ',' or '}', but got ':'"),
        ("data: 3\ntrain: {steps: 1}\n", "recipe.yaml:1: data: must be a mapping of settings"),
        ("data: &a {shards: x}\ntrain: *a\n", "recipe.yaml:2: recipe: is not YAML: aliases are refused"),
    ],
)
def test_files_that_are_no_recipes(recipe, text, fault):
    assert any(found.startswith(fault) for found in faults(recipe(text)))


def test_files_that_cannot_be_read(tmp_path):
    assert one(tmp_path / "no.yaml").endswith("recipe: cannot be read: No such file or directory")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    assert one(tmp_path / "bytes.yaml").endswith("recipe: cannot be read: it is no UTF-8 text")


def test_disagreements_stand_where_the_setting_does(recipe):
    path = recipe("data: {shards: x}\ntrain:\n  epochs: 2\n  steps: 3\n")
    assert one(path).startswith("recipe.yaml:4: train.steps: exactly one of")


def test_what_only_follows_from_another_fault_is_not_told(recipe):
    assert one(recipe("data: {shards: x}\ntrain: {steps: x}\n")).endswith("'x' is not an integer or null")


def test_a_base_is_relative_to_its_file_and_overridden(recipe, tmp_path):
    (tmp_path / "deep").mkdir()
    recipe("base: deep/middle.yaml\ntrain: {seed: 3}\n")
    recipe("base: ../first.yaml\nmodel: {dropout: 0.5}\ntrain: {seed: 2}\n", "deep/middle.yaml")
    recipe("data: {shards: s}\ntrain: {epochs: 4, seed: 1}\n", "first.yaml")
    loaded = load_recipe(tmp_path / "recipe.yaml")
    assert (loaded.recipe.train.seed, loaded.recipe.model.dropout, loaded.recipe.train.epochs) == (3, 0.5, 4)
    assert loaded.provenance["train.seed"] == "recipe.yaml:2"
    assert loaded.provenance["train.epochs"] == "first.yaml:2"


def test_a_cycle_of_bases_and_a_missing_base_are_refused(recipe):
    recipe("base: a.yaml\n", "b.yaml")
    assert one(recipe("base: b.yaml\n", "a.yaml")) == "b.yaml:1: base: 'a.yaml' is based on this file in turn"
    assert one(recipe("base: none.yaml\n")).startswith("recipe.yaml:1: base: 'none.yaml' does not exist")


def test_a_base_by_name_is_found_by_the_caller(recipe, tmp_path):
    first = recipe(GOOD, "first.yaml")

    def find(name: str) -> Path:
        if name != "first":
            raise ConfigError([Fault(where="command line", key="recipe", problem=f"no recipe {name!r}")])
        return first

    assert load_recipe(recipe("base: first\n"), find=find).recipe.train.steps == 5
    assert faults(recipe("base: other\n"), find=find) == ["recipe.yaml:1: base: no recipe 'other'"]


def test_a_length_replaces_the_other_length_of_a_layer_below(recipe):
    train = load_recipe(recipe("data: {shards: x}\ntrain: {epochs: 3}\n"), ["train.steps=2"]).recipe.train
    assert (train.steps, train.epochs) == (2, None)
    assert "both are" not in one(recipe(GOOD), ["train.steps=null"])
    assert load_recipe(recipe(GOOD), ["train.epochs=null"]).recipe.train.steps == 5


def test_transforms_of_monai_are_taken(recipe):
    path = recipe(GOOD.replace("}", ", transforms: [{_target_: monai.transforms.RandFlip, prob: 0.5}]}", 1))
    assert load_recipe(path).recipe.data.transforms == ({"_target_": "monai.transforms.RandFlip", "prob": 0.5},)


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        ("{prob: 1}", "item 1 must be a mapping with '_target_: monai.transforms.NAME'"),
        ("{_target_: os.system}", "item 1: _target_ 'os.system' must be a transform's name, monai.transforms.NAME"),
        (
            "{_target_: monai.transforms.utils.os.system}",
            "item 1: _target_ 'monai.transforms.utils.os.system' must be a transform's name, monai.transforms.NAME",
        ),
        (
            "{_target_: monai.transforms.RandFlip, a: [{b: '$1'}]}",
            "item 1: '$1' is an expression; expressions are refused",
        ),
        (
            "{_target_: monai.transforms.RandFlip, a: {_target_: os.system}}",
            "item 1: _target_ 'os.system' must be a transform's name, monai.transforms.NAME",
        ),
        ("3", "item 1 must be a mapping with '_target_: monai.transforms.NAME'"),
    ],
)
def test_anything_else_that_could_run_is_refused(recipe, item, problem):
    assert one(recipe(GOOD), [f"data.transforms=[{item}]"]) == f"command line: data.transforms: {problem}"


def test_what_is_dumped_is_loaded_unchanged(recipe, tmp_path):
    odd = "{_target_: monai.transforms.RandFlip, a: '010', b: 'yes', c: '1e-3', d: null, e: [1, 1.5e-9, true, 'ü: #']}"
    overrides = ["data.shards='2024'", f"data.transforms=[{odd}]", "engine.clip_norm=null", "optim.lr=1e-05"]
    first = load_recipe(recipe(GOOD), overrides).recipe
    dump_recipe(first, tmp_path / "config.yaml")
    second = load_recipe(tmp_path / "config.yaml").recipe
    assert second == first
    assert second.fingerprint() == first.fingerprint()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "recipe.yaml"]


def test_printed_settings_are_a_recipe_with_aligned_comments(recipe, tmp_path):
    loaded = load_recipe(recipe(GOOD), ["loss.scale=30"])
    text = print_config(loaded)
    assert "  scale: 30.0" in text
    lines = [line for line in text.splitlines() if "#" in line]
    assert len({line.index("#") for line in lines}) == 1
    assert len(lines) == len(loaded.provenance)
    assert next(line for line in lines if "shards" in line).endswith("# recipe.yaml:1")
    (tmp_path / "printed.yaml").write_text(text)
    assert load_recipe(tmp_path / "printed.yaml").recipe == loaded.recipe
