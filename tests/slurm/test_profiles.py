"""Profiles: their keys, their places, and the refusal of invalid ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hsadml_dist.errors import ConfigError, Fault, UsageError
from hsadml_dist.slurm.profiles import (
    SHIPPED_PROFILES,
    Container,
    Profile,
    find_profile,
    known_profiles,
    load_profile,
    profile_folder,
    write_profile,
)

FULL = """\
partition: gpu,long
account: a-1
qos: long
constraint: a100&nvlink
gres: gpu:a100:4
time: 1-12:00:00
mem: 64G
cpus_per_task: 8
requeue: chain
signal_lead: 120
sbatch_on_nodes: true
modules: [cuda/12.4, GCC/13.2.0]
setup: ['source "$HOME/it''s/bin/activate"']
python: /opt/venv/bin/python
container:
  kind: apptainer
  image: $WORK/hsadml.sif
  mounts: ['/data:/data:ro', '$WORK/x:/x']
  options: [--writable-tmpfs]
scratch: ${LOCAL}/$SLURM_JOB_ID
env: {NCCL_DEBUG: INFO, OMP_NUM_THREADS: '4', EMPTY: ''}
umask: "0027"
options: [--reservation=mri]
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    return tmp_path / "home/hsadml/profiles"


def loaded(tmp_path: Path, text: str) -> Profile:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    return load_profile(str(path))


def faults(tmp_path: Path, text: str) -> list[Fault]:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text)
    return list(caught.value.faults)


def test_load_profile_reads_every_key(tmp_path: Path) -> None:
    profile = loaded(tmp_path, FULL)
    container = Container(
        kind="apptainer",
        image="$WORK/hsadml.sif",
        mounts=("/data:/data:ro", "$WORK/x:/x"),
        options=("--writable-tmpfs",),
    )
    assert profile.container == container
    assert (profile.time, profile.umask, profile.signal_lead) == ("1-12:00:00", "0027", 120)
    assert profile.setup == ('source "$HOME/it\'s/bin/activate"',)
    assert profile.env == {"NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "4", "EMPTY": ""}
    given = {line.partition(":")[0] for line in FULL.splitlines() if not line.startswith(" ")}
    assert given == set(Profile.__dataclass_fields__)
    assert loaded(tmp_path, "") == Profile()


def test_load_profile_reports_all_faults_with_their_lines(tmp_path: Path) -> None:
    text = 'partitoin: gpu\ntime: soon\numask: 0027\ncontainer:\n  kind: aptainer\n  image: x\ngres: ""\ngres: gpu:1\n'
    found = {(fault.where, fault.key): fault.problem for fault in faults(tmp_path, text)}
    expected = {
        ("x.yaml:1", "partitoin"): "'partition'",
        ("x.yaml:2", "time"): "'soon'",
        ("x.yaml:3", "umask"): '"0027"',
        ("x.yaml:5", "container.kind"): "'apptainer'",
        ("x.yaml:8", "gres"): "7",
    }
    assert found.keys() == expected.keys()
    assert all(fact in found[place] for place, fact in expected.items())


@pytest.mark.parametrize(
    ("text", "key", "facts"),
    [
        ("account: ''", "account", ("empty",)),
        ("partition: 'a\"b'", "partition", ("'a\"b'", "'\"'")),
        ('qos: "a\\nb"', "qos", ("'a\\nb'", "'\\n'")),
        ("mem: 64 GB", "mem", ("'64 GB'", "'64G'")),
        ("{time: '1', signal_lead: 60}", "time", ("'1' (60 s)", "signal_lead (60 s)")),
        ("time: 30", "time", ('"30"',)),
        ("cpus_per_task: 0", "cpus_per_task", ("0", "at least 1")),
        ("signal_lead: 65536", "signal_lead", ("65536", "1 to 65535")),
        ("umask: '28'", "umask", ("'28'", '"0027"')),
        ("requeue: chian", "requeue", ("'chian'", "'chain'")),
        ("{requeue: chain, sbatch_on_nodes: false}", "requeue", ("'chain'", "sbatch_on_nodes", "self, none")),
        ("modules: ['a; rm b']", "modules", ("'a; rm b'",)),
        ("modules: [-l]", "modules", ("'-l'",)),
        ('setup: [a, "b\\nc"]', "setup", ("item 2", "'b\\nc'", "'\\n'")),
        ("setup: source x", "setup", ("source x",)),
        ("python: ~/venv/bin/python", "python", ("'~/venv/bin/python'", "absolute")),
        ("python: venv/bin/python", "python", ("'venv/bin/python'", "absolute")),
        ("scratch: tmp/x", "scratch", ("'tmp/x'", "absolute")),
        ("scratch: $(rm x)", "scratch", ("'$(rm x)'", "absolute")),
        ("env: {A-B: x}", "env", ("'A-B'",)),
        ('env: {A: "b\\nc"}', "env", ("A is 'b\\nc'", "'\\n'")),
        ("options: [reservation=x]", "options", ("'reservation=x'", "'--name=value'")),
        ("container: {kind: pyxis}", "container.image", ()),
        ("container: {kind: pyxis, image: ''}", "container.image", ("empty",)),
        ("container: {kind: apptainer, image: ~/x.sif}", "container.image", ("'~/x.sif'", "$HOME")),
    ],
)
def test_load_profile_names_key_value_and_rule(tmp_path: Path, text: str, key: str, facts: tuple[str, ...]) -> None:
    (fault,) = faults(tmp_path, text)
    assert (fault.where, fault.key) == ("x.yaml:1", key)
    assert all(fact in fault.problem for fact in facts), fault.problem


@pytest.mark.parametrize("mount", ["/a", "a:/b", "/a:b", "/a:/b:rx", "/a:/b:", "/a:/b:ro:x", ":/b", "/a,/b:/c"])
def test_load_profile_refuses_a_malformed_mount(tmp_path: Path, mount: str) -> None:
    found = faults(tmp_path, f"container: {{kind: pyxis, image: x, mounts: ['{mount}']}}")
    assert any(fault.key == "container.mounts" and repr(mount) in fault.problem for fault in found)


def test_own_profile_hides_a_shipped_one(home: Path) -> None:
    assert profile_folder() == home
    shipped = {path.stem: path for path in SHIPPED_PROFILES.glob("*.yaml")}
    assert known_profiles() == shipped
    path = write_profile("plain", "partition: mine\n")
    assert path == home / "plain.yaml"
    assert known_profiles() == shipped | {"plain": path}
    assert load_profile("plain").partition == "mine"


def test_profile_folder_default_is_below_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert profile_folder() == tmp_path / ".config/hsadml/profiles"


def test_write_profile_replaces_only_by_force(home: Path) -> None:
    write_profile("a", "qos: x\n")
    with pytest.raises(UsageError, match=r"profile a: .*/a\.yaml .*--force"):
        write_profile("a", "qos: y\n")
    assert load_profile("a").qos == "x"
    write_profile("a", "qos: y\n", force=True)
    assert load_profile("a").qos == "y"
    assert [path.name for path in home.iterdir()] == ["a.yaml"]


@pytest.mark.parametrize("name", ["../a", "", ".a", "a b", "-a", "a\n"])
def test_write_profile_refuses_an_invalid_name(home: Path, name: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"profile {name!r}")):
        write_profile(name, "")
    assert not home.exists()


def test_write_profile_to_an_impossible_folder_raises(home: Path) -> None:
    home.parent.parent.mkdir()
    home.parent.write_text("a file")
    with pytest.raises(UsageError, match=r"profile a: .*/a\.yaml"):
        write_profile("a", "")


def test_find_profile_names_known_and_nearest_profiles() -> None:
    with pytest.raises(ConfigError, match=r"'plian'.*allowed: apptainer, plain, pyxis .*'plain'"):
        find_profile("plian")
    with pytest.raises(ConfigError, match=r"'no/such\.yaml'"):
        load_profile("no/such.yaml")


@pytest.mark.parametrize("path", sorted(SHIPPED_PROFILES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_profile_is_valid_and_marks_what_to_change(path: Path) -> None:
    load_profile(path.stem)
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert len(lines[0]) < 80
    assert "change what is marked" in "\n".join(lines[:3]).lower()
    assert sum("# change" in line for line in lines) >= 6


def test_shipped_profiles_cover_each_kind_of_container() -> None:
    kinds = {path.stem: load_profile(path.stem).container for path in SHIPPED_PROFILES.glob("*.yaml")}
    assert {name: None if held is None else held.kind for name, held in kinds.items()} == {
        "plain": None,
        "apptainer": "apptainer",
        "pyxis": "pyxis",
    }
