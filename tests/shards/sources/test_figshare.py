import os
import pickle
import zipfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

from hsadml_dist.errors import DataError, UsageError
from hsadml_dist.shards.source import DamagedSampleError
from hsadml_dist.shards.sources.figshare import FigshareSource, parse_patient_table
from hsadml_dist.shards.sources.figshare_files import ORIGINAL_ZIPS
from hsadml_dist.shards.sources.mat_file import SLICES
from tests.shards.matlab_files import write_folds, write_slice


def test_patient_table_prefers_slice_numbers_to_exams():
    persons = parse_patient_table(b"\xef\xbb\xbfexam, index ,person\nX,7,one\n\nY,8.mat,two\n")
    assert persons.by_number
    assert (persons.find(7, "Y"), persons.find(8, "")) == ("one", "two")


def test_patient_table_accepts_repeated_rows():
    assert parse_patient_table(b"index,person\n7,one\n07,one\n").find(7, "") == "one"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "column person.* one of index, file, exam, pid"),
        (b"SECRET1,SECRET2\n", "column person"),
        (b"index,persn\n1,SECRET\n", r"column person.*column 2:.*'person'"),
        (b"person,indx\n1,SECRET\n", r"column index or .*column 2:.*'index'"),
        (b"person-SECRET,index\n", r"column person"),
        (b"index,person,person\n", "two columns 'person'"),
        (b"index,person\n1,a\n1,SECRET\n", "rows 1 and 2"),
        (b"pid,person\nSECRET,a\nx,y\nSECRET,b\n", "rows 1 and 3"),
        (b"index,person\n1,\n", "row 1: "),
        (b"index,person\n1,a\n,SECRET\n", "row 2: "),
        (b"index,person\nSECRET,a\n", "row 1: .*17 or 17.mat"),
        (b"index,person\n1\n", "row 1: 1 cells"),
        (b"index,person\n1,SECRET\xff\n", "UTF-8.*byte 21"),
        (b'index,person\n1,"SECRET"x\n', "CSV: "),
    ],
)
def test_patient_table_errors_are_one_line_without_cells(content, text):
    with pytest.raises(DataError, match=text) as caught:
        parse_patient_table(content)
    assert str(caught.value).startswith("--persons: ")
    assert "SECRET" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_patient_table_missing_row_names_slice_but_not_pid():
    with pytest.raises(DataError, match=r"^--persons: 17\.mat .*PID"):
        parse_patient_table(b"pid,person\nA,one\n").find(17, "SECRET")


SECRET = "SECRET-12345"
FOLDS = 1 + np.arange(SLICES) % 5


def image_of(number):
    return np.random.default_rng(number).integers(0, 3000, (24, 16))


@pytest.fixture
def data(tmp_path):
    """Slices 1, 2, 3 and 17 of two exams, and the author's folds."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number, label, exam in ((1, 1, "A"), (2, 1, "A"), (3, 2, "B"), (17, 3, "B")):
        write_slice(folder / f"{number}.mat", image_of(number), label, f"{SECRET}-{exam}", image_of(number) > 2000)
    write_folds(folder / "cvind.mat", FOLDS)
    return folder


@pytest.fixture
def zipped(data, tmp_path):
    """The same slices in two of the original zips, one with a folder inside, and the folds."""
    folder = tmp_path / "zips"
    folder.mkdir()
    with zipfile.ZipFile(folder / ORIGINAL_ZIPS[0], "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(data / "1.mat", "1.mat")
        archive.write(data / "17.mat", "17.mat")
        archive.writestr("__MACOSX/._1.mat", b"litter")
    with zipfile.ZipFile(folder / ORIGINAL_ZIPS[1], "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(data / "2.mat", "inner/2.mat")
        archive.write(data / "3.mat", "inner/3.mat")
    (data / "cvind.mat").rename(folder / "cvind.mat")
    return folder


def persons_csv(tmp_path, *lines):
    path = tmp_path / "persons.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def refusal(source, kind=DataError):
    """Return the error of a listing, which must be one line without identifiers."""
    with pytest.raises(kind) as caught:
        source.list_records()
    assert "\n" not in str(caught.value)
    assert "SECRET" not in str(caught.value)
    return str(caught.value)


def test_figshare_lists_records_of_a_folder(data):
    listing = FigshareSource(folder=data).list_records()
    assert listing.skipped == ()
    assert [(r.record_id, r.where, r.class_name, r.exam, r.author_fold) for r in listing.records] == [
        ("slice 1", "1.mat", "meningioma", f"{SECRET}-A", 1),
        ("slice 2", "2.mat", "meningioma", f"{SECRET}-A", 2),
        ("slice 3", "3.mat", "glioma", f"{SECRET}-B", 3),
        ("slice 17", "17.mat", "pituitary", f"{SECRET}-B", 2),
    ]
    assert {(r.person, r.fold, r.plane, r.spacing_mm) for r in listing.records} == {(None, None, None, None)}


def test_figshare_spacing_is_known_for_full_slices_only(data):
    write_slice(data / "4.mat", np.zeros((512, 512)))
    write_slice(data / "5.mat", np.zeros((256, 256)))
    records = {record.where: record for record in FigshareSource(folder=data).list_records().records}
    assert records["4.mat"].spacing_mm == (0.49, 0.49)
    assert records["5.mat"].spacing_mm is None


@pytest.mark.parametrize("layout", ["data", "zipped"])
def test_figshare_read_returns_stored_pixels(layout, request):
    source = pickle.loads(pickle.dumps(FigshareSource(folder=request.getfixturevalue(layout))))
    records = source.list_records().records
    assert len(records) == 4
    for record in records:
        number = int(record.where.removesuffix(".mat"))
        pixels = source.read(record)
        np.testing.assert_array_equal(pixels.image, image_of(number))
        np.testing.assert_array_equal(pixels.mask != 0, image_of(number) > 2000)


def test_figshare_zips_list_the_same_records_as_files(data, tmp_path, zipped):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    zipped.rename(tmp_path / "deep" / "er" / "zips")
    (tmp_path / "deep" / "er" / "zips" / "cvind.mat").rename(data / "cvind.mat")
    loose = FigshareSource(folder=data).list_records().records
    for found in (FigshareSource(folder=tmp_path / "deep"), FigshareSource(folder=tmp_path / "deep" / "er")):
        packed = found.list_records().records
        assert [(r.record_id, r.where, r.class_name, r.exam) for r in packed] == [
            (r.record_id, r.where, r.class_name, r.exam) for r in loose
        ]
        assert {r.author_fold for r in packed} == {None}


def _sum_of(source, record):
    return int(source.read(record).image.sum())


def test_figshare_forked_workers_read_one_zip_concurrently(zipped):
    source = FigshareSource(folder=zipped)
    records = source.list_records().records
    expected = [_sum_of(source, record) for record in records]
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        got = list(pool.map(_sum_of, [source] * 80, records * 20))
    assert got == expected * 20


def test_figshare_counts_equal_copies_in_files_and_zips_once(data, zipped):
    (zipped / "loose").mkdir()
    write_slice(zipped / "loose" / "5.mat", image_of(5))
    (zipped / "loose" / "3.mat").write_bytes((data / "3.mat").read_bytes())
    records = FigshareSource(folder=zipped).list_records().records
    assert [record.where for record in records] == ["1.mat", "2.mat", "3.mat", "5.mat", "17.mat"]


def test_figshare_rejects_two_different_files_of_one_number(data, tmp_path, zipped):
    write_slice(zipped / "3.mat", np.zeros((90, 90)))
    assert "two different files 3.mat" in refusal(FigshareSource(folder=zipped))
    (zipped / "3.mat").unlink()
    content = bytearray((data / "3.mat").read_bytes())
    content[-1] ^= 1
    with zipfile.ZipFile(zipped / ORIGINAL_ZIPS[3], "w") as archive:
        archive.writestr("3.mat", bytes(content))
    assert "two different files 3.mat" in refusal(FigshareSource(folder=zipped))


def test_figshare_skips_damaged_files_by_number(data):
    (data / "2.mat").write_bytes((data / "2.mat").read_bytes()[:3000])
    write_slice(data / "4.mat", image_of(4), pid=SECRET, leave_out=("PID",))
    write_slice(data / "5.mat", image_of(5), pid=SECRET, label=9)
    (data / "6.mat").symlink_to(data / "nowhere" / SECRET)
    listing = FigshareSource(folder=data).list_records()
    assert [record.where for record in listing.records] == ["1.mat", "3.mat", "17.mat"]
    reasons = {skip.where: skip.reason for skip in listing.skipped}
    assert list(reasons) == ["2.mat", "4.mat", "5.mat", "6.mat"]
    for fact, reason in zip(("HDF5", "'PID'", "1, 2, 3", "No such file"), reasons.values(), strict=True):
        assert fact in reason
    assert SECRET not in repr(listing.skipped)


def test_figshare_counts_other_files_without_names(data):
    for name in (f"{SECRET}.mat", "0.mat", "3065.mat", "017.mat", "1 (copy).mat"):
        (data / name).write_bytes(b"x")
    (data / "._1.mat").write_bytes(b"litter")
    (data / "README.txt").write_bytes(b"text")
    listing = FigshareSource(folder=data).list_records()
    assert len(listing.records) == 4
    assert [skip.where for skip in listing.skipped] == [f"other .mat file {n} of 5" for n in range(1, 6)]
    assert all("1.mat ... 3064.mat" in skip.reason for skip in listing.skipped)


def test_figshare_reports_first_reason_if_no_slice_can_be_used(tmp_path):
    write_slice(tmp_path / "8.mat", image_of(8), leave_out=("image",))
    message = refusal(FigshareSource(folder=tmp_path))
    assert "none of 1 slices" in message and "8.mat" in message and "'image'" in message


def test_figshare_rejects_folder_without_slices(tmp_path):
    source = FigshareSource(folder=tmp_path)
    assert refusal(source).startswith("INPUT: ") and "1512427.zip" not in refusal(source)
    with zipfile.ZipFile(tmp_path / "renamed.zip", "w") as archive:
        archive.writestr(ORIGINAL_ZIPS[0], b"x")
    assert "1512427.zip" in refusal(source)
    assert "no such folder" in refusal(FigshareSource(folder=tmp_path / "none"))
    assert "no such folder" in refusal(FigshareSource(folder=tmp_path / "renamed.zip"))


def test_figshare_names_truncated_zip_by_original_name_only(zipped):
    content = (zipped / ORIGINAL_ZIPS[0]).read_bytes()
    (zipped / ORIGINAL_ZIPS[0]).write_bytes(content[: len(content) // 2])
    assert refusal(FigshareSource(folder=zipped)).startswith(f"INPUT: {ORIGINAL_ZIPS[0]} ")
    (zipped / ORIGINAL_ZIPS[0]).rename(zipped / f"{SECRET}.zip")
    assert refusal(FigshareSource(folder=zipped)).startswith("INPUT: zip 1 of 2 by name ")


def test_figshare_flipped_byte_in_zip_skips_one_slice(zipped):
    with zipfile.ZipFile(zipped / ORIGINAL_ZIPS[1]) as archive:
        start = archive.getinfo("inner/3.mat").header_offset
    content = bytearray((zipped / ORIGINAL_ZIPS[1]).read_bytes())
    content[start + 600] ^= 0x55
    (zipped / ORIGINAL_ZIPS[1]).write_bytes(content)
    listing = FigshareSource(folder=zipped).list_records()
    assert [record.where for record in listing.records] == ["1.mat", "2.mat", "17.mat"]
    (skip,) = listing.skipped
    assert skip.where == "3.mat"
    assert "zip" in skip.reason


def test_figshare_file_removed_after_listing_is_damaged(data):
    source = FigshareSource(folder=data)
    record = source.list_records().records[0]
    (data / "1.mat").unlink()
    with pytest.raises(DamagedSampleError, match=r"^1\.mat: .*No such file"):
        source.read(record)


def test_figshare_author_folds_option_prescribes_folds(data):
    records = FigshareSource(folder=data, author_folds=True).list_records().records
    assert [(record.author_fold, record.fold) for record in records] == [(1, 0), (2, 1), (3, 2), (2, 1)]


def test_figshare_author_folds_option_requires_cvind(data):
    (data / "cvind.mat").unlink()
    assert {record.author_fold for record in FigshareSource(folder=data).list_records().records} == {None}
    message = refusal(FigshareSource(folder=data, author_folds=True), UsageError)
    assert message.startswith("--author-folds: ") and "cvind.mat" in message


def test_figshare_finds_author_folds_in_zip_or_subfolder(zipped, tmp_path):
    (zipped / "below").mkdir()
    (zipped / "cvind.mat").rename(zipped / "below" / "cvind.mat")
    assert FigshareSource(folder=zipped).list_records().records[2].author_fold == 3
    with zipfile.ZipFile(zipped / "1512427.zip", "w") as archive:
        archive.write(zipped / "below" / "cvind.mat", "cvind.mat")
    assert FigshareSource(folder=zipped).list_records().records[2].author_fold == 3
    (zipped / "below" / "cvind.mat").unlink()
    assert FigshareSource(folder=zipped).list_records().records[2].author_fold == 3
    write_folds(zipped / "cvind.mat", FOLDS[::-1])
    assert refusal(FigshareSource(folder=zipped)).startswith("INPUT: 2 different cvind.mat")


def test_figshare_rejects_damaged_author_folds(data):
    (data / "cvind.mat").write_bytes(b"x")
    assert refusal(FigshareSource(folder=data)).startswith("cvind.mat: ")


@pytest.mark.parametrize("column", ["index", "file", "exam", "pid"])
def test_figshare_patients_by_slice_or_exam(data, tmp_path, column):
    if column in ("exam", "pid"):
        lines = [f"{SECRET}-A,other,one", f" {SECRET}-B,other,two"]
    else:
        lines = ["17,other,two", "1,other,one", "2.mat,other,one", "003,other,two", "3064,other,unused"]
    table = persons_csv(tmp_path, f"{column},more,person", *lines)
    records = FigshareSource(folder=data, persons=table).list_records().records
    assert [record.person for record in records] == ["one", "one", "two", "two"]


def test_figshare_damaged_slice_needs_no_patient(data, tmp_path):
    (data / "17.mat").write_bytes(b"")
    table = persons_csv(tmp_path, "index,person", "1,a", "2,a", "3,b")
    assert len(FigshareSource(folder=data, persons=table).list_records().records) == 3


def test_figshare_rejects_slice_without_patient(data, tmp_path):
    table = persons_csv(tmp_path, "index,person", "1,a", "2,a", "3,b")
    line = refusal(FigshareSource(folder=data, persons=table))
    assert line.startswith("--persons: 17.mat ") and "number" in line


def test_figshare_rejects_exam_of_two_patients(data, tmp_path):
    table = persons_csv(tmp_path, "index,person", "1,SECRETa", "2,SECRETa", "3,SECRETb", "17,SECRETa")
    line = refusal(FigshareSource(folder=data, persons=table))
    assert line.startswith("--persons: 3.mat and 17.mat ")


def test_figshare_rejects_missing_patient_table(data, tmp_path):
    assert "No such file" in refusal(FigshareSource(folder=data, persons=tmp_path / "none.csv"))


def test_figshare_fingerprint_follows_options_and_files(data, zipped, tmp_path):
    table = persons_csv(tmp_path, "index,person", "1,a", "2,a", "3,b", "17,b")
    first = FigshareSource(folder=data, persons=table).fingerprint()
    assert FigshareSource(folder=data, persons=table).fingerprint() == first
    seen = {first, FigshareSource(folder=data).fingerprint(), FigshareSource(folder=zipped).fingerprint()}
    seen.add(FigshareSource(folder=zipped, author_folds=True).fingerprint())
    os.utime(data / "3.mat", ns=(1, 1))
    seen.add(FigshareSource(folder=data, persons=table).fingerprint())
    table.write_text(table.read_text() + "5,c\n")
    seen.add(FigshareSource(folder=data, persons=table).fingerprint())
    write_folds(data / "cvind.mat", FOLDS[::-1])
    seen.add(FigshareSource(folder=data, persons=table).fingerprint())
    with zipfile.ZipFile(zipped / ORIGINAL_ZIPS[0], "a") as archive:
        archive.write(data / "1.mat", "99.mat")
    seen.add(FigshareSource(folder=zipped).fingerprint())
    assert len(seen) == 8
