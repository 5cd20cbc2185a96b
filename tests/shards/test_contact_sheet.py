import base64
import io

import numpy as np
from PIL import Image

from hsadml_dist.data.index import SampleRow, load_index
from hsadml_dist.shards.contact_sheet import COLUMNS, OUTLINE, SHOWN_SIDE, choose, read_member, strips, thumbnails
from hsadml_dist.shards.leakage import SIDE, thumbnail


def make_row(number: int, person: str | None, plane: str | None) -> SampleRow:
    members = {"png": (0, 1), "json": (1, 1)}
    return SampleRow(
        key=f"{number:016x}",
        shard=0,
        members=members,
        sha256="",
        label=0,
        person=person,
        exam=None,
        fold=0,
        plane=plane,
    )


def test_as_many_persons_as_can_be():
    rows = [make_row(n, f"p{n // 10}", "axial") for n in range(40)]
    assert [row.person for row in choose(rows, 0)].count("p0") in (1, 2)
    assert len({row.person for row in choose(rows, 0)[:4]}) == 4
    assert len(choose(rows, 0)) == COLUMNS


def test_planes_take_turns_and_another_seed_shows_others():
    rows = [make_row(n, f"p{n}", ("axial", "coronal", "sagittal")[0 if n < 80 else 1 + n % 2]) for n in range(90)]
    assert {row.plane for row in choose(rows, 0)} == {"axial", "coronal", "sagittal"}
    assert choose(rows, 0) == choose(rows[::-1], 0) != choose(rows, 1)


def test_without_persons_any_slices_are_shown():
    assert len(choose([make_row(n, None, None) for n in range(9)], 0)) == COLUMNS
    assert len(choose([make_row(0, None, None)], 0)) == 1


def test_thumbnails_come_in_the_order_of_rows(small_shards):
    index = load_index(small_shards)
    rows = index.samples[3:7]
    found = thumbnails(small_shards, index, rows, 2)
    assert found.shape == (4, SIDE * SIDE)
    for row, one in zip(rows, found, strict=True):
        np.testing.assert_array_equal(one, thumbnail(read_member(small_shards, index, row, "png")))


def test_a_strip_a_class_with_lesions_outlined(small_shards):
    index = load_index(small_shards)
    made = list(strips(small_shards, index))
    assert [strip.class_name for strip in made] == list(index.classes)
    for label, strip in enumerate(made):
        content = base64.b64decode(strip.uri.removeprefix("data:image/png;base64,"))
        pixels = np.array(Image.open(io.BytesIO(content)))
        shown = min(COLUMNS, sum(row.label == label for row in index.samples))
        assert pixels.shape == (SHOWN_SIDE, SHOWN_SIDE * shown, 3)
        assert (pixels == OUTLINE).all(axis=2).any()
        assert strip.class_name in strip.alt and "person" in strip.alt
