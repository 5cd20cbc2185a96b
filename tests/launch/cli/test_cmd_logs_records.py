import json
import sys
import types

import pytest

from hsadml_dist.config.yaml_loader import build_recipe, dump_recipe
from hsadml_dist.launch import cli
from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.jsonl import JsonlWriter


@pytest.fixture
def run(tmp_path):
    """A run with two attempts, of which the second repeated step 2."""
    dump_recipe(build_recipe({"data.shards": "s", "train.steps": 3}), tmp_path / "config.yaml")
    for number, steps in ((1, (1, 2)), (2, (2, 3))):
        attempt = RunFolder(tmp_path).attempt(number)
        metrics, events = JsonlWriter(attempt.metrics), JsonlWriter(attempt.events)
        events.write({"event": "started", "attempt": number, "step": steps[0] - 1, "time": 0.5, "job": None})
        for step in steps:
            metrics.write({"step": step, "attempt": number, "loss": 1 / 3, "note": "x"})
        metrics.close()
        events.close()
    return str(tmp_path)


def test_metrics_json_has_the_last_attempt_of_each_step_with_all_digits(run, capsys):
    assert cli.main(["metrics", run, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["step"], row["attempt"]) for row in rows] == [(1, 1), (2, 2), (3, 2)]
    assert rows[0] == {"step": 1, "attempt": 1, "loss": 1 / 3, "note": "x"}


def test_metrics_table_has_the_known_columns_aligned(run, capsys):
    assert cli.main(["metrics", run]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["step", "attempt", "loss"],
        ["1", "1", "0.33333"],
        ["2", "2", "0.33333"],
        ["3", "2", "0.33333"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_metrics_prints_events(run, capsys):
    assert cli.main(["metrics", run, "--events", "--json"]) == 0
    assert [row["attempt"] for row in json.loads(capsys.readouterr().out)] == [1, 2]
    assert cli.main(["metrics", run, "--events"]) == 0
    assert capsys.readouterr().out.count("started") == 2


def test_checkpoint_digest_prints_the_digest_of_the_run(tmp_path, capsys, monkeypatch):
    dump_recipe(build_recipe({"data.shards": "s", "train.steps": 3}), tmp_path / "config.yaml")
    stub = types.ModuleType("hsadml_dist.checkpoint.digest")
    stub.run_digest = lambda run, step: f"{run.name} {step}"
    monkeypatch.setitem(sys.modules, stub.__name__, stub)
    assert cli.main(["checkpoint", "digest", str(tmp_path), "--step", "5"]) == 0
    assert cli.main(["checkpoint", "digest", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path.name} 5\n{tmp_path.name} None\n"
    assert cli.main(["checkpoint", "digest", str(tmp_path / "no")]) == 2
