"""Verdicts that serve as they lie, and those that are made anew; the command around them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hsadml_dist.config.validation import build_recipe
from hsadml_dist.config.yaml_loader import dump_recipe
from hsadml_dist.errors import DataError
from hsadml_dist.evaluation.pooling import EvaluatedRun
from hsadml_dist.launch import cli
from hsadml_dist.launch import compare_runs as judging
from hsadml_dist.launch.compare_runs import load_or_evaluate, short_names
from hsadml_dist.run.folder import RunFolder
from tests.evaluation.synthetic_evaluations import Study

STUDY = Study(lead={"softmax": 0.0, "sphereface": 0.5}, persons=20)


def write_verdict(run: Path, verdict: EvaluatedRun) -> None:
    RunFolder(run).result.write_text(json.dumps(verdict.result))
    RunFolder(run).predictions.write_text(verdict.predictions.to_json())


class Judge:
    """Stands in for the judging of a network; counts its calls."""

    def __init__(self) -> None:
        self.verdicts: dict[Path, EvaluatedRun] = {}
        self.asked: list[Path] = []
        self.writes = True

    def __call__(self, run: Path) -> dict[str, Any]:
        self.asked.append(run)
        if self.writes:
            write_verdict(run, self.verdicts[run])
        return dict(self.verdicts[run].result)


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Judge:
    stand_in = Judge()
    monkeypatch.setattr(judging, "evaluate_and_report", stand_in)
    return stand_in


@pytest.fixture
def make(tmp_path: Path, judge: Judge) -> Callable[..., Path]:
    """Make the folder of a run that has one checkpoint and no verdict."""

    def make_run(loss: str, fold: int = 0, unit: str = "person") -> Path:
        run = tmp_path / "runs" / unit / loss / f"fold-{fold}"
        (run / "checkpoints" / "step-00000600.attempt-0001").mkdir(parents=True)
        shards = str(tmp_path / "shards")
        settings = {"data.shards": shards, "data.fold": fold, "loss.name": loss, "train.steps": 600}
        dump_recipe(build_recipe(settings | {"evaluation.resamples": 100}), run / "config.yaml")
        judge.verdicts[run] = STUDY.run(unit, loss, fold)
        return run

    return make_run


def test_a_verdict_is_made_once(make: Callable[..., Path], judge: Judge) -> None:
    run = make("softmax")
    first = load_or_evaluate(run, "it")
    assert judge.asked == [run] and first.name == "it" and first.folds == ()
    assert first.settings["loss.name"] == "softmax"
    second = load_or_evaluate(run, "it")
    assert judge.asked == [run]
    assert second.result == first.result == judge.verdicts[run].result


def _older(run: Path) -> None:
    (run / "checkpoints" / "step-00000700.attempt-0001").mkdir()


def _damaged(run: Path) -> None:
    RunFolder(run).predictions.write_text(RunFolder(run).predictions.read_text()[:-30])


def _mixed(run: Path) -> None:
    RunFolder(run).predictions.write_text(STUDY.run("person", "sphereface", 1).predictions.to_json())


def _former_version(run: Path) -> None:
    result = json.loads(RunFolder(run).result.read_text()) | {"schema_version": 1}
    RunFolder(run).result.write_text(json.dumps(result))


@pytest.mark.parametrize(
    "spoil",
    [
        _older,
        _damaged,
        _mixed,
        _former_version,
        lambda run: RunFolder(run).predictions.unlink(),
        lambda run: RunFolder(run).result.unlink(),
        lambda run: RunFolder(run).result.write_text("[]"),
    ],
)
def test_a_verdict_that_is_old_or_not_whole_is_made_anew(
    make: Callable[..., Path], judge: Judge, spoil: Callable[[Path], None]
) -> None:
    run = make("softmax")
    load_or_evaluate(run, "it")
    spoil(run)
    assert load_or_evaluate(run, "it").result == judge.verdicts[run].result
    assert judge.asked == [run, run]


def test_a_verdict_on_other_data_is_refused(make: Callable[..., Path], judge: Judge) -> None:
    run = make("softmax")
    judge.writes = False
    with pytest.raises(DataError, match="no longer holds the samples that it was trained on"):
        load_or_evaluate(run, "it")


def test_names_are_the_paths_below_what_the_runs_share() -> None:
    runs = [Path("/data/a b/cv/person/softmax/fold-0"), Path("/data/a b/cv/slice/softmax/fold-0")]
    assert short_names(runs) == ["person/softmax/fold-0", "slice/softmax/fold-0"]
    assert short_names(runs[:1]) == ["fold-0"]


def test_the_command_writes_both_files_and_prints_a_table(
    make: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(make(loss, fold)) for loss in ("softmax", "sphereface") for fold in (0, 1)]
    out = tmp_path / "new" / "combined"
    assert cli.main(["evaluate", *runs, "--combine", str(out)]) == 0
    text = capsys.readouterr().out
    values = json.loads((out / "combined.json").read_text())
    assert (values["resamples"], len(values["pools"])) == (100, 2)
    knn = values["pools"][0]["methods"]["knn"]["accuracy"]
    persons = values["pools"][0]["persons"]
    (line,) = [line for line in text.splitlines() if line.startswith("patient") and "SphereFace" in line[:40]]
    assert f"{knn:.2%}" in line and line.endswith(f"  2 of 2{persons:>9}")
    assert "SphereFace against softmax" in text and "note: There is one training per loss" in text
    assert "softmax/fold-1: softmax, seed 0, split by person, fold 1:" in text
    assert str(tmp_path) not in (out / "combined.json").read_text() + (out / "combined.html").read_text()
    # The folder may stand before the runs too, and the figures are the same.
    assert cli.main(["evaluate", "--json", "--combine", str(out), *runs]) == 0
    assert json.loads(capsys.readouterr().out) == values


def test_without_a_folder_the_comparison_goes_beside(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make("softmax")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", str(run), "--combine"]) == 0
    assert (tmp_path / "combined" / "combined.html").exists()


def test_wrong_words_are_found_before_any_work(
    make: Callable[..., Path], judge: Judge, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other, out = str(make("softmax")), str(make("softmax", 1)), str(tmp_path / "out")
    (tmp_path / "file").write_text("")
    for words, problem in (
        (["--combine", out], "name at least one run folder"),
        ([run, "--combine", other], "is a run folder; name the folder to write to"),
        ([run, "--combine", str(tmp_path / "file")], "is a file"),
        ([run, other, run, "--combine", out], f"{run} is named twice"),
        ([run, "--fold", "1", "--combine", out], "leave out --fold, --shards"),
        ([run, str(tmp_path / "none"), "--combine", out], "does not exist"),
    ):
        assert cli.main(["evaluate", *words]) == 2
        assert problem in capsys.readouterr().err
    assert judge.asked == [] and not Path(out).exists()


def test_runs_that_do_not_fit_end_in_one_line(
    make: Callable[..., Path], judge: Judge, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = make("softmax"), make("softmax", 1)
    judge.verdicts[other] = judge.verdicts[run]
    assert cli.main(["evaluate", str(run), str(other), "--combine", str(tmp_path / "out")]) == 1
    assert "fold-0 and fold-1 are both loss softmax, seed 0, fold 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
