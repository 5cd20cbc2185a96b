import numpy as np
import pytest

from hsadml_dist.evaluation import ood as nearness

PERSONS = {
    "known": ["a", "a", "b", "c", "c", "c", "d"],
    "some unknown": ["a", "", "", "c", "c", "c", "a"],
    "one person": ["a"] * 7,
    "nobody known": [""] * 7,
}


def slow_threshold(persons, distance):
    """Look at every pair."""
    alone = len(set(persons)) == 1
    least = []
    for i, person in enumerate(persons):
        others = [j for j, other in enumerate(persons) if j != i and (alone or not person or other != person)]
        least.append(min(distance(i, j) for j in others))
    return np.quantile(least, 0.995)


@pytest.fixture
def thumbnails():
    return np.random.default_rng(0).integers(0, 256, (7, 64 * 64), dtype=np.uint8)


@pytest.mark.parametrize("persons", PERSONS.values(), ids=PERSONS)
@pytest.mark.parametrize("at_a_time", [2, 512])
def test_an_embeddings_threshold_leaves_its_own_person_out(persons, at_a_time, monkeypatch):
    monkeypatch.setattr(nearness, "_QUERIES_AT_A_TIME", at_a_time)
    emb = np.random.default_rng(1).normal(size=(7, 5)).astype(np.float32)

    def distance(i, j):
        return 1 - emb[i] @ emb[j] / (np.linalg.norm(emb[i]) * np.linalg.norm(emb[j]))

    assert nearness.embedding_threshold(emb, persons) == pytest.approx(slow_threshold(persons, distance), abs=1e-6)


@pytest.mark.parametrize("persons", PERSONS.values(), ids=PERSONS)
def test_a_looks_threshold_leaves_its_own_person_out(persons, thumbnails):
    known = nearness.looks(thumbnails)

    def distance(i, j):
        return np.sqrt(np.mean((known.look_NG[i] - known.look_NG[j]) ** 2))

    assert nearness.look_threshold(known, persons) == pytest.approx(slow_threshold(persons, distance), abs=1e-9)


def test_a_threshold_of_many_is_taken_from_some_of_them(monkeypatch):
    emb = np.random.default_rng(1).normal(size=(60, 3)).astype(np.float32)
    full = nearness.embedding_threshold(emb, [""] * 60)
    monkeypatch.setattr(nearness, "MAX_QUERIES", 2)
    unit = emb / np.linalg.norm(emb, axis=1, keepdims=True)
    ends = [np.sort(1 - unit @ unit[place])[1] for place in (0, 59)]
    some = nearness.embedding_threshold(emb, [""] * 60)
    assert some == pytest.approx(np.quantile(ends, 0.995), abs=1e-6)
    assert some != full


def test_nothing_is_far_from_a_single_case():
    assert nearness.embedding_threshold(np.ones((1, 3), np.float32), ["a"]) == np.inf


def test_brightness_is_the_mean_of_each_cell(thumbnails):
    found = nearness.brightness(thumbnails)
    square = thumbnails[3].reshape(64, 64) / 255
    slow = [
        square[8 * row : 8 * row + 8, 8 * column : 8 * column + 8].mean() for row in range(8) for column in range(8)
    ]
    np.testing.assert_allclose(found[3], slow)
    assert nearness.brightness(thumbnails[:0]).shape == (0, 64)


def test_looks_are_standardised_but_a_black_corner_stays_near_a_grey_one():
    pictures = np.zeros((4, 64, 64), np.uint8)
    pictures[:, 20:40, 20:40] = np.array([60, 120, 180, 250], np.uint8)[:, None, None]
    known = nearness.looks(pictures.reshape(4, -1))
    grey = pictures[:1].copy()
    grey[:, :8, :8] = 5
    distance = known.distance(np.concatenate([pictures, grey]).reshape(5, -1))
    np.testing.assert_allclose(distance[:4], 0, atol=1e-7)
    assert distance[4] == pytest.approx((5 / 255 / nearness.MIN_STD) / 8)


def test_an_inverted_picture_is_far_and_a_like_one_is_not():
    generator = np.random.default_rng(2)
    row, column = np.mgrid[:64, :64]
    radius = np.hypot(row - 32, column - 32)
    pictures = np.array(
        [np.where(radius < generator.uniform(20, 28), 200, 0) + generator.integers(0, 20, (64, 64)) for _ in range(30)]
    ).astype(np.uint8)
    known = nearness.looks(pictures[:25].reshape(25, -1))
    most = nearness.look_threshold(known, [""] * 25)
    assert (known.distance(255 - pictures[25:].reshape(5, -1)) > most).all()
    assert (known.distance(pictures[25:].reshape(5, -1)) <= most).sum() >= 4
