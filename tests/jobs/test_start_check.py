from pathlib import Path

import pytest

from hsadml_dist.config.yaml_loader import load_recipe
from hsadml_dist.errors import ConfigError
from hsadml_dist.jobs import start_check
from hsadml_dist.jobs.start_check import check_start
from hsadml_dist.jobs.submission import Submission, plan_job

CROP = "{_target_: monai.transforms.RandSpatialCrop, roi_size: 8, random_size: true}"
FIELD = "{_target_: monai.transforms.RandSmoothFieldAdjustContrast, spatial_size: [9, 9], rand_size: [3, 3]}"


def faults(check):
    with pytest.raises(ConfigError) as caught:
        check()
    return [(fault.where, fault.key) for fault in caught.value.faults]


def test_transforms_and_frozen_parts_are_checked_as_at_a_start(recipe):
    settings = [f"data.transforms=[{CROP}]", "model.freeze=[backbone.stam]"]
    loaded = load_recipe(Path(recipe), settings)
    assert faults(lambda: check_start(loaded)) == [
        ("command line", "data.transforms"),
        ("command line", "model.freeze"),
    ]
    check_start(load_recipe(Path(recipe), ["data.transforms=[{_target_: monai.transforms.RandFlip}]"]))


@pytest.mark.parametrize("missing", ["torch", "monai"])
def test_nothing_is_checked_without_torch_or_monai(recipe, monkeypatch, missing):
    monkeypatch.setattr(start_check, "find_spec", lambda name: name != missing)
    check_start(load_recipe(Path(recipe), ["model.freeze=[nothing]"]))


def test_recipe_without_own_parts_starts_no_process(recipe, monkeypatch):
    monkeypatch.setattr(start_check.sys, "executable", "/nowhere")
    check_start(load_recipe(Path(recipe), ["model.name=monai_vit_base_16", "data.image_size=96"]))


def test_job_with_a_transform_that_fails_is_not_planned(recipe, tmp_path):
    job = Submission(recipe=recipe, overrides=(f"data.transforms=[{FIELD}]",), nodes=1, tasks_per_node=2)
    assert faults(lambda: plan_job(job)) == [("command line", "data.transforms")]
    assert not (tmp_path / "runs").exists()
