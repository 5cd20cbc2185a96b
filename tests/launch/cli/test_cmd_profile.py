import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hsadml_dist.launch import cli
from hsadml_dist.slurm.devcluster.cluster import up
from hsadml_dist.slurm.profiles import SHIPPED_PROFILES, load_profile, write_profile

HEAVY = {"torch", "numpy", "matplotlib", "monai", "sklearn", "submitit"}
LOADED = "import sys; from hsadml_dist.launch.cli import main; main(['profile', 'list']); print('LOADED', *sys.modules)"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    return tmp_path / "home/hsadml/profiles"


@pytest.fixture(scope="module")
def default_site(tmp_path_factory):
    with up(tmp_path_factory.mktemp("box"), nodes=1, site="default") as cluster:
        yield cluster


def test_list_has_own_profiles_first_and_marks_invalid_ones(capsys):
    write_profile("mine", "# All my jobs.\npartition: gpu\n")
    write_profile("torn", "# Torn.\npartitoin: gpu\n")
    assert cli.main(["profile", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["mine", "yours"],
        ["torn", "yours"],
        *([path.stem, "shipped"] for path in sorted(SHIPPED_PROFILES.glob("*.yaml"))),
    ]
    assert lines[0].endswith("  All my jobs.")
    assert "torn.yaml:2: partitoin: " in lines[1] and "'partition'" in lines[1]
    assert max(map(len, lines)) <= 120
    assert cli.main(["profile", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["shipped"], row["problem"] is None) for row in rows[:3]] == [
        ("mine", False, True),
        ("torn", False, False),
        ("apptainer", True, True),
    ]


def test_show_prints_the_file_and_its_faults(capsys):
    assert cli.main(["profile", "show", "plain"]) == 0
    assert capsys.readouterr().out == (SHIPPED_PROFILES / "plain.yaml").read_text()
    write_profile("torn", "partitoin: gpu\n")
    assert cli.main(["profile", "show", "torn"]) == 1
    shown = capsys.readouterr()
    assert shown.out == "partitoin: gpu\n"
    assert shown.err.startswith("hsadml: torn.yaml:1: partitoin: ") and shown.err.count("\n") == 1
    assert cli.main(["profile", "show", "plian"]) == 1
    assert "'plain'" in capsys.readouterr().err


def test_copy_overwrites_only_with_force(capsys, home):
    assert cli.main(["profile", "copy", "pyxis", "mine"]) == 0
    assert capsys.readouterr().out == f"wrote {home}/mine.yaml\n"
    assert (home / "mine.yaml").read_text() == (SHIPPED_PROFILES / "pyxis.yaml").read_text()
    (home / "mine.yaml").write_text("qos: x\n")
    assert cli.main(["profile", "copy", "plain", "mine"]) == 2
    assert (home / "mine.yaml").read_text() == "qos: x\n"
    assert cli.main(["profile", "copy", "plain", "mine", "--force"]) == 0
    assert (home / "mine.yaml").read_text() == (SHIPPED_PROFILES / "plain.yaml").read_text()


def test_list_imports_no_heavy_packages():
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.partition("LOADED")[2].split())


def test_init_without_slurm_is_one_line(capsys, monkeypatch, tmp_path, home):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(["profile", "init"]) == 1
    message = capsys.readouterr().err
    assert "scontrol" in message and message.count("\n") == 1
    assert not home.exists()


@pytest.mark.slurm
def test_init_on_a_default_site_chooses_a_chain_with_a_reason(default_site, monkeypatch, capsys, home):
    monkeypatch.setenv("SLURM_CONF", str(default_site.conf_file))
    assert cli.main(["profile", "init"]) == 0
    text = capsys.readouterr().out
    profile = load_profile("box")
    assert (profile.partition, profile.gres, profile.cpus_per_task, profile.requeue) == ("low", "gpu:4", 2, "chain")
    (line,) = [line for line in text.splitlines() if line.split()[:2] == ["requeue", "chain"]]
    assert "121 s" in line
    before, _, after = text.partition("to find out:")
    assert f"wrote {home}/box.yaml" in before
    assert {"account", "qos", "sbatch_on_nodes", "modules", "scratch", "env"} <= set(after.split())
    assert after.rstrip().endswith("hsadml submit RECIPE --nodes N --tasks-per-node 4 --profile box")


@pytest.mark.slurm
def test_init_overwrites_only_with_force(default_site, monkeypatch, capsys, home):
    monkeypatch.setenv("SLURM_CONF", str(default_site.conf_file))
    path = write_profile("mine", "qos: x\n")
    assert cli.main(["profile", "init", "mine"]) == 2
    assert str(path) in capsys.readouterr().err
    assert cli.main(["profile", "init", "mine", "--partition", "hihg", "--force"]) == 1
    assert "'high'" in capsys.readouterr().err
    assert path.read_text() == "qos: x\n"
    assert cli.main(["profile", "init", "mine", "--partition", "high", "--force", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["path"] == str(path)
    assert (
        {row["key"]: row["value"] for row in answer["chosen"]}["partition"] == load_profile("mine").partition == "high"
    )
    assert all(row["advice"] for row in answer["unknown"])


@pytest.mark.slurm
def test_init_wraps_lines_on_a_narrow_terminal(default_site, home):
    import pty

    leader, follower = pty.openpty()
    os.set_blocking(leader, False)
    env = os.environ | {"SLURM_CONF": str(default_site.conf_file), "COLUMNS": "80"}
    words = [sys.executable, "-m", "hsadml_dist.launch.cli", "profile", "init"]
    subprocess.run(words, env=env, stdout=follower, check=True, cwd=Path(__file__).parents[3])
    os.close(follower)
    lines = os.read(leader, 65536).decode().splitlines()
    os.close(leader)
    assert any("121 s" in line for line in lines)
    assert [line for line in lines if len(line) > 80 and not line.startswith(("wrote", "check"))] == []
