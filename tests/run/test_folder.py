import pytest

from hsadml_dist.errors import UsageError
from hsadml_dist.run.folder import AttemptFolder, RunFolder, discover_runs, find_runs
from tests.run.run_factory import make_run


def test_paths_in_a_run_folder(tmp_path):
    run, attempt = RunFolder(tmp_path), RunFolder(tmp_path).attempt(7)
    paths = {
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
        "attempts/0007/ranks/rank-0003": attempt.rank_heartbeat(3),
        "attempts/0007/logs/rank-0003.log": attempt.log(3),
    }
    assert [str(path.relative_to(tmp_path)) for path in paths.values()] == list(paths)
    assert attempt.number == 7


def test_attempts_are_ordered_by_number(tmp_path):
    run = RunFolder(tmp_path)
    assert run.attempts() == []
    for name in ("0010", "0002", "0001", "notes", ".tmp"):
        (run.attempts_root / name).mkdir(parents=True)
    assert [attempt.number for attempt in run.attempts()] == [1, 2, 10]
    assert run.attempts()[1] == AttemptFolder(tmp_path / "attempts" / "0002") == run.attempt(2)


def test_find_runs_expands_folders_and_returns_each_run_once(tmp_path):
    for name in ("b", "a/fold-1", "a/fold-0", "a/.hidden", "x/y/z"):
        make_run(tmp_path / name)
    (tmp_path / "file").touch()
    found = [str(run.path.relative_to(tmp_path)) for run in discover_runs(tmp_path)]
    assert found == ["a/fold-0", "a/fold-1", "b"]
    runs = find_runs([tmp_path / "b", tmp_path, tmp_path / "a" / "fold-1"])
    assert [run.path.name for run in runs] == ["b", "fold-0", "fold-1"]


def test_discover_runs_does_not_search_inside_a_run(tmp_path):
    make_run(tmp_path / "run")
    make_run(tmp_path / "run" / "inside")
    assert [run.path.name for run in discover_runs(tmp_path)] == ["run"]


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_find_runs_rejects_a_folder_without_runs(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=str(tmp_path / name)):
        find_runs([tmp_path / name])
    assert list(discover_runs(tmp_path / name)) == []
