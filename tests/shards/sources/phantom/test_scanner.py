import dataclasses

import numpy as np
import pytest

from hsadml_dist.shards.sources.phantom.scanner import SITES, Contrast, make_contrast, scan

SIZE = 64
PLAIN = SITES[0]


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture
def flat() -> Contrast:
    drawn = make_contrast(rng(), rng(1))
    return dataclasses.replace(drawn, coil=np.zeros(6, np.float32), gamma=1.0)


def picture(value=0.5):
    return np.full((SIZE, SIZE), value, np.float32)


def test_scan_differs_between_sites(flat):
    head = picture(0.1)
    head[16:48, 16:48] = 0.6
    pictures = [scan(head, site, flat, rng()) for site in SITES]
    assert all(one.dtype == np.float32 for one in pictures)
    for i, one in enumerate(pictures):
        assert all(np.abs(one - two).mean() > 0.01 for two in pictures[:i])


@pytest.mark.parametrize(
    ("habit", "value", "middle"), [("gain", 0.5, 0.25), ("gamma", 2.0, 0.25), ("gamma", 0.5, 0.5**0.5)]
)
def test_scan_applies_gain_and_gamma(flat, habit, value, middle):
    habits = {"gain": 1.0, "gamma": 1.0, "noise": 0.0, "shading": 0.0, habit: value}
    shown = scan(picture(), dataclasses.replace(PLAIN, **habits), flat, rng())
    np.testing.assert_allclose(shown, middle, rtol=1e-4)


def test_scan_shading_darkens_the_bottom(flat):
    shown = scan(picture(), dataclasses.replace(PLAIN, noise=0.0, shading=0.4), flat, rng())
    assert shown[0].mean() > 1.3 * shown[-1].mean()
    np.testing.assert_allclose(shown[:, 0], shown[:, -1], rtol=1e-5)


def test_scan_blur_is_in_millimetres(flat):
    def edge(blur_mm, size):
        step = np.zeros((size, size), np.float32)
        step[:, size // 2 :] = 0.5
        site = dataclasses.replace(PLAIN, blur_mm=blur_mm, noise=0.0, shading=0.0)
        return np.diff(scan(step, site, flat, rng())[0]).max() * size

    assert edge(6.0, 128) < 0.7 * edge(3.0, 128)
    assert edge(6.0, 128) == pytest.approx(edge(6.0, 64), rel=0.15)


def test_scan_noise_is_rician(flat):
    site = dataclasses.replace(PLAIN, noise=0.05, shading=0.0)
    air, tissue = scan(picture(0.0), site, flat, rng()), scan(picture(0.6), site, flat, rng())
    assert air.mean() == pytest.approx(0.05 * np.sqrt(np.pi / 2), rel=0.05)
    assert tissue.std() == pytest.approx(0.05, rel=0.1)


def test_scan_clips_brightness(flat):
    assert scan(picture(9.0), PLAIN, flat, rng()).max() == np.float32(1.2)


def test_contrast_varies_more_between_patients_than_between_exams():
    patients = [make_contrast(rng(person), rng(99)) for person in range(40)]
    exams = [make_contrast(rng(3), rng(100 + exam)) for exam in range(40)]
    for tissue in ("fluid", "grey", "fat", "vessel", "marrow"):
        among = np.std([getattr(one, tissue) for one in patients]) / np.mean([getattr(one, tissue) for one in patients])
        again = np.std([getattr(one, tissue) for one in exams]) / np.mean([getattr(one, tissue) for one in exams])
        assert 0.01 < again < 0.06 < among, tissue
    assert all(one.fluid < one.grey < one.white < one.fat for one in patients)
    assert len({one.skull_mm for one in exams}) == 1
