import json
import sys
import types

import pytest

from hsadml_dist.config.yaml_loader import build_recipe, dump_recipe
from hsadml_dist.launch import cli

RESULT = {
    "fold": 2,
    "split_unit": "person",
    "slices": 40,
    "persons": 7,
    "shared_persons": 0,
    "reference_slices": 160,
    "checkpoint": {"name": "step-00000009.attempt-0001", "step": 9, "attempt": 1},
    "chosen_by": "last step",
    "knn_accuracy": 0.9,
    "balanced_accuracy": 0.85,
    "head_accuracy": 0.8,
    "raw_pixel_knn": 0.5,
    "intervals": {
        "knn_accuracy": [0.8, 0.95],
        "balanced_accuracy": None,
        "head_accuracy": [0.7, 0.9],
        "raw_pixel_knn": [0.4, 0.9],
        "interval_unit": "person",
        "units": 28,
        "level": 0.95,
        "caution": None,
    },
}
REPORT = None


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder, with an evaluation that returns its arguments."""
    dump_recipe(build_recipe({"data.shards": "s", "train.steps": 3}), tmp_path / "config.yaml")
    stub = types.ModuleType("hsadml_dist.report.run_report")

    def evaluate_and_report(run, shards, fold, *, allow_trained, class_map, progress):
        given = {"fold": fold, "shards": shards and str(shards), "given": [allow_trained, class_map]}
        return types.SimpleNamespace(result=RESULT | given, report=REPORT)

    stub.evaluate_and_report = evaluate_and_report
    monkeypatch.setitem(sys.modules, stub.__name__, stub)
    return str(tmp_path)


def test_json_is_the_result_or_a_list_of_several(run, capsys):
    assert cli.main(["evaluate", run, "--json", "--fold", "3", "--shards", "there"]) == 0
    assert json.loads(capsys.readouterr().out) == RESULT | {"fold": 3, "shards": "there", "given": [False, {}]}
    assert cli.main(["evaluate", run, run, "--json"]) == 0
    assert [result["fold"] for result in json.loads(capsys.readouterr().out)] == [None, None]


def test_text_has_metrics_intervals_and_control(run, capsys):
    assert cli.main(["evaluate", run, "--fold", "2"]) == 0
    text = capsys.readouterr().out
    assert all(fact in text for fact in ("fold 2", "40 slices", "7 patients", "160 ", "step 9", "last step"))
    assert "  90.00%  [80.00%, 95.00%]\n" in text
    assert "  85.00%\n" in text
    assert "  50.00%  [40.00%, 90.00%]\n" in text
    assert "warning" not in text and "report" not in text


@pytest.mark.parametrize(("caution", "units"), [("few_units", 7), ("too_few_units", 3)])
def test_text_warns_of_few_patients(run, capsys, monkeypatch, caution, units):
    monkeypatch.setitem(RESULT, "intervals", RESULT["intervals"] | {"caution": caution, "units": units})
    assert cli.main(["evaluate", run]) == 0
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert f"{units} patients" in warning


def test_options_for_other_shards_are_passed_on(run, capsys):
    words = ["--allow-trained", "--map-class", "Glioma=glioma", "--map-class", "b=a=c", "--json"]
    assert cli.main(["evaluate", run, *words]) == 0
    assert json.loads(capsys.readouterr().out)["given"] == [True, {"Glioma": "glioma", "b": "a=c"}]
    assert cli.main(["evaluate", run, "--map-class", "Glioma"]) == 2
    assert "--map-class" in capsys.readouterr().err


def test_report_of_an_earlier_evaluation_is_not_named(run, capsys, tmp_path):
    (tmp_path / "report.html").write_text("")
    assert cli.main(["evaluate", run]) == 0
    assert "report:" not in capsys.readouterr().out


def test_text_states_and_marks_trained_slices(run, capsys, monkeypatch):
    for counts, stated, mark in (
        ((0, 0, []), "slices 0 of 40, patients 0 of 7", ""),
        ((None, None, ["no_record"]), "slices unknown, patients unknown", ""),
        ((3, 2, ["other_id_key"]), "slices 3 of 40, patients at least 2 of 7", "  (trained slices)"),
        ((0, 2, []), "slices 0 of 40, patients 2 of 7", "  (trained patients)"),
    ):
        for key, value in zip(("trained_slices", "trained_persons", "trained_unknown"), counts, strict=True):
            monkeypatch.setitem(RESULT, key, value)
        assert cli.main(["evaluate", run]) == 0
        text = capsys.readouterr().out
        assert stated in text
        for figure in ("90.00%  [80.00%, 95.00%]", "85.00%", "80.00%  [70.00%, 90.00%]", "50.00%  [40.00%, 90.00%]"):
            assert f" {figure}{mark}\n" in text


def test_text_warns_of_shared_patients_and_names_the_report(run, capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(globals(), "REPORT", tmp_path / "report.html")
    monkeypatch.setitem(RESULT, "shared_persons", 3)
    monkeypatch.setitem(RESULT, "persons", None)
    assert cli.main(["evaluate", run]) == 0
    text = capsys.readouterr().out
    assert "warning: 3 patients" in text
    assert str(tmp_path / "report.html") in text


def test_shared_patients_are_expected_where_they_are_the_classes(run, capsys, monkeypatch):
    monkeypatch.setitem(RESULT, "shared_persons", 7)
    monkeypatch.setitem(RESULT, "label", "person")
    monkeypatch.setitem(RESULT, "classes", ["00ff", "ff00"])
    assert cli.main(["evaluate", run]) == 0
    text = capsys.readouterr().out
    assert "2 patients" in text and "warning" not in text


def test_missing_run_folder_is_reported_before_torch_is_imported(run, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "hsadml_dist.report.run_report")
    assert cli.main(["evaluate", run, "/no/run"]) == 2
    assert "/no/run" in capsys.readouterr().err
    assert "hsadml_dist.report.run_report" not in sys.modules


def test_text_says_over_which_classes_and_that_a_control_is_not_exceeded(run, capsys, monkeypatch):
    odd = {
        "classes": ["a", "b", "c"],
        "balanced_classes": 2,
        "classes_without_test": ["c"],
        "classes_without_gallery": ["b"],
        "majority_accuracy": 0.95,
        "controls_not_exceeded": ["majority"],
    }
    for key, value in odd.items():
        monkeypatch.setitem(RESULT, key, value)
    assert cli.main(["evaluate", run]) == 0
    text = capsys.readouterr().out
    assert "  85.00%  over 2 of 3 classes\n" in text and "  95.00%\n" in text
    warnings = [line.strip() for line in text.splitlines() if "warning" in line]
    assert len(warnings) == 3
    assert "of c" in warnings[0] and "of b" in warnings[1]
    assert all(fact in warnings[2] for fact in ("control", "90.00%", "majority class", "95.00%"))


def test_text_says_that_one_class_means_nothing(run, capsys, monkeypatch):
    monkeypatch.setitem(RESULT, "classes", ["a"])
    assert cli.main(["evaluate", run]) == 0
    assert "warning: only one class" in capsys.readouterr().out
