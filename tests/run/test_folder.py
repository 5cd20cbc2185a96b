import os

import pytest

from hsadml_dist.errors import UsageError
from hsadml_dist.run.folder import AttemptFolder, RunFolder, discover_runs, find_runs, replace_text
from tests.run.run_factory import make_run


def test_names_in_a_run_folder(tmp_path):
    run, attempt = RunFolder(tmp_path), RunFolder(tmp_path).attempt(7)
    names = {
        "config.yaml": run.config,
        "checkpoints": run.checkpoints,
        "result.json": run.result,
        "report.html": run.report,
        "attempts/0007/attempt.json": attempt.record,
        "attempts/0007/parent.json": attempt.parent,
        "attempts/0007/rendezvous.json": attempt.rendezvous,
        "attempts/0007/metrics.jsonl": attempt.metrics,
        "attempts/0007/events.jsonl": attempt.events,
        "attempts/0007/ledger.jsonl": attempt.ledger,
        "attempts/0007/heartbeat": attempt.heartbeat,
        "attempts/0007/tensorboard": attempt.tensorboard,
        "attempts/0007/logs/rank-0003.log": attempt.log(3),
    }
    assert {str(path.relative_to(tmp_path)) for path in names.values()} == set(names)
    assert attempt.number == 7


def test_attempts_in_the_order_of_their_numbers(tmp_path):
    run = RunFolder(tmp_path)
    assert run.attempts() == []
    for name in ("0010", "0002", "0001", "notes", ".tmp"):
        (run.attempts_root / name).mkdir(parents=True)
    assert [attempt.number for attempt in run.attempts()] == [1, 2, 10]
    assert run.attempts()[1] == AttemptFolder(tmp_path / "attempts" / "0002") == run.attempt(2)


def test_replace_text_leaves_nothing_beside(tmp_path):
    for text in ("old", "new ü"):
        replace_text(tmp_path / "a.json", text)
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "new ü"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_reader_sees_the_old_text_or_the_new_one(tmp_path, monkeypatch):
    replace_text(tmp_path / "a.json", "old")

    def crash(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        replace_text(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == "old"


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
