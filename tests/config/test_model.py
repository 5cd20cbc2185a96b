import pytest

from hsadml_dist.config.io import dump_recipe, load_recipe
from hsadml_dist.errors import ConfigError

GOOD = "data: {shards: out/x}\ntrain: {steps: 5}\n"


def load(tmp_path, model):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{GOOD}model: {model}\n")
    return load_recipe(path).recipe


def test_parts_to_freeze_are_read_and_written_as_they_are(tmp_path):
    recipe = load(tmp_path, "{freeze: [backbone.stem, backbone.blocks.0], batch_norm: group}")
    assert (recipe.model.freeze, recipe.model.batch_norm) == (("backbone.stem", "backbone.blocks.0"), "group")
    dump_recipe(recipe, tmp_path / "again.yaml")
    assert load_recipe(tmp_path / "again.yaml").recipe == recipe


def test_as_they_are_published_is_the_default(tmp_path):
    model = load(tmp_path, "{}").model
    assert (model.batch_norm, model.freeze) == ("keep", ())


@pytest.mark.parametrize("model", ["{freeze: [backbone.stem]}", "{batch_norm: group}"])
def test_both_are_part_of_what_the_run_is(tmp_path, model):
    assert load(tmp_path, model).fingerprint() != load(tmp_path, "{}").fingerprint()


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("{batch_norm: grouped}", r"model\.batch_norm: 'grouped' is not .*keep.*group.*sync"),
        ("{freeze: [1]}", r"model\.freeze: .*is not"),
        ("{freeze: backbone.stem}", r"model\.freeze: .*is not"),
    ],
)
def test_other_values_are_refused(tmp_path, model, text):
    with pytest.raises(ConfigError, match=text) as fault:
        load(tmp_path, model)
    assert str(fault.value).count("\n") == 0
