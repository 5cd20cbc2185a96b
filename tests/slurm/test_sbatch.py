"""The batch script as text."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hsadml_dist.errors import ConfigError, ExitCode
from hsadml_dist.launch import rank
from hsadml_dist.run.attempts import ENDED_JOB
from hsadml_dist.slurm.sbatch import COMMON_PART_MARKER, SCRIPT_TEMPLATE, JobRequest, parse_time_limit, render

GOLDEN = Path(__file__).parents[1] / "golden"

PLAIN = JobRequest(
    run_dir=Path("/data/runs/one"),
    nodes=2,
    tasks_per_node=4,
    cpus_per_task=8,
    python="/opt/venv/bin/python",
    working_dir=Path("/home/me/project"),
    job_name="one",
)
FULL = dataclasses.replace(
    PLAIN,
    run_dir=Path("/data/it's 100% $mine #1/one"),
    job_name="fold 3",
    partition="gpu",
    account="a-1",
    qos="long",
    constraint="a100&nvlink",
    gres="gpu:a100:4",
    time_limit="1-12:00:00",
    requeue="none",
    signal_lead_seconds=120,
    extra_env={"NOTE": "it's $HOME", "A": "1"},
    mem="64G",
    elements=(Path("/data/it's/one"), Path("/data/it's/two")),
    options=("--reservation=brain mri",),
    prologue=("echo loaded",),
    srun_options=("--mpi=none",),
    launcher=("apptainer", "exec", '"$HOME/it\'s an image.sif"'),
)
CHAIN = dataclasses.replace(PLAIN, requeue="chain")
CASES = {"plain": PLAIN, "full": FULL, "chain": CHAIN}


@pytest.mark.parametrize("name", CASES)
def test_script_is_the_golden_one(name: str) -> None:
    golden = GOLDEN / f"{name}.sbatch"
    text = render(CASES[name])
    if os.environ.get("REFRESH_GOLDEN"):
        golden.write_text(text)
    how = f"{golden.name} differs; if that is meant: REFRESH_GOLDEN=1 pytest {Path(__file__).name}, then read the diff"
    assert text == golden.read_text(), how


@pytest.mark.parametrize("name", CASES)
def test_bash_can_read_the_script(name: str) -> None:
    assert subprocess.run(["bash", "-n"], input=render(CASES[name]), text=True, check=False).returncode == 0


def test_settings_reach_the_shell_unchanged() -> None:
    settings = render(FULL).partition(COMMON_PART_MARKER)[0]
    words = '"$run_dir" "$python" "$NOTE" "$A" "$requeue" "$script"'
    arrays = '"${run_dirs[1]}" "${launcher[2]}" "${#srun_options[@]}"'
    script = settings + f'prepare; printf "%s\\n" {words} {arrays}'
    done = subprocess.run(["bash"], input=script, text=True, capture_output=True, check=True)
    assert done.stdout.splitlines() == [
        *("loaded", str(FULL.run_dir), FULL.python, "it's $HOME", "1", "none", f"{FULL.run_dir}/job.sbatch"),
        *("/data/it's/two", f"{os.environ['HOME']}/it's an image.sif", "1"),
    ]


def test_script_for_hand_editing_has_the_same_settings() -> None:
    text, line, _ = SCRIPT_TEMPLATE.read_text().partition(COMMON_PART_MARKER)
    assert line
    assert subprocess.run(["bash", "-n", SCRIPT_TEMPLATE], check=False).returncode == 0
    rendered = render(PLAIN).partition(COMMON_PART_MARKER)[0]
    names = [{row.split("=")[0] for row in part.splitlines() if row[:1].islower()} for part in (text, rendered)]
    assert names[0] == names[1]


def test_the_code_for_a_stop_is_the_one_that_ranks_leave_with() -> None:
    text = SCRIPT_TEMPLATE.read_text()
    assert f"\n    {ExitCode.STOPPED:d})\n" in text and '[ "$code" != 85 ]' in text and ExitCode.STOPPED == 85
    assert "-m hsadml_dist.launch.rank" in text and rank.__name__ == "hsadml_dist.launch.rank"
    assert f"export {ENDED_JOB}=" in text


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"nodes": 0}, "nodes: is 0"),
        ({"tasks_per_node": -1}, "tasks_per_node: is -1"),
        ({"cpus_per_task": 0}, "cpus_per_task: is 0"),
        ({"run_dir": Path("runs/one")}, "run_dir: is 'runs/one'; must be an absolute path"),
        ({"working_dir": Path("/a\nb")}, "working_dir"),
        ({"run_dir": Path('/a"b')}, "run_dir"),
        ({"run_dir": Path("/a\\b")}, "run_dir"),
        ({"partition": 'x" --uid=0'}, "partition"),
        ({"account": ""}, "account: is empty"),
        ({"job_name": "a\n#SBATCH --uid=0"}, "job_name"),
        ({"time_limit": "1 day"}, "time_limit: is '1 day'; allowed forms"),
        ({"time_limit": "0:20"}, "must be longer than signal_lead_seconds (30 s)"),
        ({"signal_lead_seconds": 0}, "signal_lead_seconds: is 0"),
        ({"signal_lead_seconds": 70000}, "allowed: 1 to 65535"),
        ({"requeue": "always"}, "requeue: is 'always'; allowed: chain, self, none"),
        ({"extra_env": {"A B": "1"}}, "extra_env: has the name 'A B'"),
        ({"python": "/opt/py\nthon"}, "python"),
    ],
)
def test_a_wrong_request_is_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        render(dataclasses.replace(PLAIN, **change))
    assert named in str(caught.value)


def test_all_faults_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        render(dataclasses.replace(PLAIN, nodes=0, cpus_per_task=0, time_limit="soon"))
    assert len(caught.value.faults) == 3


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("2:00:05", 7205),
        ("1-12", 129600),
        ("1-12:30", 131400),
        ("1-12:30:15", 131415),
        ("UNLIMITED", None),
        ("infinite", None),
    ],
)
def test_time_limits_are_read_as_slurm_reads_them(text: str, seconds: int | None) -> None:
    assert parse_time_limit(text) == seconds


@pytest.mark.parametrize("text", ["", "x", "1-", "-5", "1:2:3:4", "1d", "\u0661"])
def test_other_time_limits_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_time_limit(text)
