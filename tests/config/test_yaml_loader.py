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
    return caught.value.faults


def places(path, overrides=(), find=None):
    return [(fault.where, fault.key) for fault in faults(path, overrides, find)]


def only_fault(path, overrides=()):
    (fault,) = faults(path, overrides)
    assert "\n" not in str(fault)
    return fault


def test_load_recipe_returns_values_defaults_and_provenance(recipe):
    loaded = load_recipe(recipe("data:\n  shards: out/x\noptim:\n  lr: 1e-3\n"), ["train.steps=7"])
    assert (loaded.recipe.data.shards, loaded.recipe.optim.lr, loaded.recipe.train.steps) == ("out/x", 0.001, 7)
    assert loaded.provenance["data.shards"] == "recipe.yaml:2"
    assert loaded.provenance["optim.lr"] == "recipe.yaml:4"
    assert loaded.provenance["train.steps"] == "command line"
    assert loaded.provenance["train.seed"] == "default"


def test_all_faults_are_reported_with_line_value_and_spelling(recipe):
    path = recipe("data: {shards: out/x}\ntrain:\n  global_bach: 3\n  seed: abc\n  steps: 5\noptm: {}\n")
    found = {(fault.where, fault.key): fault.problem for fault in faults(path, ["model.dropout=2"])}
    assert found.keys() == {
        ("recipe.yaml:3", "train.global_bach"),
        ("recipe.yaml:6", "optm"),
        ("recipe.yaml:4", "train.seed"),
        ("command line", "model.dropout"),
    }
    assert "'global_batch'" in found["recipe.yaml:3", "train.global_bach"]
    assert "'optim'" in found["recipe.yaml:6", "optm"]
    assert "'abc'" in found["recipe.yaml:4", "train.seed"]
    assert "0.95" in found["command line", "model.dropout"]


@pytest.mark.parametrize(
    ("setting", "facts"),
    [
        ("train.seed=true", ["true", "integer"]),
        ("train.seed=1.0", ["1.0", "integer"]),
        ("train.seed='3'", ["'3'", "integer"]),
        ("train.seed=010", ["010", "octal"]),
        ("train.seed=", ["null", "integer"]),
        ("train.seed=-1", ["-1", "at least 0"]),
        ("train.seed=[1]", ["[1]", "integer"]),
        ("train.seed=!!python/name:os.system 1", ["'1'", "python/name:os.system"]),
        ("optim.lr=true", ["true", "number"]),
        ("optim.lr=0", ["0", "greater than 0"]),
        ("optim.ema_decay=1", ["1", "less than 1"]),
        ("optim.ema_decay=0", ["0", "greater than 0"]),
        ("optim.layer_decay=1.1", ["1.1", "at most 1"]),
        ("optim.beta1=1", ["1", "less than 1"]),
        ("optim.beta2=1", ["1", "less than 1"]),
        ("loss.margin=0.5", ["0.5", "at least 1", "4"]),
        ("optim.lr=1e999", ["1e999", "too large"]),
        ("optim.lr=.nan", ["'.nan'", "number"]),
        ("run.ledger=1", ["1", "true or false"]),
        ("run.ledger=yes", ["'yes'", "true or false"]),
        ("model.name=12", ["12", '"12"']),
        ("model.freeze=[1]", ["[1]", "list", "null"][:2]),
        ("model.freeze=backbone.stem", ["'backbone.stem'", "list"]),
        ("model.batch_norm=grouped", ["'grouped'", "'keep'", "'group'", "'sync'"]),
        ("engine.clip_norm=x", ["'x'", "number", "null"]),
        ("loss.name=spherefase", ["'spherefase'", "'softmax'", "'adaface'", "(did you mean 'sphereface'?)"]),
        ("data.transforms=[3]", ["[3]", "list of mappings"]),
        ("data.transforms=[{_target_: os.system}]", ["'os.system'"]),
        ("data.val_fold=[1", ["YAML"]),
        ("data.fold=*x", ["aliases"]),
        (f"data.fold={'[' * 5000}{']' * 5000}", ["YAML", "20"]),
        (f"data.fold={'{a: ' * 21}1{'}' * 21}", ["YAML", "20"]),
    ],
)
def test_invalid_value_is_reported_with_what_is_allowed(recipe, setting, facts):
    fault = only_fault(recipe(GOOD), [setting])
    assert (fault.where, fault.key) == ("command line", setting.partition("=")[0])
    assert all(fact in fault.problem for fact in facts), fault


def test_integer_is_accepted_for_float_and_last_override_counts(recipe):
    loaded = load_recipe(recipe(GOOD), ["optim.lr=1", "optim.lr=2"])
    assert loaded.recipe.optim.lr == 2.0
    assert isinstance(loaded.recipe.optim.lr, float)


@pytest.mark.parametrize(
    ("override", "key", "fact"),
    [
        ("steps=3", "steps", "'train.steps'"),
        ("train.stebs=3", "train.stebs", "'steps'"),
        ("optim.learning_rate=1", "optim.learning_rate", "'optim.lr'"),
        ("train.batch_size=8", "train.batch_size", "'train.global_batch'"),
        ("train", "train", "key=value"),
    ],
)
def test_invalid_override_is_reported_at_the_command_line(recipe, override, key, fact):
    fault = only_fault(recipe(GOOD), [override])
    assert (fault.where, fault.key) == ("command line", key)
    assert fact in fault.problem


def test_duplicate_keys_are_refused_with_both_lines(recipe):
    found = faults(recipe(GOOD + "train: {steps: 6}\nloss:\n  scale: 3\n  scale: 4\n"))
    assert [(fault.where, fault.key) for fault in found] == [
        ("recipe.yaml:3", "train"),
        ("recipe.yaml:6", "loss.scale"),
    ]
    assert "line 2" in found[0].problem and "line 5" in found[1].problem


@pytest.mark.parametrize(
    ("text", "where", "key"),
    [
        ("", "recipe.yaml", "data.shards"),
        ("- a\n", "recipe.yaml", "recipe"),
        ("data: {shards: x\ntrain:\n", "recipe.yaml:2", "recipe"),
        ("data: 3\ntrain: {steps: 1}\n", "recipe.yaml:1", "data"),
        ("data: &a {shards: x}\ntrain: *a\n", "recipe.yaml:2", "recipe"),
    ],
)
def test_file_that_is_not_a_recipe_is_refused(recipe, text, where, key):
    assert (where, key) in places(recipe(text))


def test_unreadable_file_is_reported(tmp_path):
    fault = only_fault(tmp_path / "no.yaml")
    assert fault.key == "recipe" and "No such file" in fault.problem
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    fault = only_fault(tmp_path / "bytes.yaml")
    assert fault.key == "recipe" and "UTF-8" in fault.problem


def test_conflict_is_reported_at_the_line_of_the_setting(recipe):
    assert places(recipe("data: {shards: x}\ntrain:\n  epochs: 2\n  steps: 3\n")) == [("recipe.yaml:4", "train.steps")]


@pytest.mark.parametrize(
    "sections",
    [
        "train: {steps: x}",
        "train: {steps: 1, epochs: x}",
        "train: {steps: 1, global_batch: x}\nengine: {accumulate: 5}",
    ],
)
def test_conflict_with_a_faulty_setting_is_not_reported(recipe, sections):
    assert "'x'" in only_fault(recipe(f"data: {{shards: x}}\n{sections}\n")).problem


def test_base_is_relative_to_its_file_and_overridden(recipe, tmp_path):
    (tmp_path / "deep").mkdir()
    recipe("base: deep/middle.yaml\ntrain: {seed: 3}\n")
    recipe("base: ../first.yaml\nmodel: {dropout: 0.5}\ntrain: {seed: 2}\n", "deep/middle.yaml")
    recipe("data: {shards: s}\ntrain: {epochs: 4, seed: 1}\n", "first.yaml")
    loaded = load_recipe(tmp_path / "recipe.yaml")
    assert (loaded.recipe.train.seed, loaded.recipe.model.dropout, loaded.recipe.train.epochs) == (3, 0.5, 4)
    assert loaded.provenance["train.seed"] == "recipe.yaml:2"
    assert loaded.provenance["train.epochs"] == "first.yaml:2"


def test_cyclic_and_missing_bases_are_refused(recipe):
    recipe("base: a.yaml\n", "b.yaml")
    assert places(recipe("base: b.yaml\n", "a.yaml")) == [("b.yaml:1", "base")]
    fault = only_fault(recipe("base: none.yaml\n"))
    assert (fault.where, fault.key) == ("recipe.yaml:1", "base") and "'none.yaml'" in fault.problem


def test_named_base_is_found_by_the_caller(recipe):
    first = recipe(GOOD, "first.yaml")

    def find(name: str) -> Path:
        if name != "first":
            raise ConfigError([Fault(where="command line", key="recipe", problem=f"no recipe {name!r}")])
        return first

    assert load_recipe(recipe("base: first\n"), find=find).recipe.train.steps == 5
    (fault,) = faults(recipe("base: other\n"), find=find)
    assert (fault.where, fault.key, fault.problem) == ("recipe.yaml:1", "base", "no recipe 'other'")


def test_length_replaces_the_other_length_of_a_lower_layer(recipe):
    train = load_recipe(recipe("data: {shards: x}\ntrain: {epochs: 3}\n"), ["train.steps=2"]).recipe.train
    assert (train.steps, train.epochs) == (2, None)
    assert places(recipe(GOOD), ["train.steps=null"]) == [("command line", "train.steps")]
    assert load_recipe(recipe(GOOD), ["train.epochs=null"]).recipe.train.steps == 5


def test_monai_transforms_are_accepted(recipe):
    path = recipe(GOOD.replace("}", ", transforms: [{_target_: monai.transforms.RandFlip, prob: 0.5}]}", 1))
    assert load_recipe(path).recipe.data.transforms == ({"_target_": "monai.transforms.RandFlip", "prob": 0.5},)


def test_transform_of_an_older_version_is_refused_unless_the_recipe_is_only_read(recipe):
    flip = "{_target_: monai.transforms.RandFlipd, keys: [image]}"
    path = recipe(GOOD.replace("}", f", transforms: [{flip}]}}", 1))
    assert places(path) == [("recipe.yaml:1", "data.transforms")]
    assert load_recipe(path, stored=True).recipe.data.transforms[0]["keys"] == ["image"]
    with pytest.raises(ConfigError):
        load_recipe(path, ["train.steps=0"], stored=True)


def test_all_refused_transforms_are_reported(recipe):
    transforms = "[{_target_: monai.transforms.LoadImage, reader: os.system}, {_target_: RandFlip, prob: x, z: 1}]"
    found = faults(recipe(GOOD), [f"data.transforms={transforms}"])
    assert [(fault.where, fault.key) for fault in found] == [("command line", "data.transforms")] * 3
    assert [fault.problem[:6] for fault in found] == ["item 1", "item 2", "item 2"]


def test_dumped_recipe_loads_unchanged(recipe, tmp_path):
    odd = "{_target_: monai.transforms.RandFlip, prob: 1.5e-9, spatial_axis: [1, 0, null], lazy: false}"
    overrides = [
        "data.shards='2024'",
        f"data.transforms=[{odd}]",
        "engine.clip_norm=null",
        "optim.lr=1e-05",
        "model.freeze=[backbone.stem, backbone.blocks.0, '010', 'yes', '1e-3', 'null', 'ü: #']",
    ]
    first = load_recipe(recipe(GOOD), overrides).recipe
    dump_recipe(first, tmp_path / "config.yaml")
    second = load_recipe(tmp_path / "config.yaml").recipe
    assert second == first
    assert second.fingerprint() == first.fingerprint()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "recipe.yaml"]


def test_printed_config_is_a_recipe_with_aligned_comments(recipe, tmp_path):
    loaded = load_recipe(recipe(GOOD), ["loss.scale=30"])
    text = print_config(loaded)
    assert "  scale: 30.0" in text
    lines = [line for line in text.splitlines() if "#" in line]
    assert len({line.index("#") for line in lines}) == 1
    assert len(lines) == len(loaded.provenance)
    assert next(line for line in lines if "shards" in line).endswith("# recipe.yaml:1")
    (tmp_path / "printed.yaml").write_text(text)
    assert load_recipe(tmp_path / "printed.yaml").recipe == loaded.recipe


def test_key_of_an_address_is_stored_for_the_user_only_and_not_printed(recipe, tmp_path):
    address = "https://me:pa ss-w0rd@host/a?key=t0ken"
    loaded = load_recipe(recipe(GOOD), [f"data.shards={address}"])
    dump_recipe(loaded.recipe, tmp_path / "config.yaml")
    assert load_recipe(tmp_path / "config.yaml").recipe.data.shards == address
    assert (tmp_path / "config.yaml").stat().st_mode & 0o077 == 0
    text = print_config(loaded)
    assert "w0rd" not in text and "t0ken" not in text
    assert "shards: https://host/a" in text
