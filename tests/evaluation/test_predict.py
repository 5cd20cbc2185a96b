"""Predictions for single images against slow loops, and their warnings."""

import numpy as np
import pytest
import torch

from hsadml_dist.data.index import load_index
from hsadml_dist.data.reader import ShardReader
from hsadml_dist.evaluation.model_loading import open_inference
from hsadml_dist.evaluation.predict import load_gallery, predict_images


@pytest.fixture
def opened(run):
    inference = open_inference(run)
    return inference, load_gallery(inference, None, lambda text: None, lambda done, total: None)


@pytest.fixture
def images(shards):
    """Six slices of the held-out fold."""
    index = load_index(shards)
    return [ShardReader(shards, index).image(position) for position in index.in_folds([0])[:6]]


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_predict_images_equals_slow_loops(opened, images):
    inference, gallery = opened
    table = gallery.table
    embedded = inference.embed(images)
    known, centres = unit(table.emb_ND.astype(float)), unit(inference.weights.centre_CD.double().numpy())
    for prediction, emb in zip(
        predict_images(inference, gallery, images), embedded.emb_ND.double().numpy(), strict=True
    ):
        cosine = known @ unit(emb)
        rows = sorted(range(len(known)), key=lambda row: -cosine[row])[:3]
        assert [one.key for one in prediction.neighbours] == [table.keys[row] for row in rows]
        assert [one.class_name for one in prediction.neighbours] == [table.classes[table.label_N[row]] for row in rows]
        assert [one.cosine for one in prediction.neighbours] == pytest.approx([cosine[row] for row in rows], abs=1e-6)
        logits = [float(centre @ emb) for centre in centres]  # A-Softmax: the scale is the length
        total = sum(np.exp(logit - max(logits)) for logit in logits)
        expected = [np.exp(logit - max(logits)) / total for logit in logits]
        assert prediction.probabilities == pytest.approx(expected, rel=1e-4)
        assert prediction.class_name == table.classes[int(np.argmax(expected))]
        assert prediction.probability == max(prediction.probabilities)
        assert ("embedding" in prediction.far_by) == (1 - cosine.max() > gallery.embedding_threshold)


def test_training_case_is_recognised_and_new_slice_is_not(opened, shards, images):
    index = load_index(shards)
    position = index.outside_folds([0])[5]
    again, new = predict_images(*opened, [ShardReader(shards, index).image(position), images[0]])
    assert again.is_training_case and not again.far_by
    assert again.neighbours[0].key == index.samples[position].key
    assert again.neighbours[0].cosine == pytest.approx(1)
    assert len(again.warnings) == 1 + (again.neighbours[0].class_name != again.class_name)
    assert not new.is_training_case


def test_inverted_image_and_ramp_are_far_by_thumbnail(opened, images):
    inverted, ramp = 65535 - images[0], np.tile(np.linspace(0, 65535, 24).astype(np.uint16), (24, 1))
    for prediction in predict_images(*opened, [inverted, ramp]):
        assert "look" in prediction.far_by
        (warning,) = prediction.warnings
        assert all(name in warning for name in prediction.far_by)


def test_warning_if_nearest_case_is_of_another_class(opened, images):
    for prediction in predict_images(*opened, images):
        first = prediction.neighbours[0].class_name
        if not prediction.far_by:
            assert len(prediction.warnings) == (first != prediction.class_name)
            assert all(first in warning for warning in prediction.warnings)


def test_predict_images_of_nothing_is_empty(opened):
    assert predict_images(*opened, []) == []


def test_constant_image_gets_probabilities(opened):
    (prediction,) = predict_images(*opened, [np.zeros((24, 24), np.uint16)])
    assert torch.tensor(prediction.probabilities).sum() == pytest.approx(1)
