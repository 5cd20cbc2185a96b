from pathlib import Path

import pytest

from hsadml_dist.config.yaml_loader import load_recipe
from hsadml_dist.errors import ConfigError, DataError, RunError, UsageError
from hsadml_dist.jobs import prepare
from hsadml_dist.jobs.prepare import find_recipe, prepare_run, require_run_folder, resolve_run_folder, shipped_recipes

CONSTANT = ["optim.schedule=constant", "train.steps=100"]


def faults(*arguments):
    with pytest.raises(ConfigError) as caught:
        prepare_run(*arguments)
    return [str(fault) for fault in caught.value.faults]


def test_shipped_recipes_are_right_and_found_by_name():
    assert {"demo", "ce_mri"} <= shipped_recipes().keys()
    for name in shipped_recipes():
        load_recipe(find_recipe(name), find=find_recipe)


def test_a_path_is_found_and_a_wrong_name_gets_the_list(tmp_path):
    (tmp_path / "r.yaml").write_text("")
    assert find_recipe(str(tmp_path / "r.yaml")) == tmp_path / "r.yaml"
    with pytest.raises(ConfigError, match=r"no recipe 'demos'; shipped: ce_mri, demo.* \(did you mean 'demo'\?\)"):
        find_recipe("demos")
    with pytest.raises(ConfigError, match="no such file"):
        find_recipe("demos.yaml")


def test_the_run_folder_holds_the_whole_recipe_with_absolute_shards(recipe, tmp_path):
    run = prepare_run(recipe, ["optim.lr=0.5"], None, False, 4)
    stored = load_recipe(run / "config.yaml").recipe
    assert (stored.optim.lr, stored.train.global_batch) == (0.5, 12)
    assert stored.data.shards == str(tmp_path / "shards")


def test_a_wrong_deepspeed_json_is_refused_with_its_keys_before_anything_is_written(recipe):
    Path("ds.json").write_text('{"train_batch_size": 5, "optimizer": {"type": "Adam"}, "zero_optimisation": {}}')
    settings = ["engine.name=deepspeed", "engine.deepspeed_config=ds.json"]
    told = faults(recipe, settings, None, False, 2)
    assert [line.split(" ")[1] for line in told] == ["train_batch_size:", "optimizer:", "zero_optimisation:"]
    assert all(line.startswith("ds.json: ") for line in told)
    assert not Path("runs").exists()


def test_a_right_deepspeed_json_is_named_by_its_absolute_path(recipe, tmp_path):
    Path("ds.json").write_text('{"zero_optimization": {"overlap_comm": true}}')
    run = prepare_run(recipe, ["engine.name=deepspeed", "engine.deepspeed_config=ds.json"], None, False, 2)
    assert load_recipe(run / "config.yaml").recipe.engine.deepspeed_config == str(tmp_path / "ds.json")


def test_a_forgotten_deepspeed_is_told_at_once(recipe, monkeypatch):
    here = {"torch": True, "deepspeed": None}
    monkeypatch.setattr(prepare, "find_spec", here.get)
    (line,) = faults(recipe, ["engine.name=deepspeed"], None, False, 2)
    assert line.startswith("recipe: engine.name: 'deepspeed' needs the package deepspeed")
    here["torch"] = None
    prepare_run(recipe, ["engine.name=deepspeed"], None, False, 2)


def test_images_that_the_backbone_cannot_take_are_refused(recipe):
    (line,) = faults(recipe, ["model.name=monai_vit_base_16", "data.image_size=100"], None, False, 2)
    assert line.startswith("command line: data.image_size: 100 does not fit monai_vit_base_16")


def test_the_same_settings_mean_the_same_folder(recipe):
    run = prepare_run(recipe, [], None, False, 1)
    assert run.parent == Path("runs") and run.name.startswith("mine-")
    assert prepare_run(recipe, ["checkpoint.every=3"], None, False, 2) == run
    assert resolve_run_folder(recipe, ["train.seed=1"], None, False, 1) != run
    assert load_recipe(run / "config.yaml").recipe.checkpoint.every == 3


def test_planning_writes_nothing_and_needs_no_shards(recipe, tmp_path):
    assert resolve_run_folder(recipe, ["data.shards=nowhere"], Path("r"), True, 1) == Path("r-smoke")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml", "shards"]


def test_ranks_that_cannot_share_a_batch_are_refused_with_those_that_can(recipe):
    assert faults(recipe, [], None, False, 5) == [
        "mine.yaml:2: train.global_batch: 12 cannot be shared evenly by 5 ranks; "
        "numbers of ranks that can: 1, 2, 3, 4, 6"
    ]
    with pytest.raises(ConfigError):
        resolve_run_folder(recipe, [], None, False, 5)


def test_missing_shards_and_folds_are_refused(recipe):
    with pytest.raises(DataError, match="nowhere"):
        prepare_run(recipe, ["data.shards=nowhere"], None, False, 1)
    assert faults(recipe, ["data.fold=7", "data.val_fold=5"], None, False, 1) == [
        "command line: data.fold: 7 is no fold of shards; its folds: 0, 1, 2, 3, 4",
        "command line: data.val_fold: 5 is no fold of shards; its folds: 0, 1, 2, 3, 4",
    ]
    assert not Path("runs").exists()


def test_persons_to_learn_are_refused_before_anything_is_written_where_the_shards_do_not_allow_it(recipe, shards):
    assert faults(recipe, ["data.label=person"], None, False, 1) == [
        "command line: data.label: 'person' cannot be judged on folds split by person: training knows nobody of the "
        "test fold; build the shards with --split-by slice or exam"
    ]
    nameless = shards("nameless", unit="slice", person=None)
    assert (
        "10 of 10 slices name none"
        in faults(recipe, ["data.label=person", f"data.shards={nameless}"], None, True, 1)[0]
    )
    assert not Path("runs").exists()
    sliced = shards("sliced", unit="slice")
    prepare_run(recipe, ["data.label=person", f"data.shards={sliced}"], Path("run"), False, 1)
    assert "data.label" in faults(recipe, [f"data.shards={sliced}"], Path("run"), False, 1)[0]


def test_another_identity_is_refused_key_by_key(recipe):
    run = prepare_run(recipe, [], Path("run"), False, 1)
    before = (run / "config.yaml").read_bytes()
    assert faults(recipe, ["train.seed=1", "train.epochs=4", "data.workers=1"], run, False, 1) == [
        "command line: train.epochs: 4, but run was started with 3: the cosine schedule ends there, so another length "
        "is another curve from the first step on; for a new run give another --run",
        "command line: train.seed: 1, but run was started with 0: it is part of what a run is; "
        "for a new run give another --run",
    ]
    assert (run / "config.yaml").read_bytes() == before


def test_a_constant_schedule_may_grow_but_not_shrink(recipe):
    run = prepare_run(recipe, CONSTANT, Path("run"), False, 1)
    prepare_run(recipe, [*CONSTANT, "train.steps=150"], run, False, 1)
    assert load_recipe(run / "config.yaml").recipe.train.steps == 150
    assert "a run may grow but not shrink" in faults(recipe, CONSTANT, run, False, 1)[0]


def test_other_samples_are_refused_but_moved_ones_are_not(recipe, shards, tmp_path):
    run = prepare_run(recipe, [], Path("run"), False, 1)
    other = shards("other", samples=11)
    assert "its samples differ" in faults(recipe, [f"data.shards={other}"], run, False, 1)[0]
    (tmp_path / "shards").rename(tmp_path / "moved")
    prepare_run(recipe, ["data.shards=moved"], run, False, 1)
    assert load_recipe(run / "config.yaml").recipe.data.shards == str(tmp_path / "moved")


def test_a_smoke_run_is_short_and_starts_anew_beside_the_run(recipe):
    smoke = prepare_run(recipe, ["train.epochs=9"], Path("run"), True, 1)
    assert smoke == Path("run-smoke")
    stored = load_recipe(smoke / "config.yaml").recipe
    assert (stored.train.steps, stored.train.epochs, stored.checkpoint.every) == (2, None, 1)
    (smoke / "old").write_text("")
    prepare_run(recipe, ["train.seed=5"], Path("run"), True, 1)
    assert [path.name for path in smoke.iterdir()] == ["config.yaml"]
    assert (
        resolve_run_folder(recipe, [], None, True, 1).name
        == resolve_run_folder(recipe, [], None, False, 1).name + "-smoke"
    )


@pytest.mark.parametrize("smoke", [False, True])
def test_a_folder_with_other_files_is_left_alone(recipe, smoke):
    folder = Path("run-smoke" if smoke else "run")
    folder.mkdir()
    (folder / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match="holds other files"):
        prepare_run(recipe, [], Path("run"), smoke, 1)
    assert (folder / "thesis.tex").exists()


def test_existing_run(recipe, tmp_path):
    run = prepare_run(recipe, [], Path("run"), False, 1)
    assert require_run_folder(run) == run
    for wrong in (tmp_path / "no", tmp_path):
        with pytest.raises(UsageError, match="run folder"):
            require_run_folder(wrong)


def test_a_folder_that_cannot_be_written_is_one_line(recipe):
    with pytest.raises(RunError, match=r"^run folder /proc/none/run: cannot be written: No such file or directory$"):
        prepare_run(recipe, [], Path("/proc/none/run"), False, 1)
