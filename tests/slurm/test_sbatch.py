"""Rendering and validation of batch scripts."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hsadml_dist.errors import ConfigError, ExitCode
from hsadml_dist.launch import rank
from hsadml_dist.run.attempts import ENDED_JOB
from hsadml_dist.slurm.job_records import DeclineReason
from hsadml_dist.slurm.sbatch import COMMON_PART_MARKER, SCRIPT_TEMPLATE, JobRequest, parse_time_limit, render

GOLDEN = Path(__file__).parents[1] / "golden"
"""Holds the part of each script before the common part, which is that of ``train.sbatch``."""

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


def own_part(script: str) -> str:
    """Return the part of a script before the common part."""
    return script.partition(COMMON_PART_MARKER)[0]


@pytest.mark.parametrize("name", CASES)
def test_render_matches_golden_file(name: str) -> None:
    golden = GOLDEN / f"{name}.sbatch"
    text = own_part(render(CASES[name]))
    if os.environ.get("REFRESH_GOLDEN"):
        golden.write_text(text)
    how = f"{golden.name} differs; if intended: REFRESH_GOLDEN=1 pytest {Path(__file__).name}, then review the diff"
    assert text == golden.read_text(), how


@pytest.mark.parametrize("name", CASES)
def test_render_ends_with_the_common_part_of_the_template(name: str) -> None:
    script, template = render(CASES[name]), SCRIPT_TEMPLATE.read_text()
    assert script.count(COMMON_PART_MARKER) == template.count(COMMON_PART_MARKER) == 1
    assert script.partition(COMMON_PART_MARKER)[2] == template.partition(COMMON_PART_MARKER)[2]


@pytest.mark.parametrize("name", CASES)
def test_render_is_valid_bash(name: str) -> None:
    assert subprocess.run(["bash", "-n"], input=render(CASES[name]), text=True, check=False).returncode == 0


def test_template_is_valid_bash() -> None:
    assert subprocess.run(["bash", "-n", SCRIPT_TEMPLATE], check=False).returncode == 0


def test_settings_reach_the_shell_unchanged() -> None:
    variables = '"$run_dir" "$python" "$rank_module" "$NOTE" "$A" "$requeue" "$script"'
    arrays = '"${run_dirs[1]}" "${launcher[2]}" "${#srun_options[@]}"'
    script = own_part(render(FULL)) + f'prepare; printf "%s\\n" {variables} {arrays}'
    env = {"PATH": os.environ["PATH"], "HOME": "/home/me"}
    done = subprocess.run(["bash"], input=script, text=True, capture_output=True, check=True, env=env)
    assert done.stdout.splitlines() == [
        *("loaded", str(FULL.run_dir), FULL.python, FULL.rank_module, "it's $HOME", "1", "none"),
        *(f"{FULL.run_dir}/job.sbatch", "/data/it's/two", "/home/me/it's an image.sif", "1"),
    ]


def test_template_has_the_settings_of_rendered_scripts() -> None:
    names = [
        {line.split("=")[0] for line in own_part(text).splitlines() if line[:1].islower()}
        for text in (SCRIPT_TEMPLATE.read_text(), render(PLAIN))
    ]
    assert names[0] == names[1]


def test_template_uses_the_exit_code_module_and_variable_of_the_ranks() -> None:
    text = SCRIPT_TEMPLATE.read_text()
    assert ExitCode.STOPPED == 85 and "\n    85/*)\n" in text and '[ "$code" != 85 ]' in text
    assert f"rank_module={rank.__name__}\n" in text and PLAIN.rank_module == rank.__name__
    assert f"export {ENDED_JOB}=" in text


def test_template_writes_each_decline_code() -> None:
    words = set(re.findall(r"[a-z_]+", SCRIPT_TEMPLATE.read_text()))
    assert set(DeclineReason) <= words


def test_rank_module_replaces_the_training() -> None:
    assert "\nrank_module=some.module\n" in render(dataclasses.replace(PLAIN, rank_module="some.module"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"nodes": 0}, "nodes: is 0"),
        ({"tasks_per_node": -1}, "tasks_per_node: is -1"),
        ({"cpus_per_task": 0}, "cpus_per_task: is 0"),
        ({"run_dir": Path("runs/one")}, "run_dir: is 'runs/one'"),
        ({"working_dir": Path("/a\nb")}, "working_dir"),
        ({"run_dir": Path('/a"b')}, "run_dir"),
        ({"run_dir": Path("/a\\b")}, "run_dir"),
        ({"partition": 'x" --uid=0'}, "partition"),
        ({"account": ""}, "account: "),
        ({"job_name": "a\n#SBATCH --uid=0"}, "job_name"),
        ({"time_limit": "1 day"}, "time_limit: is '1 day'"),
        ({"time_limit": "0:20"}, "signal_lead_seconds (30 s)"),
        ({"signal_lead_seconds": 0}, "signal_lead_seconds: is 0"),
        ({"signal_lead_seconds": 70000}, "allowed: 1 to 65535"),
        ({"requeue": "always"}, "requeue: is 'always'; allowed: chain, self, none"),
        ({"extra_env": {"A B": "1"}}, "extra_env: has the name 'A B'"),
        ({"python": "/opt/py\nthon"}, "python"),
    ],
)
def test_validate_names_key_and_value(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        render(dataclasses.replace(PLAIN, **change))
    assert named in str(caught.value)


def test_validate_reports_all_faults_at_once() -> None:
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
def test_parse_time_limit_accepts_slurms_forms(text: str, seconds: int | None) -> None:
    assert parse_time_limit(text) == seconds


@pytest.mark.parametrize("text", ["", "x", "1-", "-5", "1:2:3:4", "1d", "\u0661"])
def test_parse_time_limit_refuses_other_forms(text: str) -> None:
    with pytest.raises(ValueError):
        parse_time_limit(text)
