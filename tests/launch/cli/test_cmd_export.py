import numpy as np
import pytest

from hsadml_dist.data.index import load_index
from hsadml_dist.evaluation import export as module
from hsadml_dist.evaluation.export import ExportedModel
from hsadml_dist.launch import cli


def test_all_slices_are_written_in_the_order_of_the_index(opened_run, tiny_shards, tmp_path, capsys):
    assert cli.main(["embed", str(opened_run), "--out", str(tmp_path / "a.npz")]) == 0
    samples = load_index(tiny_shards).samples
    with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
        assert found["keys"].tolist() == [row.key for row in samples]
        assert found["folds"].tolist() == [row.fold for row in samples]
        assert found["persons"].tolist() == [row.person for row in samples]
        assert (found["emb"].shape, found["emb"].dtype) == ((len(samples), 8), np.float32)
        assert found["checkpoint"] == "step-00000004.attempt-0001"
    held = sum(row.fold == 0 for row in samples)
    assert f"a.npz: {len(samples)} embeddings of 8 components, {held} of them of folds that" in capsys.readouterr().out


def test_one_fold_is_the_same_rows(opened_run, tiny_shards, tmp_path):
    for name, words in (("a", []), ("b", ["--fold", "1"])):
        assert cli.main(["embed", str(opened_run), "--out", str(tmp_path / f"{name}.npz"), *words]) == 0
    whole, part = np.load(tmp_path / "a.npz"), np.load(tmp_path / "b.npz")
    chosen = whole["folds"] == 1
    assert part["keys"].tolist() == whole["keys"][chosen].tolist()
    np.testing.assert_allclose(part["emb"], whole["emb"][chosen], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--out", "a.txt"], 2, "--out a.txt: must end in .npz"),
        (["--out", "/no/where/a.npz"], 2, "--out /no/where/a.npz: the folder /no/where does not exist"),
        (["--out", "a.npz", "--fold", "9"], 1, "fold 9: these shards have no such fold; allowed: 0, 1, 2"),
    ],
)
def test_what_cannot_be_done_is_one_line(opened_run, tmp_path, monkeypatch, capsys, words, code, text):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["embed", str(opened_run), *words]) == code
    assert capsys.readouterr().err == f"hsadml: {text}\n"
    assert not list(tmp_path.iterdir())


ONNX = ["--format", "onnx"]


@pytest.fixture
def asked(monkeypatch):
    """What the export proper, which its own tests carry out, is asked for."""
    asked = []

    def export_run(inference, out, chosen, shards):
        asked.append((out, chosen, shards))
        return ExportedModel(path=out, format=chosen, difference=2e-7, random_images=5, real_slices=16)

    monkeypatch.setattr(module, "export_run", export_run)
    monkeypatch.setattr(module, "check_export_packages", lambda chosen: None)
    return asked


@pytest.mark.parametrize(("words", "name", "chosen"), [([], "model.pt2", "torch"), (ONNX, "model.onnx", "onnx")])
def test_by_default_the_file_is_in_the_run_folder(opened_run, asked, capsys, words, name, chosen):
    assert cli.main(["export", str(opened_run), *words]) == 0
    path = opened_run / name
    assert asked == [(path, chosen, None)]
    assert capsys.readouterr().out == (
        f"{path}: weights of step 4; largest difference from the network 2.0e-07 on 5 random images and 16 slices\n"
        f"{path}.json: what goes in and what comes out\n"
    )


def test_the_suffix_chooses_the_format(opened_run, asked, tmp_path):
    assert cli.main(["export", str(opened_run), "--out", str(tmp_path / "a.onnx"), "--shards", "there"]) == 0
    assert asked == [(tmp_path / "a.onnx", "onnx", "there")]


def test_packages_are_asked_for_before_any_work(opened_run, monkeypatch, capsys):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("hsadml_dist.evaluation.model_loading.open_inference", None)
    assert cli.main(["export", str(opened_run), *ONNX]) == 2
    assert "onnx, onnxscript, onnxruntime" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--out", "a.pth"], "--out a.pth: must end in .pt2 or .onnx"),
        (["--out", "a.onnx", "--format", "torch"], "--out a.onnx: must end in .pt2"),
        (["--out", "no/a.onnx"], "--out no/a.onnx: the folder no does not exist"),
    ],
)
def test_a_wrong_target_is_one_line(opened_run, tmp_path, monkeypatch, capsys, words, text):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", str(opened_run), *words]) == 2
    assert capsys.readouterr().err == f"hsadml: {text}\n"
