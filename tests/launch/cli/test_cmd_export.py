import re

import numpy as np
import pytest

from hsadml_dist.data.index import load_index
from hsadml_dist.evaluation import export as module
from hsadml_dist.evaluation.export import ExportedModel
from hsadml_dist.launch import cli

ONNX = ["--format", "onnx"]


def test_embed_writes_all_slices_in_the_order_of_the_index(opened_run, tiny_shards, tmp_path, capsys):
    assert cli.main(["embed", str(opened_run), "--out", str(tmp_path / "a.npz")]) == 0
    samples = load_index(tiny_shards).samples
    with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
        assert found["keys"].tolist() == [row.key for row in samples]
        assert found["folds"].tolist() == [row.fold for row in samples]
        assert found["persons"].tolist() == [row.person for row in samples]
        assert (found["emb"].shape, found["emb"].dtype) == ((len(samples), 8), np.float32)
        assert found["checkpoint"] == "step-00000004.attempt-0001"
    held = sum(row.fold == 0 for row in samples)
    printed = capsys.readouterr().out
    assert "a.npz: " in printed and f"{len(samples)} embeddings" in printed and f"{held} of them" in printed


def test_embed_of_one_fold_writes_the_same_rows(opened_run, tiny_shards, tmp_path):
    for name, words in (("a", []), ("b", ["--fold", "1"])):
        assert cli.main(["embed", str(opened_run), "--out", str(tmp_path / f"{name}.npz"), *words]) == 0
    whole, part = np.load(tmp_path / "a.npz"), np.load(tmp_path / "b.npz")
    chosen = whole["folds"] == 1
    assert part["keys"].tolist() == whole["keys"][chosen].tolist()
    np.testing.assert_allclose(part["emb"], whole["emb"][chosen], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--out", "a.txt"], 2, "--out a.txt: .*npz"),
        (["--out", "/no/where/a.npz"], 2, "--out /no/where/a.npz: .*/no/where"),
        (["--out", "a.npz", "--fold", "9"], 1, "fold 9: .*0, 1, 2"),
    ],
)
def test_embed_refuses_invalid_arguments(opened_run, tmp_path, monkeypatch, capsys, words, code, text):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["embed", str(opened_run), *words]) == code
    assert re.match(f"hsadml: {text}.*\n$", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def exports(monkeypatch):
    """Record the calls of the export itself, which has tests of its own."""
    exports = []

    def export_run(inference, out, chosen, shards):
        exports.append((out, chosen, shards))
        return ExportedModel(path=out, format=chosen, difference=2e-7, random_images=5, real_slices=16)

    monkeypatch.setattr(module, "export_run", export_run)
    monkeypatch.setattr(module, "check_export_packages", lambda chosen: None)
    return exports


@pytest.mark.parametrize(("words", "name", "chosen"), [([], "model.pt2", "torch"), (ONNX, "model.onnx", "onnx")])
def test_export_writes_to_the_run_folder_by_default(opened_run, exports, capsys, words, name, chosen):
    assert cli.main(["export", str(opened_run), *words]) == 0
    path = opened_run / name
    assert exports == [(path, chosen, None)]
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{path}: ") and all(fact in first for fact in ("step 4", "2.0e-07", "5 ", "16 "))
    assert second.startswith(f"{path}.json: ")


def test_export_format_follows_the_suffix(opened_run, exports, tmp_path):
    assert cli.main(["export", str(opened_run), "--out", str(tmp_path / "a.onnx"), "--shards", "there"]) == 0
    assert exports == [(tmp_path / "a.onnx", "onnx", "there")]


def test_export_reports_missing_packages_before_any_work(opened_run, monkeypatch, capsys):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("hsadml_dist.evaluation.model_loading.open_inference", None)
    assert cli.main(["export", str(opened_run), *ONNX]) == 2
    assert "onnx, onnxscript, onnxruntime" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--out", "a.pth"], "--out a.pth: .*.pt2 or .onnx"),
        (["--out", "a.onnx", "--format", "torch"], "--out a.onnx: .*.pt2"),
        (["--out", "no/a.onnx"], "--out no/a.onnx: .* no "),
    ],
)
def test_export_refuses_an_invalid_target(opened_run, tmp_path, monkeypatch, capsys, words, text):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", str(opened_run), *words]) == 2
    assert re.match(f"hsadml: {text}.*\n$", capsys.readouterr().err)
