from dataclasses import replace

from hsadml_dist.shards.class_gaps import class_remarks
from hsadml_dist.shards.summary import summarise
from tests.shards.test_summary import ROWS, make_index


def test_class_remarks_of_classes_in_all_folds_are_none():
    assert not list(class_remarks(summarise(make_index(ROWS))))


def test_class_remarks_name_folds_without_a_class_and_classes_in_one_fold():
    rows = [replace(row, label=int(row.fold == 1 and row.label == 1)) for row in ROWS]
    alone, missing = class_remarks(summarise(make_index(rows)))
    assert "b (fold 1)" in alone and "training has no slice" in alone
    assert missing.startswith("Fold 0 ") and " of b:" in missing and "1 of 2 classes" in missing


def test_class_remarks_of_one_class_say_that_accuracies_mean_nothing():
    index = replace(make_index(replace(row, label=0) for row in ROWS), classes=("a",))
    [only] = class_remarks(summarise(index))
    assert "Only one class, a" in only and "100 %" in only
