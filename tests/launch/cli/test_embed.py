import numpy as np
import pytest

from hsadml_dist.data.index import load_index
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
