"""Exported files against the network, and their descriptions."""

import hashlib
import json

import numpy as np
import pytest
import torch

from hsadml_dist.config.recipe import LossConfig
from hsadml_dist.data.index import load_index
from hsadml_dist.errors import DataError, UsageError
from hsadml_dist.evaluation import export as module
from hsadml_dist.evaluation.classifiers import class_probabilities
from hsadml_dist.evaluation.export import check_export_packages, export_run, probability_formula, sidecar
from hsadml_dist.evaluation.model_loading import open_inference
from hsadml_dist.model_factory import build_margin_loss


@pytest.fixture
def opened(run):
    return open_inference(run)


def network(inference, images):
    """Return the three outputs of the network itself."""
    with torch.no_grad():
        emb = inference.weights.model.eval()(images)
    unit = emb / emb.norm(dim=1, keepdim=True)
    centres = inference.weights.centre_CD
    return emb, unit, unit @ (centres / centres.norm(dim=1, keepdim=True)).T


@pytest.mark.parametrize("chosen", ["torch", "onnx"])
def test_export_run_equals_the_network_for_any_batch_size(opened, tmp_path, chosen):
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


def test_export_run_writes_a_description(opened, shards, tmp_path):
    out = tmp_path / "net.pt2"
    export_run(opened, out, "torch", None)
    values = json.loads(sidecar(out).read_text())
    assert sidecar(out).name == "net.pt2.json"
    assert values["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert (values["classes"], values["image_size"], values["shard_size"]) == (
        ["glioma", "meningioma", "pituitary"],
        16,
        24,
    )
    assert (values["checkpoint"], values["data_digest"]) == ("step-00000002.attempt-0001", load_index(shards).digest)
    assert values["checked"]["max_difference"] <= values["checked"]["tolerance"] == 1e-5
    assert (values["checked"]["random_images"], values["checked"]["real_slices"]) == (5, 16)
    assert sorted(path.name for path in tmp_path.glob("net*")) == ["net.pt2", "net.pt2.json"]


@pytest.mark.parametrize("alter", [lambda value: value + 2e-5, lambda value: value * torch.nan])
@pytest.mark.parametrize("output", [0, 1, 2])
def test_export_run_keeps_the_old_file_if_outputs_differ(opened, tmp_path, monkeypatch, alter, output):
    def runner(path):
        def run(images):
            outputs = list(network(opened, images))
            # A factor, for embeddings longer than 1.
            outputs[output] = alter(outputs[output]) if output else alter(outputs[0] / 100) * 100
            return outputs

        return run

    out = tmp_path / "net.pt2"
    out.write_text("old")
    monkeypatch.setattr(module, "write_torch", lambda net, size, path: path.write_text("new"))
    monkeypatch.setattr(module, "torch_runner", runner)
    with pytest.raises(DataError, match=r"net.pt2: .*1e-05"):
        export_run(opened, out, "torch", None)
    assert out.read_text() == "old"
    assert [path.name for path in tmp_path.glob("*net*")] == ["net.pt2"]


def test_export_run_refuses_other_shards(opened, other_shards, tmp_path):
    with pytest.raises(DataError, match="--shards"):
        export_run(opened, tmp_path / "net.pt2", "torch", other_shards)


def test_missing_export_package_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else object())
    check_export_packages("torch")
    with pytest.raises(UsageError, match=r"onnxscript.*pip install 'hsadml-dist\[export\]'"):
        check_export_packages("onnx")


@pytest.mark.parametrize(("name", "bias"), [("cosface", None), ("sphereface2", -2.25)])
def test_probability_formula_gives_the_probabilities_of_the_loss(name, bias):
    loss = LossConfig(name=name, scale=3.0, sharpness=2.0)
    formula, end, _ = probability_formula(loss, bias).partition(" divided by its sum over the classes")
    cosine = np.array([0.6, -0.8])
    functions = {
        "sigmoid": lambda logit: 1 / (1 + np.exp(-logit)),
        "softmax": lambda logit: np.exp(logit) / np.exp(logit).sum(),
    }
    found = eval(formula, functions | {"cosine": cosine})
    expected = class_probabilities(torch.tensor([[0.6, -0.8]]), torch.eye(2), build_margin_loss(loss), bias)
    np.testing.assert_allclose(found / (found.sum() if end else 1), expected[0], rtol=1e-6)
    assert bool(end) == (name == "sphereface2")
