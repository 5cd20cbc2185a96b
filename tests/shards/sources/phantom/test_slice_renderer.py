from collections import defaultdict

import numpy as np
import pytest

from hsadml_dist.shards.sources.phantom.head_anatomy import load_anatomy
from hsadml_dist.shards.sources.phantom.lesion import SELLA_MM, make_lesion
from hsadml_dist.shards.sources.phantom.patient import AXES, make_patient, make_pose
from hsadml_dist.shards.sources.phantom.slice_renderer import (
    STEP_MM,
    exam_contrast,
    render_slice,
    slice_levels,
    slice_places,
)

SIZE = 96


@pytest.fixture(scope="module")
def anatomy():
    return load_anatomy()


def people(count, seed=3):
    return [make_patient(seed, patient) for patient in range(count)]


def test_all_planes_cut_one_body(anatomy):
    """A pixel is inside the mask where its place is inside the person's tumour, in whatever plane and exam."""
    seen = set()
    for person in people(30):
        lesion = make_lesion(person)
        for number in range(0, len(person.planes), 4):
            places_3P, _ = slice_places(person, number, SIZE)
            mask = render_slice(person, number, SIZE).mask
            np.testing.assert_array_equal(mask > 0, lesion.depth(places_3P, anatomy) > 0)
            seen.add((person.class_name, person.planes[number]))
    assert len(seen) == 9


def test_masks_lie_where_each_kind_of_tumour_lies(anatomy):
    found = defaultdict(list)
    for person in people(45):
        places_3P, _ = slice_places(person, 0, SIZE)
        inside = places_3P[:, render_slice(person, 0, SIZE).mask > 0]
        skull, white = anatomy.inner.at(inside).max(), np.mean(anatomy.white.at(inside) > 100)
        found[person.class_name].append((skull, white, np.linalg.norm(inside.mean(1) - SELLA_MM)))
    skull, white, sella = ({name: np.array(rows)[:, column] for name, rows in found.items()} for column in range(3))
    assert np.mean(skull["meningioma"] > -2) > 0.9 and skull["glioma"].max() < 0
    assert np.median(white["glioma"]) > max(0.42, np.median(white["meningioma"]) + 0.15)
    assert sella["pituitary"].max() < 22 < np.median(sella["glioma"])


def test_neighbouring_slices_are_a_slices_thickness_apart_or_closer_where_there_are_many(anatomy):
    steps = []
    for person in people(60):
        for exam, plane in sorted(set(zip(person.exams, person.planes, strict=True))):
            levels = slice_levels(person, exam, plane)
            along = make_pose(person, exam).to_scanner(make_lesion(person).places_inside(anatomy))[AXES[plane]]
            assert along.min() < min(levels) and max(levels) < along.max()
            steps.extend(np.diff(levels))
            assert len(levels) == sum(k == (exam, plane) for k in zip(person.exams, person.planes, strict=True))
    assert min(steps) > 0 and max(steps) <= STEP_MM + 1e-6
    assert np.quantile(steps, 0.75) > 6


def test_a_slice_lies_at_its_level_in_the_scanner():
    person = make_patient(3, 4)
    places_3P, _ = slice_places(person, 0, SIZE)
    plane, exam = person.planes[0], person.exams[0]
    back = make_pose(person, exam).to_scanner(places_3P.reshape(3, -1))
    np.testing.assert_allclose(back[AXES[plane]], slice_levels(person, exam, plane)[0], atol=0.3)


def test_sizes_show_the_same_slice():
    person = make_patient(3, 2)
    small, large = (render_slice(person, 0, size) for size in (64, 256))
    blocks = large.image.reshape(64, 4, 64, 4).mean((1, 3))
    assert np.corrcoef(blocks.ravel(), small.image.ravel())[0, 1] > 0.95
    assert large.mask.mean() == pytest.approx(small.mask.mean(), rel=0.1)


def test_a_second_exam_is_another_picture_of_the_same_head():
    person = next(p for p in people(200) if 1 in p.exams and p.exams.count(0) > 1 and len(set(p.planes)) == 1)
    other = next(p for p in people(200) if p.patient != person.patient and p.planes[0] == person.planes[0])
    first, second = render_slice(person, 0, SIZE).image, render_slice(person, person.exams.index(1), SIZE).image
    assert exam_contrast(person, 0).grey != exam_contrast(person, 1).grey
    assert not np.array_equal(first, second)
    assert np.abs(first - second).mean() < 0.8 * np.abs(first - render_slice(other, 0, SIZE).image).mean()


def axial_slices():
    """Return axial slices well above the skull's base: each with its template places."""
    for person in people(120):
        for number, plane in enumerate(person.planes):
            places_3P, brain_3P = slice_places(person, number, SIZE)
            if plane == "axial" and places_3P[2].min() > 5:
                yield render_slice(person, number, SIZE), places_3P, brain_3P
                break


def test_fat_is_bright_bone_dark_fluid_darker_than_grey_and_grey_than_white(anatomy):
    tones = defaultdict(list)
    for one, places_3P, brain_3P in axial_slices():
        inner, skin, tissue = anatomy.inner.at(places_3P), anatomy.skin.at(places_3P), anatomy.brain.at(brain_3P)
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


def test_below_the_brain_the_neck_runs_out_of_the_picture_and_beside_it_is_air():
    seen = 0
    for person in people(60):
        if person.planes[0] == "sagittal" and abs(make_lesion(person).centre[0]) < 25:
            image = render_slice(person, 0, SIZE).image
            assert image[-6:, SIZE // 2 : 3 * SIZE // 4].mean() > 0.1
            assert max(image[:12, :12].mean(), image[:12, -12:].mean(), image[-6:, :12].mean()) < 0.08
            seen += 1
    assert seen > 5


def test_brain_tissue_beside_the_tumour_comes_from_where_the_tumour_is():
    for person in people(6):
        lesion = make_lesion(person)
        places_3P, brain_3P = slice_places(person, 0, SIZE)
        before, now = (np.linalg.norm(at - lesion.centre[:, None, None], axis=0) for at in (brain_3P, places_3P))
        beside = (now > lesion.radius) & (now < 1.4 * lesion.radius)
        assert np.median((now - before)[beside]) > 0.1 * lesion.radius
