import hashlib
import json
from dataclasses import replace

import pytest

from hsadml_dist.config import Recipe
from hsadml_dist.config.data import DataConfig
from hsadml_dist.config.keys import iter_settings
from hsadml_dist.config.train import TrainConfig

RECIPE = Recipe(data=DataConfig(shards="x"), train=TrainConfig(steps=4))
LATER = {"optim.layer_decay": 0.5, "optim.ema_decay": 0.9, "model.batch_norm": "group", "model.freeze": ("neck",)}


def changed(key, value):
    section, _, name = key.partition(".")
    return replace(RECIPE, **{section: replace(getattr(RECIPE, section), **{name: value})})


def test_a_run_that_was_made_before_a_setting_was_there_keeps_its_fingerprint():
    assert {key for key, _, rule in iter_settings(RECIPE) if rule.added_later} == LATER.keys()
    before = {key: value for key, value in RECIPE.identity().items() if key not in LATER}
    text = json.dumps(before, sort_keys=True, default=list)
    assert RECIPE.fingerprint() == hashlib.sha256(text.encode()).hexdigest()[:12]


@pytest.mark.parametrize("key", LATER)
def test_a_setting_that_came_later_counts_as_soon_as_it_is_used(key):
    other = changed(key, LATER[key])
    assert other.fingerprint() != RECIPE.fingerprint()
    assert other.identity()[key] != RECIPE.identity()[key], "a change on an existing run is seen"
