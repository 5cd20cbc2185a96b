import hashlib
import json

import numpy as np
import pytest
import torch

from hsadml_dist.data.index import load_index
from hsadml_dist.errors import DataError, UsageError
from hsadml_dist.evaluation import export as module
from hsadml_dist.evaluation.export import check_export_packages, export_run, sidecar
from hsadml_dist.evaluation.model_loading import open_inference


@pytest.fixture
def opened(run):
    return open_inference(run)


def network(inference, images):
    """The three outputs, by the network as it stands."""
    with torch.no_grad():
        emb = inference.weights.model.eval()(images)
    unit = emb / emb.norm(dim=1, keepdim=True)
    centres = inference.weights.centre_CD
    return emb, unit, unit @ (centres / centres.norm(dim=1, keepdim=True)).T


@pytest.mark.parametrize("chosen", ["torch", "onnx"])
def test_a_file_answers_as_the_network_for_any_number_of_images(opened, tmp_path, chosen):
    if chosen == "onnx":
        ort = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    out = tmp_path / f"net.{chosen}"
    done = export_run(opened, out, chosen, None)
    assert 0 <= done.difference <= 1e-5
    if chosen == "onnx":
        session = ort.InferenceSession(str(out))
    else:
        loaded = torch.export.load(out.open("rb")).module()
    for count in (1, 2, 7):
        images = torch.randn(count, 1, 16, 16)
        found = session.run(None, {"image": images.numpy()}) if chosen == "onnx" else loaded(images)
        for one, other in zip(found, network(opened, images), strict=True):
            np.testing.assert_allclose(np.asarray(one), other, atol=1e-5)


def test_a_description_lies_beside_it(opened, shards, tmp_path):
    out = tmp_path / "net.pt2"
    export_run(opened, out, "torch", None)
    told = json.loads(sidecar(out).read_text())
    assert sidecar(out).name == "net.pt2.json"
    assert told["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert (told["classes"], told["image_size"], told["shard_size"]) == (["glioma", "meningioma", "pituitary"], 16, 24)
    assert (told["checkpoint"], told["data_digest"]) == ("step-00000002.attempt-0001", load_index(shards).digest)
    assert told["checked"]["max_difference"] <= told["checked"]["tolerance"] == 1e-5
    assert (told["checked"]["random_images"], told["checked"]["real_slices"]) == (5, 16)
    assert sorted(path.name for path in tmp_path.glob("net*")) == ["net.pt2", "net.pt2.json"]


@pytest.mark.parametrize("wrong", [lambda value: value + 2e-5, lambda value: value * torch.nan])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_file_that_differs_is_not_kept_and_the_old_one_stays(opened, tmp_path, monkeypatch, wrong, place):
    def runner(path):
        def run(images):
            outputs = list(network(opened, images))
            # A factor, for embeddings longer than 1.
            outputs[place] = wrong(outputs[place]) if place else wrong(outputs[0] / 100) * 100
            return outputs

        return run

    out = tmp_path / "net.pt2"
    out.write_text("old")
    monkeypatch.setattr(module, "_write_torch", lambda net, size, path: path.write_text("new"))
    monkeypatch.setattr(module, "_torch_runner", runner)
    with pytest.raises(DataError, match=r"differs from the network by .*, allowed: 1e-05; not kept"):
        export_run(opened, out, "torch", None)
    assert out.read_text() == "old"
    assert [path.name for path in tmp_path.glob("*net*")] == ["net.pt2"]


def test_other_shards_do_not_describe_it(opened, other_shards, tmp_path):
    with pytest.raises(DataError, match="other shards than its"):
        export_run(opened, tmp_path / "net.pt2", "torch", other_shards)


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else object())
    check_export_packages("torch")
    with pytest.raises(UsageError, match=r"not installed: onnxscript; pip install 'hsadml-dist\[export\]'"):
        check_export_packages("onnx")
