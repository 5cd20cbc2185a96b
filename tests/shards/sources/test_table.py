import os

import numpy as np
import pytest
from PIL import Image

from hsadml_dist.errors import DataError, UsageError
from hsadml_dist.shards.sources.table import TableSource


def test_table_reads_default_columns(table):
    records = TableSource(table=table).list_records().records
    assert len(records) == 30
    assert records[1].class_name == "meningioma"
    assert (records[1].person, records[1].exam, records[1].plane, records[1].fold) == (
        "SECRETPERSON-1",
        "SECRETEXAM-0",
        "axial",
        None,
    )


def test_table_record_id_names_the_row_not_the_file(table):
    for number, record in enumerate(TableSource(table=table).list_records().records, start=1):
        assert record.record_id == record.where == f"row {number}"


def test_table_read_returns_stored_pixels(small_table):
    source = TableSource(table=small_table("file,class,person", "a.png,x,p"))
    pixels = source.read(source.list_records().records[0])
    np.testing.assert_array_equal(pixels.image, np.arange(64, dtype=np.uint8).reshape(8, 8))
    assert pixels.mask is None


@pytest.mark.parametrize("extension", [".jpg", ".jpeg", ".png", ".tif"])
def test_table_finds_files_without_extension(tmp_path, extension):
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "images" / f"17{extension}")
    (tmp_path / "t.csv").write_text("index,class\n17,x\n")
    source = TableSource(table=tmp_path / "t.csv", images=tmp_path / "images", columns={"file": "index"})
    assert source.read(source.list_records().records[0]).image.shape == (8, 8)


def test_table_where_selects_rows_and_keeps_numbers(small_table):
    path = small_table("file,class,there", "a.png,x,0", "a.png,y,1", "a.png,z,0", "a.png,w,1")
    records = TableSource(table=path, where={"there": "1"}).list_records().records
    assert [(record.record_id, record.class_name) for record in records] == [("row 2", "y"), ("row 4", "w")]


def test_table_reads_fold_and_mask_columns(small_table, tmp_path):
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(tmp_path / "m.png")
    source = TableSource(table=small_table("file,class,f,mask", "a.png,x,3,m.png", "a.png,x,0,"), columns={"fold": "f"})
    first, second = source.list_records().records
    assert (first.fold, second.fold) == (3, 0)
    assert source.read(first).mask.sum() == 8 * 255
    assert source.read(second).mask is None


def test_table_ignores_fold_column_of_another_name(small_table):
    (record,) = TableSource(table=small_table("file,class,author_fold", "a.png,x,3")).list_records().records
    assert record.fold is None


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "I;16", "I", "F"])
def test_table_converts_every_image_mode_to_one_channel(tmp_path, mode):
    if mode == "I;16":
        image = Image.fromarray(np.full((8, 8), 300, np.uint16))
    else:
        image = Image.fromarray(np.full((8, 8), 255, np.uint8)).convert(mode)
    image.save(tmp_path / "a.tif")
    (tmp_path / "t.csv").write_text("file,class\na,x\n")
    source = TableSource(table=tmp_path / "t.csv")
    pixels = source.read(source.list_records().records[0]).image
    assert pixels.shape == (8, 8)
    assert (pixels == (300 if mode == "I;16" else 255)).all()


@pytest.mark.parametrize(
    ("lines", "options", "kind", "text"),
    [
        (["file,clas", "a.png,x"], {}, DataError, r"no column 'class'.*'clas'.*--columns class=NAME"),
        (["name,class", "a.png,x"], {}, DataError, r"no column 'file'.*name, class"),
        (["file,class", "a.png,x"], {"columns": {"person": "pers"}}, DataError, r"--columns person=pers: .*'pers'"),
        (["file,class", "a.png,x"], {"columns": {"persn": "file"}}, UsageError, r"--columns persn=file: .*'person'"),
        (["file,class", "a.png,x"], {"where": {"clas": "x"}}, DataError, r"--where clas=x: .*'class'"),
        (["file,class", "a.png,x"], {"where": {"class": "y"}}, DataError, r"1 rows and none with class=y"),
        (["file,class"], {}, DataError, r"0 rows"),
        ([""], {}, DataError, r"no column 'file'"),
        (["file,class", "a.png,x", "a.png,"], {}, DataError, r"row 2: column 'class' is empty"),
        (["file,class,fold", "a.png,x,1.5"], {}, DataError, r"row 1: fold '1.5'"),
        (["file,class,fold", "a.png,x,"], {}, DataError, r"row 1: fold ''"),
        (["file,class,plane", "a.png,x,axal"], {}, DataError, r"row 1: plane 'axal'.*allowed: axial.*'axial'"),
        (["file,class,file", "a.png,x,b"], {}, DataError, r"duplicate column.*file, class, file"),
    ],
)
def test_table_errors_name_setting_value_and_allowed(small_table, lines, options, kind, text):
    with pytest.raises(kind, match=text) as caught:
        TableSource(table=small_table(*lines), **options).list_records()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"\xff\xd8\xff\xe0 no picture", b"plain text"])
def test_table_unreadable_image_is_named_by_row(small_table, tmp_path, content):
    path = small_table("file,class", "a.png,x", "SECRETNAME.jpg,x")
    if content is not None:
        (tmp_path / "SECRETNAME.jpg").write_bytes(content)
    source = TableSource(table=path)
    with pytest.raises(DataError, match="row 2") as caught:
        source.read(source.list_records().records[1])
    assert "SECRETNAME" not in str(caught.value)


def test_table_rejects_truncated_image(small_table, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)).save(tmp_path / "b.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:900])
    source = TableSource(table=small_table("file,class", "b.jpg,x"))
    with pytest.raises(DataError, match="row 1"):
        source.read(source.list_records().records[0])


def test_table_rejects_mask_of_another_shape(small_table, tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "m.png")
    source = TableSource(table=small_table("file,class,mask", "a.png,x,m.png"))
    with pytest.raises(DataError, match=r"row 1: .*\(4, 4\)"):
        source.read(source.list_records().records[0])


def test_table_reports_a_jpeg_mask_as_lossy(small_table, tmp_path):
    mask = Image.fromarray(np.pad(np.full((4, 4), 255, np.uint8), 2))
    mask.save(tmp_path / "m.jpg", quality=30)
    mask.save(tmp_path / "m.png")
    source = TableSource(table=small_table("file,class,mask", "a.png,x,m.jpg", "a.png,x,m.png"))
    lossy, exact = (source.read(record) for record in source.list_records().records)
    assert (lossy.mask_is_lossy, exact.mask_is_lossy) == (True, False)
    np.testing.assert_array_equal(lossy.mask != 0, exact.mask != 0)


def test_table_turns_an_image_like_its_mask(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.zeros((6, 9), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    Image.fromarray(np.zeros((9, 6), np.uint8)).save(tmp_path / "m.png")
    (tmp_path / "t.csv").write_text("file,class,mask\na.jpg,x,m.png\n")
    source = TableSource(table=tmp_path / "t.csv")
    assert source.read(source.list_records().records[0]).image.shape == (9, 6)


def test_table_rejects_missing_file(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        TableSource(table=tmp_path / "none.csv").list_records()


def test_table_rejects_binary_file(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\x89PNG\xff\xfe\x00")
    with pytest.raises(DataError, match="CSV in UTF-8"):
        TableSource(table=tmp_path / "t.csv").list_records()


def test_table_fingerprint_follows_options_and_images(small_table, tmp_path):
    path = small_table("file,class", "a.png,x")
    first = TableSource(table=path).fingerprint()
    assert TableSource(table=path).fingerprint() == first
    assert TableSource(table=path, where={"class": "x"}).fingerprint() != first
    os.utime(tmp_path / "a.png", ns=(1, 1))
    assert TableSource(table=path).fingerprint() != first


def test_table_lists_all_missing_files_at_once(small_table):
    rows = [f"SECRET{number}.png,x,{'m.png' if number == 2 else ''}" for number in range(1, 5)]
    table = small_table("file,class,mask", "a.png,x,", *rows)
    with pytest.raises(DataError) as caught:
        TableSource(table=table).fingerprint()
    message = str(caught.value)
    assert all(f"image of row {number}" in message for number in range(2, 6)) and "mask of row 3" in message
    assert "row 1" not in message and "SECRET" not in message and "\n" not in message
