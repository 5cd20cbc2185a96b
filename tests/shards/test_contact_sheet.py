import base64
import io

import numpy as np
from PIL import Image

from hsadml_dist.data.index import SampleRow, load_index
from hsadml_dist.shards.contact_sheet import (
    COLUMNS,
    OUTLINE,
    TILE_SIDE,
    choose_rows,
    contact_strips,
    read_pixels,
    read_thumbnails,
)
from hsadml_dist.shards.leakage import SIDE, make_thumbnail


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


def test_choose_rows_maximises_patients():
    rows = [make_row(n, f"p{n // 10}", "axial") for n in range(40)]
    assert [row.person for row in choose_rows(rows, 0)].count("p0") in (1, 2)
    assert len({row.person for row in choose_rows(rows, 0)[:4]}) == 4
    assert len(choose_rows(rows, 0)) == COLUMNS


def test_choose_rows_alternates_planes_and_follows_seed():
    rows = [make_row(n, f"p{n}", ("axial", "coronal", "sagittal")[0 if n < 80 else 1 + n % 2]) for n in range(90)]
    assert {row.plane for row in choose_rows(rows, 0)} == {"axial", "coronal", "sagittal"}
    assert choose_rows(rows, 0) == choose_rows(rows[::-1], 0) != choose_rows(rows, 1)


def test_choose_rows_without_patients():
    assert len(choose_rows([make_row(n, None, None) for n in range(9)], 0)) == COLUMNS
    assert len(choose_rows([make_row(0, None, None)], 0)) == 1


def test_read_thumbnails_keeps_order_of_rows(small_shards):
    index = load_index(small_shards)
    rows = index.samples[3:7]
    found = read_thumbnails(small_shards, index, rows, 2)
    assert found.shape == (4, SIDE * SIDE)
    for row, one in zip(rows, found, strict=True):
        np.testing.assert_array_equal(one, make_thumbnail(read_pixels(small_shards, index, row, "png")))


def test_contact_strips_outline_lesions_per_class(small_shards):
    index = load_index(small_shards)
    made = list(contact_strips(small_shards, index))
    assert [strip.class_name for strip in made] == list(index.classes)
    for label, strip in enumerate(made):
        content = base64.b64decode(strip.uri.removeprefix("data:image/png;base64,"))
        pixels = np.array(Image.open(io.BytesIO(content)))
        shown = min(COLUMNS, sum(row.label == label for row in index.samples))
        assert pixels.shape == (TILE_SIDE, TILE_SIDE * shown, 3)
        assert (pixels == OUTLINE).all(axis=2).any()
        assert strip.class_name in strip.alt and "patient" in strip.alt
