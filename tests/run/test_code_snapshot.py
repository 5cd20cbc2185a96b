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
    """A small package in which one folder is a link, like this repository."""
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


def test_first_start_saves_all_files_in_an_archive_named_by_digest(run, package):
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


def test_later_start_with_equal_code_writes_nothing(run, package):
    save_code_snapshot(run, package)
    before = {path.name: path.stat().st_mtime_ns for path in run.code.iterdir()}
    assert save_code_snapshot(run, package) is None
    assert {path.name: path.stat().st_mtime_ns for path in run.code.iterdir()} == before


def test_later_start_with_other_code_reports_changed_files_and_keeps_the_snapshot(run, package):
    save_code_snapshot(run, package)
    first = record(run)
    (package / "a.py").write_text("A = 9\n")
    (package / "sub" / "b.py").unlink()
    (package / "new.py").write_text("")
    change = save_code_snapshot(run, package)
    assert change.before == first["digest"] != change.now
    assert change.files == ["a.py", "new.py", "sub/b.py"]
    assert f"code/{first['digest']}.zip" in str(change)
    assert str(change).endswith("3 files: a.py, new.py, sub/b.py")
    assert record(run) == first


def test_code_change_text_lists_at_most_five_files():
    change = CodeChange(before="b", now="n", files=[f"{letter}.py" for letter in "abcdefgh"])
    assert str(change).endswith("8 files: a.py, b.py, c.py, d.py, e.py, ...")
    assert str(CodeChange(before="b", now="n", files=["a.py"])).endswith("1 file: a.py")


def test_equal_code_gives_equal_archives(run, package, tmp_path):
    other = RunFolder(tmp_path / "other")
    save_code_snapshot(run, package)
    os.utime(package / "a.py", (1, 1))
    save_code_snapshot(other, package)
    name = f"{record(run)['digest']}.zip"
    assert (run.code / name).read_bytes() == (other.code / name).read_bytes()


def test_start_after_a_killed_first_start_saves_the_code(run, package):
    save_code_snapshot(run, package)
    (run.code / "code.json").write_text('{"version"')
    assert save_code_snapshot(run, package) is None
    assert record(run)["files"].keys() == {"a.py", "launch/c.py", "sub/b.py"}


def test_commit_is_recorded_only_for_the_clean_checkout_of_the_package(run, package, tmp_path):
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


def test_unwritable_folder_raises_run_error(run, package):
    run.path.mkdir()
    run.code.write_text("a file in the way")
    with pytest.raises(RunError, match=r"code: .*File exists"):
        save_code_snapshot(run, package)


def test_commit_is_none_without_git(run, package, monkeypatch):
    monkeypatch.setenv("PATH", "")
    save_code_snapshot(run, package)
    assert record(run)["commit"] is None


def test_package_runs_from_its_archive(run, tmp_path):
    save_code_snapshot(run)
    (archive,) = run.code.glob("*.zip")
    with zipfile.ZipFile(archive) as zipped:
        zipped.extractall(tmp_path / "extracted")
    command = [sys.executable, "-P", "-c", "import hsadml_dist.launch.cli as c; print(c.__file__)"]
    environ = os.environ | {"PYTHONPATH": str(tmp_path / "extracted")}
    printed = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout
    assert printed.startswith(str(tmp_path / "extracted"))
    assert (PACKAGE / "launch").exists()
