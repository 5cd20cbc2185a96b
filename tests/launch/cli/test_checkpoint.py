import sys
import types

from hsadml_dist.config.fields import build_recipe
from hsadml_dist.config.io import dump_recipe
from hsadml_dist.launch import cli


def test_digest_prints_the_runs(tmp_path, capsys, monkeypatch):
    dump_recipe(build_recipe({"data.shards": "s", "train.steps": 3}), tmp_path / "config.yaml")
    stub = types.ModuleType("hsadml_dist.checkpoint.digest")
    stub.run_digest = lambda run, step: f"{run.name} {step}"
    monkeypatch.setitem(sys.modules, stub.__name__, stub)
    assert cli.main(["checkpoint", "digest", str(tmp_path), "--step", "5"]) == 0
    assert cli.main(["checkpoint", "digest", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path.name} 5\n{tmp_path.name} None\n"
    assert cli.main(["checkpoint", "digest", str(tmp_path / "no")]) == 2
