from collections import defaultdict

import numpy as np
import pytest

from hsadml_dist.shards.sources.phantom.head_anatomy import load_anatomy
from hsadml_dist.shards.sources.phantom.lesion import SELLA_MM, make_lesion
from hsadml_dist.shards.sources.phantom.patient import AXES, make_patient, make_pose
from hsadml_dist.shards.sources.phantom.slice_renderer import (
    SLICE_SPACING_MM,
    exam_contrast,
    render_slice,
    slice_levels,
    slice_points,
)

SIZE = 96


@pytest.fixture(scope="module")
def anatomy():
    return load_anatomy()


def patients(count, seed=3):
    return [make_patient(seed, number) for number in range(count)]


def test_mask_is_the_tumour_in_every_plane_and_exam(anatomy):
    """A pixel is in the mask if its coordinates are inside the patient's tumour, in any plane and exam."""
    seen = set()
    for patient in patients(30):
        lesion = make_lesion(patient)
        for number in range(0, len(patient.planes), 4):
            points_3P, _ = slice_points(patient, number, SIZE)
            mask = render_slice(patient, number, SIZE).mask
            np.testing.assert_array_equal(mask > 0, lesion.depth(points_3P, anatomy) > 0)
            seen.add((patient.class_name, patient.planes[number]))
    assert len(seen) == 9


def test_mask_position_matches_the_kind_of_tumour(anatomy):
    found = defaultdict(list)
    for patient in patients(45):
        points_3P, _ = slice_points(patient, 0, SIZE)
        inside = points_3P[:, render_slice(patient, 0, SIZE).mask > 0]
        skull, white = anatomy.inner.sample(inside).max(), np.mean(anatomy.white.sample(inside) > 100)
        found[patient.class_name].append((skull, white, np.linalg.norm(inside.mean(1) - SELLA_MM)))
    skull, white, sella = ({name: np.array(rows)[:, column] for name, rows in found.items()} for column in range(3))
    assert np.mean(skull["meningioma"] > -2) > 0.9 and skull["glioma"].max() < 0
    assert np.median(white["glioma"]) > max(0.42, np.median(white["meningioma"]) + 0.15)
    assert sella["pituitary"].max() < 22 < np.median(sella["glioma"])


def test_slice_levels_cover_the_tumour_at_slice_thickness_or_closer(anatomy):
    steps = []
    for patient in patients(60):
        for exam, plane in sorted(set(zip(patient.exams, patient.planes, strict=True))):
            levels = slice_levels(patient, exam, plane)
            along = make_pose(patient, exam).to_scanner(make_lesion(patient).points_inside(anatomy))[AXES[plane]]
            assert along.min() < min(levels) and max(levels) < along.max()
            steps.extend(np.diff(levels))
            assert len(levels) == sum(k == (exam, plane) for k in zip(patient.exams, patient.planes, strict=True))
    assert min(steps) > 0 and max(steps) <= SLICE_SPACING_MM + 1e-6
    assert np.quantile(steps, 0.75) > 6


def test_slice_points_are_at_the_slice_level():
    patient = make_patient(3, 4)
    points_3P, _ = slice_points(patient, 0, SIZE)
    plane, exam = patient.planes[0], patient.exams[0]
    back = make_pose(patient, exam).to_scanner(points_3P.reshape(3, -1))
    np.testing.assert_allclose(back[AXES[plane]], slice_levels(patient, exam, plane)[0], atol=0.3)


def test_render_slice_shows_the_same_content_at_all_sizes():
    patient = make_patient(3, 2)
    small, large = (render_slice(patient, 0, size) for size in (64, 256))
    blocks = large.image.reshape(64, 4, 64, 4).mean((1, 3))
    assert np.corrcoef(blocks.ravel(), small.image.ravel())[0, 1] > 0.95
    assert large.mask.mean() == pytest.approx(small.mask.mean(), rel=0.1)


def test_render_slice_of_second_exam_resembles_the_first():
    patient = next(p for p in patients(200) if 1 in p.exams and p.exams.count(0) > 1 and len(set(p.planes)) == 1)
    other = next(p for p in patients(200) if p.number != patient.number and p.planes[0] == patient.planes[0])
    first, second = render_slice(patient, 0, SIZE).image, render_slice(patient, patient.exams.index(1), SIZE).image
    assert exam_contrast(patient, 0).grey != exam_contrast(patient, 1).grey
    assert not np.array_equal(first, second)
    assert np.abs(first - second).mean() < 0.8 * np.abs(first - render_slice(other, 0, SIZE).image).mean()


def axial_slices():
    """Yield axial slices well above the base of the skull, with their template coordinates."""
    for patient in patients(120):
        for number, plane in enumerate(patient.planes):
            points_3P, brain_3P = slice_points(patient, number, SIZE)
            if plane == "axial" and points_3P[2].min() > 5:
                yield render_slice(patient, number, SIZE), points_3P, brain_3P
                break


def test_render_slice_orders_tissue_brightness(anatomy):
    tones = defaultdict(list)
    for one, points_3P, brain_3P in axial_slices():
        inner, skin, tissue = (
            anatomy.inner.sample(points_3P),
            anatomy.skin.sample(points_3P),
            anatomy.brain.sample(brain_3P),
        )
        deep = (inner < -4) & (one.mask == 0)
        for name, where in {
            "air": skin > 6,
            "fat": (skin > -4) & (skin < -2.5),
            "bone": (inner > 1.0) & (inner < 1.8),
            "fluid": deep & (tissue < 80),
            "grey": deep & (abs(tissue - 158) < 10),
            "white": deep & (abs(tissue - 212) < 6),
        }.items():
            if where.sum() > 8:
                tones[name].append(np.median(one.image[where]))
    tone = {name: np.median(values) for name, values in tones.items()}
    assert tone["air"] < 0.06 < tone["fluid"] < 0.85 * tone["grey"]
    assert tone["bone"] < 0.8 * tone["grey"]
    assert 1.08 * tone["grey"] < tone["white"] < 0.75 * tone["fat"]


def test_render_slice_shows_neck_below_and_air_around():
    seen = 0
    for patient in patients(60):
        if patient.planes[0] == "sagittal" and abs(make_lesion(patient).centre[0]) < 25:
            image = render_slice(patient, 0, SIZE).image
            assert image[-6:, SIZE // 2 : 3 * SIZE // 4].mean() > 0.1
            assert max(image[:12, :12].mean(), image[:12, -12:].mean(), image[-6:, :12].mean()) < 0.08
            seen += 1
    assert seen > 5


def test_render_slice_displaces_tissue_next_to_the_tumour():
    for patient in patients(6):
        lesion = make_lesion(patient)
        points_3P, brain_3P = slice_points(patient, 0, SIZE)
        before, now = (np.linalg.norm(at - lesion.centre[:, None, None], axis=0) for at in (brain_3P, points_3P))
        beside = (now > lesion.radius) & (now < 1.4 * lesion.radius)
        assert np.median((now - before)[beside]) > 0.1 * lesion.radius
