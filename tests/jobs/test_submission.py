import subprocess
import sys
from pathlib import Path

import pytest

from hsadml_dist.errors import ConfigError, UsageError
from hsadml_dist.jobs import submission
from hsadml_dist.jobs.submission import JobOptions, Submission, array_elements, parse_numbers, plan_job
from hsadml_dist.slurm.sbatch import render


def make_submission(**changes):
    return Submission(**{"recipe": "demo", "nodes": 2, "tasks_per_node": 2} | changes)


@pytest.fixture
def profile(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text(
        "partition: gpu\ngres: gpu:4\ntime: 8:00:00\nrequeue: chain\ncpus_per_task: 6\numask: '0027'\n"
        "env:\n  GLOO_SOCKET_IFNAME: ib0\ncontainer:\n  kind: apptainer\n  image: /images/h.sif\n"
    )
    return str(path)


@pytest.mark.parametrize(
    ("text", "numbers"), [("0", (0,)), ("0,2", (0, 2)), ("0-4", (0, 1, 2, 3, 4)), ("7, 1-2", (7, 1, 2))]
)
def test_parse_numbers(text, numbers):
    assert parse_numbers("--folds", text) == numbers


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "3-1", "1,,2", "1.5"])
def test_parse_numbers_refuses_other_text(text):
    with pytest.raises(UsageError) as caught:
        parse_numbers("--seeds", text)
    assert str(caught.value).startswith(f"--seeds {text!r}: ")


def test_each_pair_of_fold_and_seed_has_its_own_run_folder():
    array = make_submission(run=Path("cv"), folds=(0, 3), seeds=(1, 2), overrides=("optim.lr=0.1",))
    assert [(str(run), overrides) for run, overrides in array_elements(array)] == [
        (f"cv/fold-{fold}-seed-{seed}", ("optim.lr=0.1", f"data.fold={fold}", f"train.seed={seed}"))
        for fold in (0, 3)
        for seed in (1, 2)
    ]
    request = plan_job(array)
    assert request.run_dir == Path("cv").resolve() and request.elements[3].name == "fold-3-seed-2"
    assert "#SBATCH --array=0-3\n" in render(request)


def test_single_fold_is_a_plain_run():
    request = plan_job(make_submission(folds=(2,)))
    assert not request.elements
    assert request.run_dir.name == plan_job(make_submission(overrides=("data.fold=2",))).run_dir.name
    assert request.run_dir.name != plan_job(make_submission()).run_dir.name


def test_array_folder_does_not_depend_on_the_folds():
    names = {plan_job(make_submission(folds=folds)).run_dir.name for folds in ((0, 1), (0, 1, 2))}
    assert len(names) == 1 and names.pop().endswith("-array")


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"folds": (0, 1, 0)}, "--folds 0,1,0"),
        ({"nodes": 0}, "--nodes 0"),
        ({"tasks_per_node": 0}, "--tasks-per-node 0"),
    ],
)
def test_plan_job_refuses_impossible_numbers(changes, setting):
    with pytest.raises(UsageError) as caught:
        plan_job(make_submission(**changes))
    assert str(caught.value).startswith(f"{setting}: ")


def test_options_override_the_profile_and_the_profile_overrides_defaults(profile):
    plain = plan_job(make_submission())
    assert (plain.requeue, plain.cpus_per_task, plain.partition, plain.launcher) == ("self", 1, None, ())
    options = JobOptions(partition="big", cpus_per_task=2)
    request = plan_job(make_submission(profile=profile, options=options))
    assert (request.partition, request.gres, request.time_limit) == ("big", "gpu:4", "8:00:00")
    assert (request.requeue, request.cpus_per_task) == ("chain", 2)
    assert request.prologue[0].startswith("umask 0027") and "export GLOO_SOCKET_IFNAME=ib0" in request.prologue
    assert request.launcher[:2] == ("apptainer", "exec") and "/images/h.sif" in request.launcher
    assert request.python != sys.executable, "the interpreter of this machine is not the image's"


def test_options_that_contradict_the_profile_are_refused(tmp_path):
    (tmp_path / "p.yaml").write_text("sbatch_on_nodes: false\n")
    with pytest.raises(ConfigError) as caught:
        plan_job(make_submission(profile=str(tmp_path / "p.yaml"), options=JobOptions(requeue="chain")))
    assert [fault.key for fault in caught.value.faults] == ["requeue"]


def test_script_with_a_container_is_valid_bash(profile):
    script = render(plan_job(make_submission(profile=profile)))
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_rank_module_of_the_submitit_backend_has_the_function_that_it_calls(monkeypatch):
    called = []
    monkeypatch.setattr(f"{submission.RANK_MODULE}.run_rank_and_exit", called.append)
    submission.run_rank("runs/one")
    assert called == ["runs/one"]
