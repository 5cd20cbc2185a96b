from dataclasses import replace

from hsadml_dist.data.index import SampleRow, ShardFile, ShardIndex, SkippedSample
from hsadml_dist.shards.summary import summarise


def make_row(number: int) -> SampleRow:
    """Return one of 16 slices of 4 patients with 2 exams each; the author folds split patients, not exams."""
    return SampleRow(
        key=f"{number:016x}",
        shard=0,
        members={"png": (0, 1), "json": (1, 1)} | ({"mask.png": (2, 1)} if number % 4 == 0 else {}),
        sha256=f"{number}",
        label=number // 8,
        person=f"p{number // 4}",
        exam=f"e{number // 2}",
        fold=number // 4 % 2,
        author_fold=1 + number // 2 % 2,
        plane=None if number == 0 else "axial",
    )


ROWS = tuple(make_row(number) for number in range(16))


def make_index(rows) -> ShardIndex:
    return ShardIndex(
        source="figshare",
        classes=("a", "b"),
        split_unit="person",
        folds=2,
        seed=0,
        size=8,
        digest="d",
        shards=(ShardFile(name="x.tar", bytes=3_000_000, sha256=""),),
        skipped=(SkippedSample(where="row 4", reason="damaged"),),
        samples=tuple(rows),
    )


def test_summarise_counts_by_class_fold_and_plane():
    found = summarise(make_index(ROWS))
    assert (found.total.samples, found.total.persons, found.total.exams, found.masks) == (16, 4, 8, 4)
    assert {name: (one.samples, one.persons, one.exams) for name, one in found.classes.items()} == {
        "a": (8, 2, 4),
        "b": (8, 2, 4),
    }
    assert found.folds[1].by_class == {"a": 4, "b": 4}
    assert found.planes == {"axial": 15, "unknown": 1}
    assert (found.megabytes, found.source, found.unit, len(found.skipped)) == (3.0, "figshare", "person", 1)
    assert (found.persons_in_two_classes, found.repeated_images, found.repeats_across_folds) == (0, 0, 0)


def test_summarise_counts_units_split_by_author_folds():
    found = summarise(make_index(ROWS)).author_folds
    assert found is not None
    assert (found.samples, found.torn_persons, found.torn_exams) == ({1: 8, 2: 8}, 4, 0)
    without = summarise(make_index(replace(row, person=None) for row in ROWS)).author_folds
    assert without is not None and without.torn_persons is None
    assert summarise(make_index(replace(row, author_fold=None) for row in ROWS)).author_folds is None


def test_summarise_counts_copies_and_mixed_patients():
    copied = [replace(row, sha256="same") if row.key[-1] in "014" else row for row in ROWS]
    found = summarise(make_index(copied))
    assert (found.repeated_images, found.repeats_across_folds) == (2, 1)
    assert summarise(make_index([replace(ROWS[0], label=1), *ROWS[1:]])).persons_in_two_classes == 1


def test_summarise_patients_unknown_if_one_slice_has_none():
    found = summarise(make_index([replace(ROWS[0], person=None), *ROWS[1:]]))
    assert (found.total.persons, found.classes["a"].persons, found.classes["b"].persons) == (None, None, 2)
