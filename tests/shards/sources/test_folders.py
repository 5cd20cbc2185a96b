import os
import pickle

import numpy as np
import pytest
from PIL import Image

from hsadml_dist.errors import DataError, UsageError
from hsadml_dist.shards.source import DamagedSampleError
from hsadml_dist.shards.sources.folders import FoldersSource

NICKPARVAR = ("glioma", "meningioma", "notumor", "pituitary")
SARTAJ = ("glioma_tumor", "meningioma_tumor", "no_tumor", "pituitary_tumor")
CLASSES = ("glioma", "meningioma", "no_tumor", "pituitary")


def put(folder, *names, value=0):
    folder.mkdir(parents=True, exist_ok=True)
    for step, name in enumerate(names):
        Image.fromarray(np.full((12, 10), value + step, np.uint8)).save(folder / name)


def fill(root, classes, parts=("Training", "Testing")):
    """Write two PNGs and a JPEG per class and part, each with its own grey value."""
    for part_number, part in enumerate(parts):
        for number, name in enumerate(classes):
            put(
                root / part / name, "SECRET-b.png", "SECRET-a.png", "SECRET-c.JPG", value=40 * part_number + 10 * number
            )
    return root


def refusal(folder, kind=DataError, **options):
    with pytest.raises(kind) as caught:
        FoldersSource(folder=folder, **options).list_records()
    assert "\n" not in str(caught.value)
    assert "SECRET" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("names", [NICKPARVAR, SARTAJ, [name.upper() for name in SARTAJ]])
def test_folders_lists_both_layouts_enclosed_or_not(tmp_path, names, wrapped):
    fill(tmp_path / "SECRET" if wrapped else tmp_path, names)
    listing = FoldersSource(folder=tmp_path).list_records()
    assert listing.skipped == ()
    assert [(r.record_id, r.where, r.class_name, r.author_fold) for r in listing.records] == [
        (f"{part}/{name}/{number}", f"{part}, {name}: image {number} by name", name, fold)
        for fold, part in enumerate(("Testing", "Training"))
        for name in CLASSES
        for number in (1, 2, 3)
    ]
    assert {(r.person, r.exam, r.fold, r.plane, r.spacing_mm) for r in listing.records} == {(None,) * 5}


def test_folders_accepts_class_folders_without_parts(tmp_path):
    put(tmp_path / "Glioma", "1.png")
    put(tmp_path / "no_tumor", "1.tif")
    records = FoldersSource(folder=tmp_path).list_records().records
    assert [(r.record_id, r.where, r.author_fold) for r in records] == [
        ("/glioma/1", "glioma: image 1 by name", None),
        ("/no_tumor/1", "no_tumor: image 1 by name", None),
    ]


def test_folders_single_class_folder_is_not_an_enclosing_folder(tmp_path):
    put(tmp_path / "glioma", "1.png")
    assert len(FoldersSource(folder=tmp_path).list_records().records) == 1


def test_folders_numbers_images_in_order_of_names(tmp_path):
    source = pickle.loads(pickle.dumps(FoldersSource(folder=fill(tmp_path, NICKPARVAR))))
    records = source.list_records().records
    first = [source.read(record) for record in records[:3]]
    assert [int(pixels.image[0, 0]) for pixels in first] == [41, 40, 42]
    assert {(pixels.image.shape, pixels.image.dtype.name, pixels.mask) for pixels in first} == {
        ((12, 10), "uint8", None)
    }
    assert int(source.read(records[12]).image[0, 0]) == 1


def test_folders_author_folds_option_prescribes_parts(tmp_path):
    fill(tmp_path, NICKPARVAR)
    records = FoldersSource(folder=tmp_path, author_folds=True).list_records().records
    assert {(r.record_id.split("/")[0], r.author_fold, r.fold) for r in records} == {
        ("Testing", 0, 0),
        ("Training", 1, 1),
    }


def test_folders_author_folds_option_requires_both_parts(tmp_path):
    put(tmp_path / "a" / "glioma", "1.png")
    assert "--author-folds: " in refusal(tmp_path / "a", UsageError, author_folds=True)
    put(tmp_path / "b" / "Training" / "glioma", "1.png")
    assert "--author-folds: " in refusal(tmp_path / "b", UsageError, author_folds=True)


def test_folders_counts_other_files_and_ignores_desktop_files(tmp_path):
    fill(tmp_path, NICKPARVAR)
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._SECRET-a.png"):
        (tmp_path / "Training" / "glioma" / name).write_bytes(b"x")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "README.md").write_text("text")
    put(tmp_path / "Training" / "glioma" / "SECRET-folder.png", "1.png")
    (tmp_path / "Testing" / "notumor" / "SECRET.gif").write_bytes(b"x")
    put(tmp_path, "SECRET-left.png")
    put(tmp_path / "Testing", "SECRET-right.png")
    listing = FoldersSource(folder=tmp_path).list_records()
    assert len(listing.records) == 24
    assert [skip.where for skip in listing.skipped] == [
        "Testing, no_tumor: other entry 1 of 1",
        "Training, glioma: other entry 1 of 1",
        "image 1 of 2 outside the class folders",
        "image 2 of 2 outside the class folders",
    ]


def test_folders_text_file_with_image_extension_is_damaged(tmp_path):
    put(tmp_path / "glioma", "a.png")
    (tmp_path / "glioma" / "SECRET.jpg").write_text("SECRET text")
    (tmp_path / "glioma" / "Z.jpg").symlink_to(tmp_path / "SECRET-nowhere")
    source = FoldersSource(folder=tmp_path)
    damaged = source.list_records().records[:2]
    for number, record in enumerate(damaged, start=1):
        with pytest.raises(DamagedSampleError, match=rf"^glioma: image {number} by name: ") as caught:
            source.read(record)
        assert "SECRET" not in str(caught.value)
        assert "nowhere" not in str(caught.value)


def test_folders_follows_links(tmp_path):
    put(tmp_path / "else", "x.png", value=77)
    (tmp_path / "set" / "glioma").mkdir(parents=True)
    (tmp_path / "set" / "glioma" / "1.png").symlink_to(tmp_path / "else" / "x.png")
    source = FoldersSource(folder=tmp_path / "set")
    assert int(source.read(source.list_records().records[0]).image[0, 0]) == 77


@pytest.mark.parametrize("inside", [".", "Training"])
def test_folders_counts_unknown_folders_without_names(tmp_path, inside):
    fill(tmp_path, NICKPARVAR)
    put(tmp_path / inside / "SECRET-patient", "1.png")
    put(tmp_path / inside / "SECRET-other", "1.png")
    line = refusal(tmp_path)
    assert line.startswith(f"INPUT: 2 of {4 if inside == '.' else 6} folders ")
    assert "allowed: glioma, " in line and "SOURCE table" in line


def test_folders_rejects_parts_mixed_with_class_folders(tmp_path):
    fill(tmp_path, NICKPARVAR)
    put(tmp_path / "glioma", "1.png")
    assert "1 of 3 folders" in refusal(tmp_path)


@pytest.mark.parametrize("names", [("glioma", "glioma_tumor"), ("glioma", "Glioma")])
def test_folders_rejects_two_folders_of_one_class(tmp_path, names):
    for name in names:
        put(tmp_path / name, "1.png")
    assert "two folders" in refusal(tmp_path)


def test_folders_rejects_folder_without_images(tmp_path):
    assert "allowed: glioma, " in refusal(tmp_path)
    (tmp_path / "glioma").mkdir()
    assert "allowed: .jpg" in refusal(tmp_path)
    (tmp_path / "glioma" / "SECRET.txt").write_text("x")
    assert "allowed: .jpg" in refusal(tmp_path)
    assert "no such folder" in refusal(tmp_path / "none")
    (tmp_path / "empty" / "Training").mkdir(parents=True)
    assert "allowed: .jpg" in refusal(tmp_path / "empty")


def test_folders_fingerprint_follows_names_sizes_and_times(tmp_path):
    fill(tmp_path, NICKPARVAR)
    source = FoldersSource(folder=tmp_path)
    seen = {source.fingerprint()}
    assert source.fingerprint() in seen
    seen.add(FoldersSource(folder=tmp_path, author_folds=True).fingerprint())
    glioma = tmp_path / "Training" / "glioma"
    os.utime(glioma / "SECRET-a.png", ns=(1, 1))
    seen.add(source.fingerprint())
    (glioma / "SECRET-a.png").rename(glioma / "SECRET-z.png")
    seen.add(source.fingerprint())
    (glioma / "SECRET-z.png").unlink()
    seen.add(source.fingerprint())
    assert len(seen) == 5
