import numpy as np
import pytest
import torch

from hsadml_dist.data.index import load_index
from hsadml_dist.data.reader import ShardReader
from hsadml_dist.evaluation.gallery import load_gallery
from hsadml_dist.evaluation.model_loading import open_inference
from hsadml_dist.evaluation.predict import predict_images


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


def test_answers_are_those_of_slow_loops(opened, images):
    inference, references = opened
    table = references.table
    embedded = inference.embedded(images)
    known, centres = unit(table.emb_ND.astype(float)), unit(inference.weights.centre_CD.double().numpy())
    for answer, emb in zip(
        predict_images(inference, references, images), embedded.emb_ND.double().numpy(), strict=True
    ):
        cosine = known @ unit(emb)
        places = sorted(range(len(known)), key=lambda place: -cosine[place])[:3]
        assert [one.key for one in answer.neighbours] == [table.keys[place] for place in places]
        assert [one.class_name for one in answer.neighbours] == [table.classes[table.label_N[p]] for p in places]
        assert [one.cosine for one in answer.neighbours] == pytest.approx([cosine[place] for place in places], abs=1e-6)
        logits = [float(centre @ emb) for centre in centres]  # A-Softmax: the scale is the length
        total = sum(np.exp(logit - max(logits)) for logit in logits)
        expected = [np.exp(logit - max(logits)) / total for logit in logits]
        assert answer.probabilities == pytest.approx(expected, rel=1e-4)
        assert answer.class_name == table.classes[int(np.argmax(expected))]
        assert answer.probability == max(answer.probabilities)
        assert ("embedding" in answer.far_by) == (1 - cosine.max() > references.embedding_threshold)


def test_a_training_case_is_known_again_and_a_new_slice_is_not(opened, shards, images):
    index = load_index(shards)
    position = index.outside_folds([0])[5]
    again, new = predict_images(*opened, [ShardReader(shards, index).image(position), images[0]])
    assert again.is_training_case and not again.far_by
    assert again.neighbours[0].key == index.samples[position].key
    assert again.neighbours[0].cosine == pytest.approx(1)
    assert "one of the training cases" in again.warnings[-1]
    assert not new.is_training_case


def test_what_looks_like_no_training_case_is_far(opened, images):
    inverted, ramp = 65535 - images[0], np.tile(np.linspace(0, 65535, 24).astype(np.uint16), (24, 1))
    for answer in predict_images(*opened, [inverted, ramp]):
        assert "look" in answer.far_by
        assert answer.warnings[0].startswith("far from all training cases (by ")
        assert not any("nearest training case is" in text for text in answer.warnings)


def test_a_nearest_case_of_another_class_is_told(opened, images):
    for answer in predict_images(*opened, images):
        first = answer.neighbours[0].class_name
        told = f"its nearest training case is of class {first}" in answer.warnings
        assert told == (first != answer.class_name and not answer.far_by)


def test_no_images_no_answers(opened):
    assert predict_images(*opened, []) == []


def test_a_picture_of_one_value_is_answered(opened):
    (answer,) = predict_images(*opened, [np.zeros((24, 24), np.uint16)])
    assert torch.tensor(answer.probabilities).sum() == pytest.approx(1)
