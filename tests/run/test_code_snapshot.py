import json
import os
import subprocess
import sys
import zipfile

import pytest

from hsadml_dist.errors import RunError
from hsadml_dist.run.code_snapshot import PACKAGE, CodeChange, save_code_snapshot
from hsadml_dist.run.folder import RunFolder


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "run")


@pytest.fixture
def package(tmp_path):
    """A small package with a folder that is a link, as a clone of this repository has."""
    root = tmp_path / "clone"
    for name, text in {"pack/a.py": "A = 1\n", "pack/sub/b.py": "B = 2\n", "launch/c.py": "C = 3\n"}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "pack" / "__pycache__").mkdir()
    (root / "pack" / "__pycache__" / "a.pyc").write_bytes(b"compiled")
    (root / "pack" / "launch").symlink_to("../launch")
    return root / "pack"


def record(run):
    return json.loads((run.code / "code.json").read_text())


def git(root, *arguments):
    names = {f"GIT_{who}_{what}": "x@y" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(["git", "-C", root, *arguments], env=os.environ | names, capture_output=True, check=True)
    return done.stdout.decode().strip()


def test_the_first_start_keeps_all_files_in_one_archive_named_by_its_digest(run, package):
    assert save_code_snapshot(run, package) is None
    digest = record(run)["digest"]
    assert {path.name for path in run.code.iterdir()} == {"code.json", f"{digest}.zip"}
    with zipfile.ZipFile(run.code / f"{digest}.zip") as archive:
        assert {name: archive.read(name).decode() for name in archive.namelist()} == {
            "pack/a.py": "A = 1\n",
            "pack/launch/c.py": "C = 3\n",
            "pack/sub/b.py": "B = 2\n",
        }
    assert record(run)["files"].keys() == {"a.py", "launch/c.py", "sub/b.py"}


def test_a_later_start_with_the_same_code_changes_nothing(run, package):
    save_code_snapshot(run, package)
    before = {path.name: path.stat().st_mtime_ns for path in run.code.iterdir()}
    assert save_code_snapshot(run, package) is None
    assert {path.name: path.stat().st_mtime_ns for path in run.code.iterdir()} == before


def test_other_code_is_named_file_by_file_and_the_first_one_stays(run, package):
    save_code_snapshot(run, package)
    first = record(run)
    (package / "a.py").write_text("A = 9\n")
    (package / "sub" / "b.py").unlink()
    (package / "new.py").write_text("")
    change = save_code_snapshot(run, package)
    assert change.before == first["digest"] != change.now
    assert change.files == ["a.py", "new.py", "sub/b.py"]
    assert str(change) == (
        f"the code is not that of the run's first start (kept in code/{first['digest']}.zip): "
        "3 files: a.py, new.py, sub/b.py"
    )
    assert record(run) == first


def test_many_files_are_not_all_named_in_the_line():
    change = CodeChange(before="b", now="n", files=[f"{letter}.py" for letter in "abcdefgh"])
    assert str(change).endswith("8 files: a.py, b.py, c.py, d.py, e.py, ...")
    assert str(CodeChange(before="b", now="n", files=["a.py"])).endswith("1 file: a.py")


def test_the_same_code_gives_the_same_archive_elsewhere(run, package, tmp_path):
    other = RunFolder(tmp_path / "other")
    save_code_snapshot(run, package)
    os.utime(package / "a.py", (1, 1))
    save_code_snapshot(other, package)
    name = f"{record(run)['digest']}.zip"
    assert (run.code / name).read_bytes() == (other.code / name).read_bytes()


def test_a_start_that_was_killed_while_it_kept_the_code_is_no_first_start(run, package):
    save_code_snapshot(run, package)
    (run.code / "code.json").write_text('{"version"')
    assert save_code_snapshot(run, package) is None
    assert record(run)["files"].keys() == {"a.py", "launch/c.py", "sub/b.py"}


def test_the_commit_is_that_of_a_clean_checkout_and_of_no_other(run, package, tmp_path):
    root = package.parent
    git(root, "init", "-q")
    (root / ".gitignore").write_text("__pycache__\n")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "first")
    save_code_snapshot(run, package)
    assert record(run)["commit"] == git(root, "rev-parse", "HEAD")
    (package / "a.py").write_text("A = 2\n")
    dirty = RunFolder(tmp_path / "dirty")
    save_code_snapshot(dirty, package)
    assert record(dirty)["commit"] is None
    installed = root / "venv" / "pack"
    installed.mkdir(parents=True)
    (root / ".gitignore").write_text("venv\n")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "second")
    surrounded = RunFolder(tmp_path / "surrounded")
    save_code_snapshot(surrounded, installed)
    assert record(surrounded)["commit"] is None


def test_a_folder_that_cannot_be_written_is_one_clear_line(run, package):
    run.path.mkdir()
    run.code.write_text("a file stands here")
    with pytest.raises(RunError, match="the code cannot be kept: File exists"):
        save_code_snapshot(run, package)


def test_without_git_there_is_no_commit(run, package, monkeypatch):
    monkeypatch.setenv("PATH", "")
    save_code_snapshot(run, package)
    assert record(run)["commit"] is None


def test_the_packages_own_code_runs_from_its_archive(run, tmp_path):
    save_code_snapshot(run)
    (archive,) = run.code.glob("*.zip")
    with zipfile.ZipFile(archive) as zipped:
        zipped.extractall(tmp_path / "there")
    command = [sys.executable, "-P", "-c", "import hsadml_dist.launch.cli as c; print(c.__file__)"]
    environ = os.environ | {"PYTHONPATH": str(tmp_path / "there")}
    said = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout
    assert said.startswith(str(tmp_path / "there"))
    assert (PACKAGE / "launch").exists()
