"""Profiles: what may stand in them, where they are, and that nothing wrong is let through."""

from __future__ import annotations

from pathlib import Path

import pytest

from hsadml_dist.errors import ConfigError, UsageError
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


PATHS = "must be an absolute path, written out, or a name on the nodes' PATH"
MODULES = "must be a module's name, such as 'cuda/12.4', one to an item"
OPTIONS = "each item is one option in one word, such as '--name=value'"
TILDE = "~ is not expanded, write $HOME"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    return tmp_path / "home/hsadml/profiles"


def loaded(tmp_path: Path, text: str) -> Profile:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    return load_profile(str(path))


def faults(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text)
    return [str(fault) for fault in caught.value.faults]


def test_every_key_is_read(tmp_path: Path) -> None:
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


def test_all_faults_come_at_once_each_with_its_line(tmp_path: Path) -> None:
    text = 'partitoin: gpu\ntime: soon\numask: 0027\ncontainer:\n  kind: aptainer\n  image: x\ngres: ""\ngres: gpu:1\n'
    assert faults(tmp_path, text) == [
        "x.yaml:1: partitoin: unknown setting (did you mean 'partition'?)",
        'x.yaml:3: umask: 0027 is a number, and text is wanted; write it in quotes: "0027"',
        "x.yaml:5: container.kind: 'aptainer' is not one of 'apptainer', 'pyxis' (did you mean 'apptainer'?)",
        "x.yaml:8: gres: given twice, first in line 7",
        "x.yaml:2: time: is 'soon'; allowed forms: MINUTES, M:S, H:M:S, D-H, D-H:M, D-H:M:S, UNLIMITED",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("account: ''", "account: is empty; give a value or leave it out"),
        ("partition: 'a\"b'", "partition: is 'a\"b'; '\"' cannot stand there"),
        ('qos: "a\\nb"', "qos: is 'a\\nb'; '\\n' cannot stand there"),
        ("mem: 64 GB", "mem: is '64 GB'; must be a number with K, M, G or T, such as '64G', or '0' for all"),
        ("{time: '1', signal_lead: 60}", "time: is '1' (60 s); must be longer than signal_lead (60 s)"),
        ("time: 30", 'time: 30 is a number, and text is wanted; write it in quotes: "30"'),
        ("cpus_per_task: 0", "cpus_per_task: is 0; must be at least 1"),
        ("signal_lead: 65536", "signal_lead: is 65536; allowed: 1 to 65535 seconds"),
        ("umask: '28'", "umask: is '28'; must be three or four octal digits in quotes, such as \"0027\""),
        ("requeue: chian", "requeue: 'chian' is not one of 'chain', 'self', 'none' or null (did you mean 'chain'?)"),
        (
            "{requeue: chain, sbatch_on_nodes: false}",
            "requeue: is 'chain', which submits from a node, and sbatch_on_nodes is false; allowed: self, none",
        ),
        ("modules: ['a; rm b']", f"modules: has 'a; rm b'; {MODULES}"),
        ("modules: [-l]", f"modules: has '-l'; {MODULES}"),
        ('setup: [a, "b\\nc"]', "setup: item 2 is 'b\\nc'; '\\n' cannot stand there"),
        ("setup: source x", "setup: 'source x' is not a list of texts (quote them)"),
        ("python: ~/venv/bin/python", f"python: is '~/venv/bin/python'; {PATHS}"),
        ("python: venv/bin/python", f"python: is 'venv/bin/python'; {PATHS}"),
        ("scratch: tmp/x", "scratch: is 'tmp/x'; must be an absolute path, such as /tmp/$USER/$SLURM_JOB_ID"),
        ("scratch: $(rm x)", "scratch: is '$(rm x)'; must be an absolute path, such as /tmp/$USER/$SLURM_JOB_ID"),
        ("env: {A-B: x}", "env: has the name 'A-B'; allowed: letters, digits and _, not starting with a digit"),
        ('env: {A: "b\\nc"}', "env: A is 'b\\nc'; '\\n' cannot stand there"),
        ("options: [reservation=x]", f"options: has 'reservation=x'; {OPTIONS}"),
        ("container: {kind: pyxis}", "container.image: must be given"),
        ("container: {kind: pyxis, image: ''}", "container.image: is empty; give a value or leave it out"),
        ("container: {kind: apptainer, image: ~/x.sif}", f"container.image: is '~/x.sif'; {TILDE}"),
    ],
)
def test_what_cannot_be_is_named_with_what_is_allowed(tmp_path: Path, text: str, problem: str) -> None:
    assert faults(tmp_path, text) == [f"x.yaml:1: {problem}"]


@pytest.mark.parametrize("mount", ["/a", "a:/b", "/a:b", "/a:/b:rx", "/a:/b:", "/a:/b:ro:x", ":/b", "/a,/b:/c"])
def test_a_wrong_mount_is_refused(tmp_path: Path, mount: str) -> None:
    text = f"container: {{kind: pyxis, image: x, mounts: ['{mount}']}}"
    assert any("container.mounts" in fault and repr(mount) in fault for fault in faults(tmp_path, text))


def test_own_profiles_hide_shipped_ones(home: Path) -> None:
    assert profile_folder() == home
    shipped = {path.stem: path for path in SHIPPED_PROFILES.glob("*.yaml")}
    assert known_profiles() == shipped
    path = write_profile("plain", "partition: mine\n")
    assert path == home / "plain.yaml"
    assert known_profiles() == shipped | {"plain": path}
    assert load_profile("plain").partition == "mine"


def test_the_folder_has_a_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert profile_folder() == tmp_path / ".config/hsadml/profiles"


def test_a_profile_is_not_overwritten_unless_forced(home: Path) -> None:
    write_profile("a", "qos: x\n")
    with pytest.raises(UsageError, match=r"profile a: .*a.yaml exists already; give another name, or --force"):
        write_profile("a", "qos: y\n")
    assert load_profile("a").qos == "x"
    write_profile("a", "qos: y\n", force=True)
    assert load_profile("a").qos == "y"
    assert [path.name for path in home.iterdir()] == ["a.yaml"]
    for name in ("../a", "", ".a", "a b", "-a", "a\n"):
        with pytest.raises(UsageError, match="a name has letters"):
            write_profile(name, "")


def test_a_folder_that_cannot_be_made_is_one_line(home: Path) -> None:
    home.parent.parent.mkdir()
    home.parent.write_text("a file")
    with pytest.raises(UsageError, match=r"profile a: .* cannot be written: "):
        write_profile("a", "")


def test_a_missing_profile_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no profile 'plian'; there are: apptainer, plain, pyxis \(did you mean 'pl"):
        find_profile("plian")
    with pytest.raises(ConfigError, match=r"'no/such.yaml': no such file"):
        load_profile("no/such.yaml")


@pytest.mark.parametrize("path", sorted(SHIPPED_PROFILES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_profile_is_right_and_says_what_to_change(path: Path) -> None:
    load_profile(path.stem)
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert len(lines[0]) < 80
    assert "change what is marked" in "\n".join(lines[:3]).lower()
    assert sum("# change" in line for line in lines) >= 6


def test_there_is_a_shipped_profile_for_each_way() -> None:
    kinds = {path.stem: load_profile(path.stem).container for path in SHIPPED_PROFILES.glob("*.yaml")}
    assert {name: None if held is None else held.kind for name, held in kinds.items()} == {
        "plain": None,
        "apptainer": "apptainer",
        "pyxis": "pyxis",
    }
