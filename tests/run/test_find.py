import pytest

from hsadml_dist.errors import UsageError
from hsadml_dist.run.find import discover_runs, find_runs
from tests.run.made_up import make_run


def test_a_folder_of_runs_stands_for_all_of_them_by_name_each_once(tmp_path):
    for name in ("b", "a/fold-1", "a/fold-0", "a/.hidden", "x/y/z"):
        make_run(tmp_path / name)
    (tmp_path / "file").touch()
    found = [str(run.path.relative_to(tmp_path)) for run in discover_runs(tmp_path)]
    assert found == ["a/fold-0", "a/fold-1", "b"]
    named = find_runs([tmp_path / "b", tmp_path, tmp_path / "a" / "fold-1"])
    assert [run.path.name for run in named] == ["b", "fold-0", "fold-1"]


def test_what_lies_inside_a_run_is_no_run_of_its_own(tmp_path):
    make_run(tmp_path / "run")
    make_run(tmp_path / "run" / "inside")
    assert [run.path.name for run in discover_runs(tmp_path)] == ["run"]


def test_a_name_that_stands_for_no_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="none: does not exist"):
        find_runs([tmp_path / "none"])
    with pytest.raises(UsageError, match="holds no run"):
        find_runs([tmp_path])
    assert list(discover_runs(tmp_path / "none")) == []
