import subprocess
import sys
from pathlib import Path

import pytest

from hsadml_dist.errors import ConfigError, UsageError
from hsadml_dist.jobs.submission import JobOptions, Submission, elements, numbers, plan_job
from hsadml_dist.slurm.sbatch import render


def asked(**changes):
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
    ("text", "found"), [("0", (0,)), ("0,2", (0, 2)), ("0-4", (0, 1, 2, 3, 4)), ("7, 1-2", (7, 1, 2))]
)
def test_numbers(text, found):
    assert numbers("--folds", text) == found


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "3-1", "1,,2", "1.5"])
def test_what_is_no_list_of_numbers(text):
    with pytest.raises(UsageError, match=r"--seeds .*expected numbers such as 0,2 or 0-4"):
        numbers("--seeds", text)


def test_every_pair_of_fold_and_seed_has_a_run_folder_of_its_own():
    array = asked(run=Path("cv"), folds=(0, 3), seeds=(1, 2), overrides=("optim.lr=0.1",))
    assert [(str(one.run), one.overrides) for one in elements(array)] == [
        (f"cv/fold-{fold}-seed-{seed}", ("optim.lr=0.1", f"data.fold={fold}", f"train.seed={seed}"))
        for fold in (0, 3)
        for seed in (1, 2)
    ]
    request = plan_job(array)
    assert request.run_dir == Path("cv").resolve() and request.elements[3].name == "fold-3-seed-2"
    assert "#SBATCH --array=0-3\n" in render(request)


def test_one_fold_is_a_plain_run():
    request = plan_job(asked(folds=(2,)))
    assert not request.elements
    assert request.run_dir.name == plan_job(asked(overrides=("data.fold=2",))).run_dir.name
    assert request.run_dir.name != plan_job(asked()).run_dir.name


def test_an_arrays_folder_is_named_by_what_all_its_elements_share():
    names = {plan_job(asked(folds=folds)).run_dir.name for folds in ((0, 1), (0, 1, 2))}
    assert len(names) == 1 and names.pop().endswith("-array")


def test_a_number_given_twice_is_refused():
    with pytest.raises(UsageError, match=r"--folds 0,1,0: names one of them twice"):
        plan_job(asked(folds=(0, 1, 0)))


def test_options_count_before_the_profile_and_the_profile_before_defaults(profile):
    plain = plan_job(asked())
    assert (plain.requeue, plain.cpus_per_task, plain.partition, plain.launcher) == ("self", 1, None, ())
    request = plan_job(asked(profile=profile, options=JobOptions(partition="big", cpus_per_task=2)))
    assert (request.partition, request.gres, request.time_limit) == ("big", "gpu:4", "8:00:00")
    assert (request.requeue, request.cpus_per_task) == ("chain", 2)
    assert request.prologue[0].startswith("umask 0027") and "export GLOO_SOCKET_IFNAME=ib0" in request.prologue
    assert request.launcher[:2] == ("apptainer", "exec") and "/images/h.sif" in request.launcher
    assert request.python != sys.executable, "the interpreter of this machine is not the image's"


def test_profile_and_options_that_do_not_fit_are_refused(tmp_path):
    (tmp_path / "p.yaml").write_text("sbatch_on_nodes: false\n")
    with pytest.raises(ConfigError, match="requeue"):
        plan_job(asked(profile=str(tmp_path / "p.yaml"), options=JobOptions(requeue="chain")))


def test_the_script_of_a_container_is_read_by_bash(profile):
    script = render(plan_job(asked(profile=profile)))
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
