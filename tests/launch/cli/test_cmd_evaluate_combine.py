"""``hsadml evaluate --combine``: reuse or repeat evaluations, compare runs, and refuse what cannot be compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hsadml_dist.config.yaml_loader import build_recipe, dump_recipe
from hsadml_dist.errors import DataError
from hsadml_dist.evaluation.pooling import EvaluatedRun
from hsadml_dist.launch import cli
from hsadml_dist.launch.cli.cmd_evaluate import load_or_evaluate, short_names
from hsadml_dist.report import run_report
from hsadml_dist.report.run_report import ReportedEvaluation
from hsadml_dist.run.folder import RunFolder
from tests.evaluation.synthetic_evaluations import Study

STUDY = Study(lead={"softmax": 0.0, "sphereface": 0.5}, persons=20)
MakeRun = Callable[..., Path]


class FakeEvaluation:
    """Stands in for the evaluation of a network and records its calls."""

    def __init__(self) -> None:
        self.results: dict[Path, EvaluatedRun] = {}
        self.calls: list[Path] = []
        self.stores = True

    def __call__(self, run: Path, *, allow_trained: bool) -> ReportedEvaluation:
        self.calls.append(run)
        if self.stores:
            RunFolder(run).result.write_text(json.dumps(self.results[run].result))
            RunFolder(run).predictions.write_text(self.results[run].predictions.to_json())
        return ReportedEvaluation(result=dict(self.results[run].result), report=None)


@pytest.fixture
def evaluation(monkeypatch: pytest.MonkeyPatch) -> FakeEvaluation:
    fake = FakeEvaluation()
    monkeypatch.setattr(run_report, "evaluate_and_report", fake)
    return fake


@pytest.fixture
def make_run(tmp_path: Path, evaluation: FakeEvaluation) -> MakeRun:
    """Create the folder of a run with one checkpoint and no result."""

    def make(loss: str, fold: int = 0, unit: str = "person") -> Path:
        run = tmp_path / "runs" / unit / loss / f"fold-{fold}"
        (run / "checkpoints" / "step-00000600.attempt-0001").mkdir(parents=True)
        shards = str(tmp_path / "shards")
        settings = {"data.shards": shards, "data.fold": fold, "loss.name": loss, "train.steps": 600}
        dump_recipe(build_recipe(settings), run / "config.yaml")
        evaluation.results[run] = STUDY.run(unit, loss, fold)
        return run

    return make


def test_run_is_evaluated_once(make_run: MakeRun, evaluation: FakeEvaluation) -> None:
    run = make_run("softmax")
    first = load_or_evaluate(run, "it")
    assert evaluation.calls == [run] and first.name == "it" and first.folds == ()
    assert first.settings["loss.name"] == "softmax"
    second = load_or_evaluate(run, "it")
    assert evaluation.calls == [run]
    assert second.result == first.result == evaluation.results[run].result


def add_newer_checkpoint(run: Path) -> None:
    (run / "checkpoints" / "step-00000700.attempt-0001").mkdir()


def truncate_predictions(run: Path) -> None:
    RunFolder(run).predictions.write_text(RunFolder(run).predictions.read_text()[:-30])


def replace_predictions(run: Path) -> None:
    RunFolder(run).predictions.write_text(STUDY.run("person", "sphereface", 1).predictions.to_json())


def set_old_version(run: Path) -> None:
    result = json.loads(RunFolder(run).result.read_text()) | {"schema_version": 1}
    RunFolder(run).result.write_text(json.dumps(result))


def delete_predictions(run: Path) -> None:
    RunFolder(run).predictions.unlink()


def delete_result(run: Path) -> None:
    RunFolder(run).result.unlink()


def empty_result(run: Path) -> None:
    RunFolder(run).result.write_text("[]")


@pytest.mark.parametrize(
    "spoil",
    [
        add_newer_checkpoint,
        truncate_predictions,
        replace_predictions,
        set_old_version,
        delete_predictions,
        delete_result,
        empty_result,
    ],
)
def test_outdated_or_damaged_result_is_evaluated_again(
    make_run: MakeRun, evaluation: FakeEvaluation, spoil: Callable[[Path], None]
) -> None:
    run = make_run("softmax")
    load_or_evaluate(run, "it")
    spoil(run)
    assert load_or_evaluate(run, "it").result == evaluation.results[run].result
    assert evaluation.calls == [run, run]


def test_result_on_other_data_is_refused(make_run: MakeRun, evaluation: FakeEvaluation, tmp_path: Path) -> None:
    run = make_run("softmax")
    evaluation.stores = False
    with pytest.raises(DataError) as caught:
        load_or_evaluate(run, "it")
    assert str(run) in str(caught.value) and str(tmp_path / "shards") in str(caught.value)


def test_short_names_are_relative_to_the_common_parent() -> None:
    runs = [Path("/data/a b/cv/person/softmax/fold-0"), Path("/data/a b/cv/slice/softmax/fold-0")]
    assert short_names(runs) == ["person/softmax/fold-0", "slice/softmax/fold-0"]
    assert short_names(runs[:1]) == ["fold-0"]


def test_combine_writes_json_and_page_and_prints_a_table(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(make_run(loss, fold)) for loss in ("softmax", "sphereface") for fold in (0, 1)]
    out = tmp_path / "new" / "combined"
    assert cli.main(["evaluate", *runs, "--combine", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    values = json.loads((out / "combined.json").read_text())
    assert (values["interval_method"], len(values["pools"])) == ("jackknife_t", 2)
    for pool in values["pools"]:
        accuracy = f"{pool['methods']['knn']['accuracy']:.2%}"
        assert any(line.split()[-4:] == ["2", "of", "2", str(pool["persons"])] and accuracy in line for line in lines)
    assert [line.partition(":")[0] for line in lines[:4]] == [
        f"{loss}/fold-{fold}" for loss in ("softmax", "sphereface") for fold in (0, 1)
    ]
    assert lines[-1].endswith(str(out / "combined.html"))
    assert str(tmp_path) not in (out / "combined.json").read_text() + (out / "combined.html").read_text()
    # The folder may also come before the runs, and the result is the same.
    assert cli.main(["evaluate", "--json", "--combine", str(out), *runs]) == 0
    assert json.loads(capsys.readouterr().out) == values


def test_combine_writes_to_the_folder_combined_by_default(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("softmax")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", str(run), "--combine"]) == 0
    assert (tmp_path / "combined" / "combined.html").exists()


def test_combine_checks_all_arguments_before_any_work(
    make_run: MakeRun, evaluation: FakeEvaluation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other, out = str(make_run("softmax")), str(make_run("softmax", 1)), str(tmp_path / "out")
    (tmp_path / "file").write_text("")
    for words, named in (
        (["--combine", out], "run folder"),
        ([run, "--combine", other], f"--combine {other}"),
        ([run, "--combine", str(tmp_path / "file")], f"--combine {tmp_path / 'file'}"),
        ([run, other, run, "--combine", out], f"{run} is named twice"),
        ([run, "--fold", "1", "--combine", out], "--fold"),
        ([run, "--shards", "x", "--combine", out], "--shards"),
        ([run, "--map-class", "a=b", "--combine", out], "--map-class"),
        ([run, str(tmp_path / "none"), "--combine", out], f"{tmp_path / 'none'}: does not exist"),
    ):
        assert cli.main(["evaluate", *words]) == 2
        message = capsys.readouterr().err
        assert named in message and message.count("\n") == 1
    assert evaluation.calls == [] and not Path(out).exists()


def test_runs_that_cannot_be_compared_are_a_data_error(
    make_run: MakeRun, evaluation: FakeEvaluation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = make_run("softmax"), make_run("softmax", 1)
    evaluation.results[other] = evaluation.results[run]
    assert cli.main(["evaluate", str(run), str(other), "--combine", str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert "fold-0" in message and "fold-1" in message and message.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_combine_refuses_trained_slices_or_marks_them(
    make_run: MakeRun, evaluation: FakeEvaluation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [make_run("softmax", fold) for fold in (0, 1)]
    for run, trained in zip(runs, (3, 0), strict=True):
        evaluation.results[run].result["trained_slices"] = trained
    words = ["evaluate", *map(str, runs), "--combine", str(tmp_path / "out")]
    assert cli.main(words) == 1
    message = capsys.readouterr().err
    assert "fold-0" in message and " 3 slices" in message and "--allow-trained" in message and message.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert cli.main([*words, "--allow-trained"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "slices 3 of" in lines[0] and "(trained slices)" in lines[0] and "slices 0 of" in lines[1]
    (row,) = [line for line in lines if line.startswith("patient ")]
    assert row.endswith("(trained slices)")
    values = json.loads((tmp_path / "out" / "combined.json").read_text())
    assert values["pools"][0]["trained_slices"] == 3
    assert [source["trained_slices"] for source in values["sources"]] == [3, 0]
    page = (tmp_path / "out" / "combined.html").read_text()
    captions = [part.partition("</caption>")[0] for part in page.split("<caption>")[1:]]
    assert len(captions) > 3 and all(caption.endswith("(trained slices)") for caption in captions)
