from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from hsadml_dist.shards.sources.phantom.person import CLASSES, PLANES_A_PERSON, Stream, make_patient, stream
from hsadml_dist.shards.sources.phantom.scan import SITES


@pytest.fixture(scope="module")
def people():
    return [make_patient(4, patient) for patient in range(3000)]


def test_the_site_is_drawn_without_looking_at_the_class(people):
    pairs = Counter((person.class_name, person.site) for person in people)
    expected = len(people) / (len(CLASSES) * len(SITES))
    assert len(pairs) == len(CLASSES) * len(SITES)
    squares = sum((count - expected) ** 2 / expected for count in pairs.values())
    assert squares < 25, "chi-square with 11 degrees of freedom: 0.99 of all draws lie below"


def test_the_site_does_not_take_turns(people):
    repeats = np.mean([one.site == two.site for one, two in pairwise(people)])
    assert 0.2 < repeats < 0.3


def test_one_to_38_slices_about_seven_and_few_of_many(people):
    counts = [len(person.planes) for person in people]
    assert (min(counts), max(counts)) == (1, 38)
    assert 6 <= np.median(counts) <= 8
    assert np.mean(counts) < 9
    assert np.mean(np.array(counts) > 20) < 0.08


def test_the_number_of_slices_has_nothing_to_do_with_the_class(people):
    means = [np.mean([len(p.planes) for p in people if p.class_name == name]) for name in CLASSES]
    assert max(means) < 1.12 * min(means)


def test_most_people_are_imaged_in_one_or_two_planes(people):
    planes = Counter(len(set(person.planes)) for person in people)
    assert planes[1] + planes[2] > 0.8 * len(people)
    assert planes[3] > 0.5 * PLANES_A_PERSON[2] * len(people)
    used = Counter(plane for person in people for plane in person.planes)
    assert max(used.values()) < 1.15 * min(used.values())


def test_about_a_fifth_come_back_and_the_second_exam_follows_the_first(people):
    again = [person for person in people if 1 in person.exams]
    assert 0.16 < len(again) / len(people) < 0.23
    assert all(person.exams[0] == 0 and list(person.exams) == sorted(person.exams) for person in people)


def test_places_in_a_series_count_up_within_one_exam_and_plane(people):
    person = next(p for p in people if 1 in p.exams and len(set(p.planes)) > 1 and len(p.planes) > 8)
    seen = Counter()
    for number, kind in enumerate(zip(person.exams, person.planes, strict=True)):
        assert person.place_in_series(number) == seen[kind]
        seen[kind] += 1


def test_each_purpose_and_number_has_its_own_stream():
    keys = [(1, 2, purpose, number) for purpose in Stream for number in (0, 1)]
    keys += [(2, 1, Stream.PERSON, 0), (1, 3, Stream.PERSON, 0)]
    firsts = {stream(*key).integers(2**60).item() for key in keys}
    assert len(firsts) == len(keys)
    assert stream(*keys[0]).integers(2**60) == stream(*keys[0]).integers(2**60)
