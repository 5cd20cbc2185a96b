"""Builds of sources whose labels or copies would mislead."""

import json

import numpy as np
import pytest
from PIL import Image

from hsadml_dist.data.index import load_index
from hsadml_dist.errors import UsageError
from hsadml_dist.launch.cli.cmd_shards import app
from hsadml_dist.shards.build import BuildOptions, build_shards
from hsadml_dist.shards.sources.folders import FoldersSource
from hsadml_dist.shards.sources.table import TableSource
from hsadml_dist.shards.split import assign_folds


@pytest.fixture
def kaggle(tmp_path):
    """Two classes of 12 images; pair 1 is a copy across the parts, pair 2 one across parts and classes."""
    root = tmp_path / "kaggle"
    for part in ("Training", "Testing"):
        for class_name in ("glioma", "pituitary", "no_tumor"):
            (root / part / class_name).mkdir(parents=True)
    for number in range(24):
        folder = root / ("Training" if number % 3 else "Testing") / ("glioma", "pituitary")[number % 2]
        pixels = np.random.default_rng({4: 3, 9: 8}.get(number, number)).integers(0, 256, (20, 20), dtype=np.uint8)
        # The same pixels in another format, under another name.
        Image.fromarray(pixels).save(folder / f"SECRET-{number}.{'tif' if number in (4, 9) else 'png'}")
    return root


def options(**changed):
    return BuildOptions(folds=4, size=16, samples_per_shard=8, **changed)


def build(source, out, key, **changed):
    return build_shards(source, out, options(**changed), key, 1, lambda done, total: None)


def test_build_reports_label_conflicts_copies_and_empty_class_folders(kaggle, key, tmp_path):
    report = build(FoldersSource(folder=kaggle), tmp_path / "out", key)
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    # Numbers 3 and 4 differ in class, 8 and 9 too; 3 and 9 are in Testing, 4 and 8 in Training.
    assert {name: card["identical"][name] for name in ("groups", "across_author_folds", "label_conflicts")} == {
        "groups": 2,
        "across_author_folds": 2,
        "label_conflicts": 2,
    }
    classes = {row.key: report.index.classes[row.label] for row in report.index.samples}
    for one in card["identical"]["conflict_examples"]:
        assert classes[one["first_key"]] == one["first_class"] != one["second_class"] == classes[one["second_key"]]
    assert len(report.label_conflicts) == 2 and all("Testing, " in text for text in report.label_conflicts)
    assert [skip.where for skip in report.index.skipped] == [
        "class folder Testing, no_tumor",
        "class folder Training, no_tumor",
    ]
    page = (tmp_path / "out" / "card.html").read_text()
    assert card["identical"]["conflict_examples"][0]["first_key"] in page and "class folder Testing, no_tumor" in page


def test_build_command_prints_conflicts_by_key(kaggle, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    words = ["build", "folders", kaggle, "--out", tmp_path / "out", "--folds", 4, "--size", 16, "--workers", 1]
    app([str(word) for word in words], exit_on_error=False, result_action="return_value")
    text = capsys.readouterr().out
    [example, *_] = json.loads((tmp_path / "out" / "card.json").read_text())["identical"]["conflict_examples"]
    assert "2 label conflicts" in text and example["first_key"] in text and "one image in two classes: Testing" in text
    assert "SECRET" not in text


def test_keep_copies_together_keeps_identical_images_in_one_fold(kaggle, key, tmp_path):
    source = FoldersSource(folder=kaggle)
    seed = next(seed for seed in range(20) if torn_groups(build(source, tmp_path / f"{seed}", key, seed=seed)))
    together = options(seed=seed, keep_copies_together=True)
    report = build_shards(source, tmp_path / "together", together, key, 2, lambda done, total: None)
    assert torn_groups(report) == 0
    assert len(report.index) == 24 and report.index.fold_numbers == (0, 1, 2, 3)
    assert load_index(tmp_path / "together") == report.index


def torn_groups(report):
    folds = {}
    for row in report.index.samples:
        folds.setdefault(row.sha256, set()).add(row.fold)
    assert len(folds) == 22
    return sum(len(own) > 1 for own in folds.values())


def test_keep_copies_together_joins_the_patients_that_share_an_image(kaggle):
    records = [record_of(number) for number in range(12)]
    images = [f"{number}" for number in range(12)]
    images[11] = "0"
    folds = assign_folds(records, "person", 3, 0, images)
    assert folds[0] == folds[1] == folds[10] == folds[11], "slices 0 and 1 are of one patient, 10 and 11 of another"


def record_of(number):
    from hsadml_dist.shards.source import SourceRecord

    return SourceRecord(record_id=f"{number}", where=f"row {number}", class_name="c", person=f"p{number // 2}")


def test_keep_copies_together_is_refused_for_prescribed_folds(kaggle, key, tmp_path):
    with pytest.raises(UsageError, match=r"--keep-copies-together: .*--author-folds"):
        build(FoldersSource(folder=kaggle, author_folds=True), tmp_path / "out", key, keep_copies_together=True)


def test_build_hints_at_two_spellings_of_a_class_and_a_patient(key, tmp_path):
    lines = ["file,class,person"]
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 20), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{('Glioma', 'glioma')[number % 2]},{('007', '7', 'a', 'b')[number // 2]}")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    report = build(TableSource(table=tmp_path / "list.csv"), tmp_path / "out", key)
    [hint] = report.name_hints
    assert "row 1 and row 3" in hint and "007" not in hint
    assert "&#39;Glioma&#39;, &#39;glioma&#39;" in (tmp_path / "out" / "card.html").read_text()
