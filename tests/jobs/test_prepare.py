from functools import partial
from pathlib import Path

import pytest

from hsadml_dist.checkpoint.layout import CheckpointName
from hsadml_dist.config.yaml_loader import load_recipe
from hsadml_dist.errors import ConfigError, DataError, RunError, RunLockedError, UsageError
from hsadml_dist.jobs import prepare
from hsadml_dist.jobs.prepare import (
    check_run,
    find_recipe,
    prepare_run,
    require_run_folder,
    resolve_run_folder,
    shipped_recipes,
)
from hsadml_dist.run.attempts import current_holder, start_attempt
from hsadml_dist.run.folder import RunFolder

CONSTANT = ["optim.schedule=constant", "train.steps=100"]


def faults(*arguments):
    """Return the faults that prepare_run reports, by key."""
    with pytest.raises(ConfigError) as caught:
        prepare_run(*arguments)
    assert all(fault.where in str(caught.value) for fault in caught.value.faults)
    return {fault.key: fault for fault in caught.value.faults}


def begun(*arguments):
    """Return a prepared run folder with a checkpoint, which pins the run's identity."""
    run = prepare_run(*arguments)
    (run / "checkpoints" / str(CheckpointName(1, 1))).mkdir(parents=True)
    return run


def test_shipped_recipes_are_valid_and_found_by_name():
    assert {"demo", "ce_mri", "identity"} <= shipped_recipes().keys()
    for name in shipped_recipes():
        load_recipe(find_recipe(name), find=find_recipe)


def test_find_recipe_accepts_paths_and_suggests_names(tmp_path):
    (tmp_path / "r.yaml").write_text("")
    assert find_recipe(str(tmp_path / "r.yaml")) == tmp_path / "r.yaml"
    with pytest.raises(ConfigError) as caught:
        find_recipe("demos")
    (fault,) = caught.value.faults
    assert fault.key == "recipe" and "'demos'" in fault.problem and "did you mean 'demo'?" in fault.problem
    assert all(name in fault.problem for name in shipped_recipes())
    with pytest.raises(ConfigError, match=r"demos\.yaml"):
        find_recipe("demos.yaml")


def test_prepare_run_writes_the_complete_recipe_with_absolute_shards(recipe, tmp_path):
    run = prepare_run(recipe, ["optim.lr=0.5"], None, False, 4)
    stored = load_recipe(run / "config.yaml").recipe
    assert (stored.optim.lr, stored.train.global_batch) == (0.5, 12)
    assert stored.data.shards == str(tmp_path / "shards")


def test_prepare_run_refuses_an_invalid_deepspeed_config_before_writing(recipe):
    Path("ds.json").write_text('{"train_batch_size": 5, "optimizer": {"type": "Adam"}, "zero_optimisation": {}}')
    settings = ["engine.name=deepspeed", "engine.deepspeed_config=ds.json"]
    found = faults(recipe, settings, None, False, 2)
    assert list(found) == ["train_batch_size", "optimizer", "zero_optimisation"]
    assert {fault.where for fault in found.values()} == {"ds.json"}
    assert not Path("runs").exists()


def test_prepare_run_stores_the_absolute_path_of_a_deepspeed_config(recipe, tmp_path):
    Path("ds.json").write_text('{"zero_optimization": {"overlap_comm": true}}')
    run = prepare_run(recipe, ["engine.name=deepspeed", "engine.deepspeed_config=ds.json"], None, False, 2)
    assert load_recipe(run / "config.yaml").recipe.engine.deepspeed_config == str(tmp_path / "ds.json")


def test_prepare_run_requires_deepspeed_only_where_torch_is_installed(recipe, monkeypatch):
    installed = {"torch": True, "deepspeed": None}
    monkeypatch.setattr(prepare, "find_spec", installed.get)
    found = faults(recipe, ["engine.name=deepspeed"], None, False, 2)
    assert list(found) == ["engine.name"] and "hsadml-dist[deepspeed]" in found["engine.name"].problem
    installed["torch"] = None
    prepare_run(recipe, ["engine.name=deepspeed"], None, False, 2)


def test_prepare_run_refuses_an_image_size_that_the_backbone_cannot_take(recipe):
    found = faults(recipe, ["model.name=monai_vit_base_16", "data.image_size=100"], None, False, 2)
    assert list(found) == ["data.image_size"]
    assert found["data.image_size"].where == "command line"
    assert "100" in found["data.image_size"].problem and "monai_vit_base_16" in found["data.image_size"].problem


def test_default_run_folder_depends_on_identity_settings_only(recipe):
    run = prepare_run(recipe, [], None, False, 1)
    assert run.parent == Path("runs") and run.name.startswith("mine-")
    assert prepare_run(recipe, ["checkpoint.every=3"], None, False, 2) == run
    assert resolve_run_folder(recipe, ["train.seed=1"], None, False, 1) != run
    assert load_recipe(run / "config.yaml").recipe.checkpoint.every == 3


def test_resolve_run_folder_writes_nothing_and_reads_no_shards(recipe, tmp_path):
    assert resolve_run_folder(recipe, ["data.shards=nowhere"], Path("r"), True, 1) == Path("r-smoke")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml", "shards"]


def test_world_size_that_does_not_divide_the_batch_is_refused_with_those_that_do(recipe):
    found = faults(recipe, [], None, False, 5)
    assert list(found) == ["train.global_batch"]
    assert found["train.global_batch"].where == "mine.yaml:2"
    problem = found["train.global_batch"].problem
    assert "12" in problem and "5 ranks" in problem and problem.endswith(" 1, 2, 3, 4, 6, 12")
    with pytest.raises(ConfigError):
        resolve_run_folder(recipe, [], None, False, 5)


def test_missing_shards_and_folds_are_refused_before_writing(recipe):
    with pytest.raises(DataError, match="nowhere"):
        prepare_run(recipe, ["data.shards=nowhere"], None, False, 1)
    found = faults(recipe, ["data.fold=7", "data.val_fold=5"], None, False, 1)
    assert list(found) == ["data.fold", "data.val_fold"]
    assert {fault.where for fault in found.values()} == {"command line"}
    assert found["data.fold"].problem.startswith("7 ") and found["data.fold"].problem.endswith(" 0, 1, 2, 3, 4")
    assert not Path("runs").exists()


def test_person_labels_need_shards_that_name_persons_and_split_them(recipe, shards):
    problem = faults(recipe, ["data.label=person"], None, False, 1)["data.label"].problem
    assert "'person'" in problem and "--split-by slice or exam" in problem
    nameless = shards("nameless", unit="slice", person=None)
    settings = ["data.label=person", f"data.shards={nameless}"]
    assert "10 of 10" in faults(recipe, settings, None, True, 1)["data.label"].problem
    assert not Path("runs").exists()
    sliced = shards("sliced", unit="slice")
    begun(recipe, ["data.label=person", f"data.shards={sliced}"], Path("run"), False, 1)
    assert "data.label" in faults(recipe, [f"data.shards={sliced}"], Path("run"), False, 1)


def test_every_setting_may_change_before_the_first_checkpoint(recipe, shards):
    run = prepare_run(recipe, ["loss.margin=3"], Path("run"), False, 1)
    other = shards("other", samples=11)
    prepare_run(recipe, ["train.seed=1", "train.epochs=1", f"data.shards={other}"], run, False, 1)
    stored = load_recipe(run / "config.yaml").recipe
    assert (stored.train.seed, stored.train.epochs, stored.data.shards) == (1, 1, str(other))


def test_check_run_finds_the_same_faults_and_writes_nothing(recipe):
    settings = ["data.fold=7", "engine.name=deepspeed", "engine.deepspeed_config=ds.json"]
    Path("ds.json").write_text('{"train_batch_size": 5}')
    for check in (prepare_run, partial(check_run, need_shards=False)):
        with pytest.raises(ConfigError) as caught:
            check(recipe, settings, Path("run"), False, 1)
        assert [fault.key for fault in caught.value.faults] == ["data.fold", "train_batch_size"]
    _, folder = check_run(recipe, [], Path("run"), False, 1)
    assert folder.path == Path("run") and not folder.path.exists()


def test_check_run_needs_no_shards_unless_told(recipe):
    missing = ["data.shards=none", "data.fold=7"]
    check_run(recipe, missing, None, False, 1, need_shards=False)
    with pytest.raises(DataError):
        check_run(recipe, missing, None, False, 1)


def test_changed_identity_of_an_existing_run_is_refused_for_each_setting(recipe):
    run = begun(recipe, [], Path("run"), False, 1)
    before = (run / "config.yaml").read_bytes()
    found = faults(recipe, ["train.seed=1", "train.epochs=4", "data.workers=1"], run, False, 1)
    assert list(found) == ["train.epochs", "train.seed"]
    assert found["train.epochs"].problem.startswith("4, but run was started with 3: ")
    assert found["train.seed"].problem.startswith("1, but run was started with 0: ")
    assert "--run" in found["train.seed"].problem
    assert (run / "config.yaml").read_bytes() == before


def test_constant_schedule_may_be_extended_but_not_shortened(recipe):
    run = begun(recipe, CONSTANT, Path("run"), False, 1)
    prepare_run(recipe, [*CONSTANT, "train.steps=150"], run, False, 1)
    assert load_recipe(run / "config.yaml").recipe.train.steps == 150
    found = faults(recipe, CONSTANT, run, False, 1)
    assert list(found) == ["train.steps"]
    assert found["train.steps"].problem.startswith("100, but run was started with 150: ")


@pytest.fixture
def larger(recipe, shards):
    """Shards of 30 samples: at 12 per step, the 24 outside the test fold are two steps per epoch."""
    return shards("larger", samples=30)


@pytest.mark.parametrize(
    ("before", "after", "key", "numbers"),
    [
        ("train.steps=9", "train.epochs=1", "train.epochs", ["1, ", "train.steps=9", "2 steps instead of 9"]),
        ("train.epochs=3", "train.steps=5", "train.steps", ["5, ", "train.epochs=3", "5 steps instead of 6"]),
    ],
)
def test_run_is_not_shortened_by_a_length_in_another_unit(recipe, larger, before, after, key, numbers):
    other = "optim.schedule=constant", f"data.shards={larger}"
    run = begun(recipe, [*other, before], Path("run"), False, 1)
    found = faults(recipe, [*other, after], run, False, 1)
    assert list(found) == [key]
    assert [text for text in numbers if text not in found[key].problem] == []
    longer = {"train.epochs=1": "train.epochs=5", "train.steps=5": "train.steps=7"}[after]
    prepare_run(recipe, [*other, longer], run, False, 1)


def test_sample_rate_that_draws_no_class_is_refused(recipe, shards):
    sliced = shards("sliced", unit="slice")
    problem = faults(recipe, ["loss.sample_rate=0.5"], None, False, 1)["loss.sample_rate"].problem
    assert problem.startswith("0.5 of 1 classes") and "1 to 1" in problem
    prepare_run(recipe, ["loss.sample_rate=1"], Path("run"), False, 1)
    settings = ["data.label=person", f"data.shards={sliced}", "loss.sample_rate=0.5"]
    assert list(faults(recipe, settings, None, False, 1)) == ["loss.sample_rate"]


def test_changed_samples_are_refused_but_moved_shards_are_accepted(recipe, shards, tmp_path):
    run = begun(recipe, [], Path("run"), False, 1)
    other = shards("other", samples=11)
    assert list(faults(recipe, [f"data.shards={other}"], run, False, 1)) == ["data.shards"]
    (tmp_path / "shards").rename(tmp_path / "moved")
    prepare_run(recipe, ["data.shards=moved"], run, False, 1)
    assert load_recipe(run / "config.yaml").recipe.data.shards == str(tmp_path / "moved")


@pytest.mark.parametrize("smoke", [False, True])
def test_run_that_a_live_process_trains_is_left_alone(recipe, smoke):
    run = prepare_run(recipe, [], Path("run"), smoke, 1)
    before = (run / "config.yaml").read_bytes()
    start_attempt(RunFolder(run), current_holder("another start"), {})
    with pytest.raises(RunLockedError):
        prepare_run(recipe, ["checkpoint.every=7"], Path("run"), smoke, 1)
    assert (run / "config.yaml").read_bytes() == before
    assert len(RunFolder(run).attempts()) == 1


def test_smoke_run_is_short_and_starts_in_an_empty_folder_of_its_own(recipe):
    smoke = prepare_run(recipe, ["train.epochs=9"], Path("run"), True, 1)
    assert smoke == Path("run-smoke")
    stored = load_recipe(smoke / "config.yaml").recipe
    assert (stored.train.steps, stored.train.epochs, stored.checkpoint.every) == (2, None, 1)
    (smoke / "old").write_text("")
    prepare_run(recipe, ["train.seed=5"], Path("run"), True, 1)
    assert [path.name for path in smoke.iterdir()] == ["config.yaml"]
    plain = resolve_run_folder(recipe, [], None, False, 1)
    assert resolve_run_folder(recipe, [], None, True, 1).name == plain.name + "-smoke"


@pytest.mark.parametrize("smoke", [False, True])
def test_folder_with_other_files_is_refused_and_kept(recipe, smoke):
    folder = Path("run-smoke" if smoke else "run")
    folder.mkdir()
    (folder / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match=f"run folder {folder}: "):
        prepare_run(recipe, [], Path("run"), smoke, 1)
    assert (folder / "thesis.tex").exists()


def test_file_in_place_of_the_run_folder_is_refused(recipe):
    Path("run").write_text("")
    with pytest.raises(UsageError, match="run folder run: "):
        prepare_run(recipe, [], Path("run"), False, 1)


def test_require_run_folder_refuses_missing_and_foreign_folders(recipe, tmp_path):
    run = prepare_run(recipe, [], Path("run"), False, 1)
    assert require_run_folder(run) == run
    for wrong in (tmp_path / "no", tmp_path):
        with pytest.raises(UsageError, match=f"run folder {wrong}: "):
            require_run_folder(wrong)


def test_unwritable_run_folder_is_a_run_error(recipe):
    with pytest.raises(RunError, match=r"^run folder /proc/none/run: .*No such file or directory$"):
        prepare_run(recipe, [], Path("/proc/none/run"), False, 1)
