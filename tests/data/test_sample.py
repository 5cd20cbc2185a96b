import json

import pytest

from hsadml_dist.data.sample import SampleMeta, is_key, split_member_name
from hsadml_dist.errors import DataError

META = SampleMeta(
    key="0123456789abcdef",
    class_name="glioma",
    label=1,
    person="aa11",
    exam=None,
    fold=3,
    author_fold=None,
    plane="axial",
    spacing_mm=(0.5, 0.25),
    shape=(256, 128),
    volume=(256, 128),
    origin=(0, 0),
)


def test_metadata_survives_json():
    assert SampleMeta.from_json(META.to_json()) == META
    assert SampleMeta.from_json(META.to_json().encode()) == META


def test_metadata_of_a_volume_has_three_axes():
    places = {"shape": [8, 16, 16], "volume": [40, 16, 16], "origin": [32, 0, 0]}
    volume = SampleMeta.from_json(json.dumps({**json.loads(META.to_json()), **places, "spacing_mm": None}))
    assert (volume.shape, volume.volume, volume.origin) == ((8, 16, 16), (40, 16, 16), (32, 0, 0))
    assert volume.spacing_mm is None


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"schema": 1}, "schema 1"),
        ({"label": -1}, "label"),
        ({"label": True}, "label"),
        ({"fold": "3"}, "fold"),
        ({"key": "../../etc"}, "key"),
        ({"shape": []}, "shape"),
        ({"shape": [0, 4]}, "shape"),
        ({"spacing_mm": [0.0, 1.0]}, "spacing_mm"),
        ({"spacing_mm": [10**400, 1.0]}, "spacing_mm"),
        ({"author_fold": -1}, "author_fold"),
        ({"origin": [1, 0]}, "leaves its volume"),
        ({"volume": [256, 128, 1]}, "leaves its volume"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_invalid_metadata_is_refused_with_its_field(change, text):
    with pytest.raises(DataError, match=text):
        SampleMeta.from_json(json.dumps({**json.loads(META.to_json()), **change}))


@pytest.mark.parametrize("text", ["", "[]", '{"schema":1', '{"schema":1}', b"\xff\xfe", "[" * 100_000])
def test_text_that_is_not_metadata_is_refused(text):
    with pytest.raises(DataError):
        SampleMeta.from_json(text)


def test_member_names_are_split():
    for member in ("png", "json", "mask.png"):
        assert split_member_name(f"{META.key}.{member}") == (META.key, member)


@pytest.mark.parametrize("name", ["0123456789abcdef.jpg", "0123456789ABCDEF.png", "short.png", "0123456789abcdef", ""])
def test_unknown_member_names_are_refused(name):
    with pytest.raises(DataError):
        split_member_name(name)


def test_key_length_is_limited():
    assert [is_key("a" * length) for length in (15, 16, 64, 65)] == [False, True, True, False]
