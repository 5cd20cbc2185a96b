"""The parts of a batch script that come from a profile, run by bash and on a private cluster."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from hsadml_dist.errors import ConfigError
from hsadml_dist.slurm import client
from hsadml_dist.slurm.devcluster.cluster import Cluster
from hsadml_dist.slurm.environment import RankWrapper, bash_word, rank_interpreter, render_prologue, wrap_ranks
from hsadml_dist.slurm.profiles import Container, Profile

SRUN = 'srun() { echo "srun $*" >&2; "${@: -5}"; }; SLURM_JOB_NUM_NODES=2\n'
"""A fake srun that runs its last five words: bash and its arguments."""
MODULE = 'module() { echo "module $*"; [ "${2-}" != bad ]; }\n'


def bash(profile: Profile, before: str = "", after: str = "") -> subprocess.CompletedProcess[str]:
    text = "\n".join([before, *render_prologue(profile), after])
    words = ["bash", "-u", "-c", text]
    env = {"PATH": "/usr/bin:/bin", "USER": "me"}
    return subprocess.run(words, env=env, capture_output=True, text=True, timeout=300, check=False)


def test_empty_profile_adds_nothing() -> None:
    assert render_prologue(Profile()) == []
    assert wrap_ranks(Profile(), ["/run"]) == RankWrapper()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ('it\'s $(touch x) `y` "z" \\ !', 'it\'s $(touch x) `y` "z" \\ !'),
        ("$A/${B}x", "one/twox"),
        ('it\'s $A `y` $(z) "q" \\$A $1 $', 'it\'s one `y` $(z) "q" \\one $1 $'),
        ("", ""),
    ],
)
def test_bash_word_expands_variables_only(text: str, expected: str) -> None:
    command = f"A=one B=two; printf %s {bash_word(text)}"
    assert subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout == expected


def test_unset_variable_ends_the_script_and_is_named() -> None:
    done = bash(Profile(env={"A": "$NOT_THERE/x"}), after="echo on")
    assert (done.returncode, done.stdout) == (127, "")
    assert done.stderr.count("\n") == 1 and "NOT_THERE" in done.stderr


def test_modules_are_loaded_after_a_purge() -> None:
    done = bash(Profile(modules=("cuda/12.4", "good")), MODULE + "srun() { :; }\n", "echo on")
    assert done.stdout.split("\n") == ["module purge", "module load cuda/12.4", "module load good", "on", ""]


@pytest.mark.parametrize(
    ("before", "modules", "fact"),
    [
        ("", ("x",), "no module command"),
        (MODULE, ("bad",), "module load bad"),
        (MODULE, ("good",), "srun"),
    ],
)
def test_failed_module_ends_the_script_with_one_line(before: str, modules: tuple[str, ...], fact: str) -> None:
    done = bash(Profile(modules=modules), f"type() {{ [ $1 != srun ] && command type $1; }}\n{before}", "echo on")
    assert done.returncode == 1
    assert done.stderr.startswith("hsadml: modules: ") and fact in done.stderr
    assert done.stderr.count("\n") == 1
    assert "on\n" not in done.stdout


def test_module_command_is_found_through_moduleshome(tmp_path: Path) -> None:
    (tmp_path / "init").mkdir()
    (tmp_path / "init/bash").write_text(MODULE)
    done = bash(Profile(modules=("good",)), f"export MODULESHOME={tmp_path}; srun() {{ :; }}\n", "echo on")
    assert done.stdout.endswith("module load good\non\n")


def test_setup_lines_change_the_script_and_a_failed_one_ends_it() -> None:
    lines = ("A='it is'", 'B="$A so" # a comment', "if true; then C=3; fi")
    assert bash(Profile(setup=lines), after='echo "$B $C"').stdout == "it is so 3\n"
    done = bash(Profile(setup=("true", "no-such-program 'x'", "echo on")))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("hsadml: setup: ")
    assert done.stderr.splitlines()[-1].endswith("no-such-program 'x'")
    done = bash(Profile(setup=("echo 'open",)), after="echo on")
    assert (done.returncode, done.stdout) == (1, "")


def test_env_is_exported_after_the_setup() -> None:
    profile = Profile(setup=("ROOT=/r; N=no",), env={"N": "a b", "DATA": "$ROOT/x"})
    assert bash(profile, after="env | grep -E '^(N|DATA)=' | sort").stdout == "DATA=/r/x\nN=a b\n"


def test_scratch_is_created_on_every_node_and_becomes_tmpdir(tmp_path: Path) -> None:
    profile = Profile(scratch=f"{tmp_path}/$USER/7")
    done = bash(profile, SRUN, 'echo "$TMPDIR"')
    assert done.stdout == f"{tmp_path}/me/7\n"
    assert "--nodes=2 --ntasks=2 --ntasks-per-node=1" in done.stderr
    assert (tmp_path / "me/7").stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").touch()
    done = bash(Profile(scratch=f"{tmp_path}/file/x"), SRUN, "echo on")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("hsadml: scratch: ")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a folder of another user")
def test_scratch_of_another_user_ends_the_script_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    profile = Profile(scratch=f"{tmp_path}/scratch")
    assert bash(profile, SRUN, "echo on").stdout == "on\n"
    os.chown(tmp_path / "scratch", 23456, 23456)
    done = bash(profile, SRUN, "echo on")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("hsadml: scratch: ")


def container(kind: Any, **more: Any) -> Profile:
    held = Container(kind=kind, image="$WORK/i.sif", mounts=("/data:/data:ro", "$WORK:/w"), options=("--one=a b",))
    return Profile(container=held, **more)


def expanded_by_bash(words: tuple[str, ...]) -> list[str]:
    command = f"WORK=/proj TMPDIR=/tmp/7; printf '%s\\n' {' '.join(words)}"
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout.splitlines()


def test_apptainer_container_is_a_launcher() -> None:
    around = wrap_ranks(container("apptainer", gres="gpu:4", scratch="/tmp/$SLURM_JOB_ID"), ["/a b/$x", "/s", "/s"])
    assert around.srun_options == ()
    assert expanded_by_bash(around.launcher) == [
        *("apptainer", "exec", "--nv", "--bind", "/a b/$x:/a b/$x", "--bind", "/s:/s"),
        *("--bind", "/tmp/7:/tmp/7", "--bind", "/data:/data:ro", "--bind", "/proj:/w", "--one=a b", "/proj/i.sif"),
    ]


@pytest.mark.parametrize(
    ("gres", "options", "with_nv"),
    [
        (None, (), False),
        ("gpu", (), True),
        ("nvme:1,gpu:a100:2", (), True),
        ("gpux:1", (), False),
        ("gpu:1", ("--rocm",), False),
    ],
)
def test_apptainer_passes_gpus_that_the_job_requests(gres: str | None, options: tuple[str, ...], with_nv: bool) -> None:
    profile = Profile(gres=gres, container=Container(kind="apptainer", image="i", options=options))
    assert ("--nv" in wrap_ranks(profile).launcher) == with_nv


def test_pyxis_container_is_options_of_srun() -> None:
    around = wrap_ranks(container("pyxis", gres="gpu:4", scratch="/tmp/$SLURM_JOB_ID"), ["/a b/$x"])
    assert around.launcher == ()
    mounts = "/a b/$x:/a b/$x,/tmp/7:/tmp/7,/data:/data:ro,/proj:/w"
    expected = ["--container-image=/proj/i.sif", f"--container-mounts={mounts}", "--one=a b"]
    assert expanded_by_bash(around.srun_options) == expected


def test_folder_that_cannot_be_mounted_is_refused() -> None:
    with pytest.raises(ConfigError, match="'/a:b'"):
        wrap_ranks(container("pyxis"), ["/a:b"])


def test_rank_interpreter_prefers_profile_then_image_then_own() -> None:
    assert rank_interpreter(Profile(), "/own/python") == "/own/python"
    assert rank_interpreter(Profile(python="/p"), "/own/python") == "/p"
    assert rank_interpreter(container("pyxis"), "/own/python") == "python3"
    assert rank_interpreter(container("pyxis", python="/p"), "/own/python") == "/p"


RANK = """
import json, os, sys
mask = os.umask(0)
row = {"umask": mask, "tmpdir": os.environ["TMPDIR"], "there": os.path.isdir(os.environ["TMPDIR"]),
       "net": os.environ["NET"], "arguments": sys.argv[1:]}
print(json.dumps(row), flush=True)
"""
APPTAINER = '#!/bin/sh\necho "$@"\nwhile [ "$1" != here.sif ]; do shift; done\nshift; "$@"\n'
"""A fake apptainer: prints its arguments and runs the words after the image."""


@pytest.mark.slurm
def test_ranks_of_a_real_job_get_the_settings_of_the_profile(local_cluster: Cluster, folder: Path) -> None:
    (folder / "bin").mkdir()
    (folder / "bin/apptainer").write_text(APPTAINER)
    (folder / "bin/apptainer").chmod(0o755)
    (folder / "rank.py").write_text(RANK)
    profile = Profile(
        umask="0027",
        setup=(f"PATH={folder}/bin:$PATH",),
        env={"NET": "${SLURM_JOB_ID}-eth0"},
        scratch=f"{folder}/$USER.$SLURM_JOB_ID/tmp",
        container=Container(kind="apptainer", image="here.sif"),
        gres="gpu:1",
    )
    around = wrap_ranks(profile, [str(folder)])
    script = folder / "job.sbatch"
    head = [
        *("#!/bin/bash", f"#SBATCH --output={folder}/out", "#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=2"),
        *("#SBATCH --cpus-per-task=2", "#SBATCH --gres=gpu:1", "export USER=${USER:-me} SLURM_UMASK=0022"),
    ]
    command = f"srun {' '.join(around.srun_options)} {' '.join(around.launcher)} python3 {folder}/rank.py 'a b'"
    script.write_text("\n".join([*head, *render_prologue(profile), command]) + "\n")
    job = client.sbatch(script, local_cluster.env())
    deadline = time.monotonic() + 300
    while client.job_state(job, local_cluster.env()) in ("PENDING", "RUNNING", "COMPLETING"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    # On a busy machine srun reports that it waits for its nodes.
    lines = [line for line in (folder / "out").read_text().splitlines() if not line.startswith("srun: ")]
    rows = [json.loads(line) for line in lines if line.startswith("{")]
    assert len(rows) == 4, lines
    assert {row["umask"] for row in rows} == {0o027}
    assert all(row["there"] and row["tmpdir"].endswith(f".{job}/tmp") for row in rows)
    assert {row["net"] for row in rows} == {f"{job}-eth0"}
    assert all(row["arguments"] == ["a b"] for row in rows)
    asked = [line for line in lines if line.startswith("exec ")]
    assert len(asked) == 4
    assert f"exec --nv --bind {folder}:{folder} --bind {rows[0]['tmpdir']}:" in asked[0]
    assert len(rows) + len(asked) == len(lines), lines
