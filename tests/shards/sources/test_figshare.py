import os
import pickle
import zipfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

from hsadml_dist.errors import DataError, UsageError
from hsadml_dist.shards.source import DamagedSampleError
from hsadml_dist.shards.sources.figshare import FigshareSource, parse_persons
from hsadml_dist.shards.sources.figshare_files import ORIGINAL_ZIPS
from hsadml_dist.shards.sources.mat_file import FILES
from tests.shards.matlab_files import write_folds, write_slice


def test_numbers_come_before_exams():
    persons = parse_persons(b"\xef\xbb\xbfexam, index ,person\nX,7,one\n\nY,8.mat,two\n")
    assert persons.by_number
    assert (persons.of(7, "Y"), persons.of(8, "")) == ("one", "two")


def test_one_person_may_be_given_twice():
    assert parse_persons(b"index,person\n7,one\n07,one\n").of(7, "") == "one"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "lacks the column person; it needs person and one of index, file, exam, pid"),
        (b"SECRET1,SECRET2\n", "lacks the column person; it needs"),
        (b"index,persn\n1,SECRET\n", r"lacks the column person; column 2: \(did you mean 'person'\?\); it needs"),
        (b"person,indx\n1,SECRET\n", r"lacks the column index or .*column 2: \(did you mean 'index'\?\)"),
        (b"person-SECRET,index\n", r"lacks the column person"),
        (b"index,person,person\n", "names the column 'person' twice"),
        (b"index,person\n1,a\n1,SECRET\n", "rows 1 and 2 give one slice or exam two persons"),
        (b"pid,person\nSECRET,a\nx,y\nSECRET,b\n", "rows 1 and 3 give one slice or exam two persons"),
        (b"index,person\n1,\n", "row 1: an empty cell"),
        (b"index,person\n1,a\n,SECRET\n", "row 2: an empty cell"),
        (b"index,person\nSECRET,a\n", "row 1: its slice is no number such as 17 or 17.mat"),
        (b"index,person\n1\n", "row 1: 1 cells, fewer than the header has"),
        (b"index,person\n1,SECRET\xff\n", "no CSV in UTF-8: byte 21 is none"),
        (b'index,person\n1,"SECRET"x\n', "no CSV: "),
    ],
)
def test_faults_are_one_line_without_a_cell(content, text):
    with pytest.raises(DataError, match=text) as caught:
        parse_persons(content)
    assert str(caught.value).startswith("--persons: ")
    assert "SECRET" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_row_names_the_slice_and_no_pid():
    with pytest.raises(DataError, match=r"^--persons: 17\.mat has no person: the table has no row for its PID$"):
        parse_persons(b"pid,person\nA,one\n").of(17, "SECRET")


SECRET = "SECRET-12345"
FOLDS = 1 + np.arange(FILES) % 5


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
    """The same in two of the original zips, one with a folder inside, beside the folds."""
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
    """Return the one line of a refused listing; no identifier in it."""
    with pytest.raises(kind) as caught:
        source.list_records()
    assert "\n" not in str(caught.value)
    assert "SECRET" not in str(caught.value)
    return str(caught.value)


def test_records_of_a_folder(data):
    listing = FigshareSource(folder=data).list_records()
    assert listing.skipped == ()
    assert [(r.record_id, r.where, r.class_name, r.exam, r.author_fold) for r in listing.records] == [
        ("slice 1", "1.mat", "meningioma", f"{SECRET}-A", 1),
        ("slice 2", "2.mat", "meningioma", f"{SECRET}-A", 2),
        ("slice 3", "3.mat", "glioma", f"{SECRET}-B", 3),
        ("slice 17", "17.mat", "pituitary", f"{SECRET}-B", 2),
    ]
    assert {(r.person, r.fold, r.plane, r.spacing_mm) for r in listing.records} == {(None, None, None, None)}


def test_only_full_slices_have_a_known_spacing(data):
    write_slice(data / "4.mat", np.zeros((512, 512)))
    write_slice(data / "5.mat", np.zeros((256, 256)))
    records = {record.where: record for record in FigshareSource(folder=data).list_records().records}
    assert records["4.mat"].spacing_mm == (0.49, 0.49)
    assert records["5.mat"].spacing_mm is None


@pytest.mark.parametrize("layout", ["data", "zipped"])
def test_pixels_come_back_as_stored(layout, request):
    source = pickle.loads(pickle.dumps(FigshareSource(folder=request.getfixturevalue(layout))))
    records = source.list_records().records
    assert len(records) == 4
    for record in records:
        number = int(record.where.removesuffix(".mat"))
        pixels = source.read(record)
        np.testing.assert_array_equal(pixels.image, image_of(number))
        np.testing.assert_array_equal(pixels.mask != 0, image_of(number) > 2000)


def test_zips_list_the_same_as_files(data, tmp_path, zipped):
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


def test_forked_workers_may_read_one_zip_at_once(zipped):
    source = FigshareSource(folder=zipped)
    records = source.list_records().records
    expected = [_sum_of(source, record) for record in records]
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        got = list(pool.map(_sum_of, [source] * 80, records * 20))
    assert got == expected * 20


def test_files_and_zips_may_be_mixed_and_equal_copies_count_once(data, zipped):
    (zipped / "loose").mkdir()
    write_slice(zipped / "loose" / "5.mat", image_of(5))
    (zipped / "loose" / "3.mat").write_bytes((data / "3.mat").read_bytes())
    records = FigshareSource(folder=zipped).list_records().records
    assert [record.where for record in records] == ["1.mat", "2.mat", "3.mat", "5.mat", "17.mat"]


def test_two_different_files_of_one_number_are_refused(data, tmp_path, zipped):
    write_slice(zipped / "3.mat", np.zeros((90, 90)))
    assert refusal(FigshareSource(folder=zipped)) == "INPUT: 3.mat is there twice, and the two differ: leave one"
    (zipped / "3.mat").unlink()
    content = bytearray((data / "3.mat").read_bytes())
    content[-1] ^= 1
    with zipfile.ZipFile(zipped / ORIGINAL_ZIPS[3], "w") as archive:
        archive.writestr("3.mat", bytes(content))
    assert "3.mat is there twice" in refusal(FigshareSource(folder=zipped))


def test_damaged_files_are_skipped_and_named_by_number(data):
    (data / "2.mat").write_bytes((data / "2.mat").read_bytes()[:3000])
    write_slice(data / "4.mat", image_of(4), pid=SECRET, leave_out=("PID",))
    write_slice(data / "5.mat", image_of(5), pid=SECRET, label=9)
    (data / "6.mat").symlink_to(data / "nowhere" / SECRET)
    listing = FigshareSource(folder=data).list_records()
    assert [record.where for record in listing.records] == ["1.mat", "3.mat", "17.mat"]
    assert [(skip.where, skip.reason.split(":")[0]) for skip in listing.skipped] == [
        ("2.mat", "no whole MATLAB v7.3 (HDF5) file"),
        ("4.mat", "lacks the field 'PID'"),
        ("5.mat", "its label is none of 1, 2, 3"),
        ("6.mat", "cannot be read"),
    ]
    assert SECRET not in repr(listing.skipped)


def test_other_files_are_counted_and_never_named(data):
    for name in (f"{SECRET}.mat", "0.mat", "3065.mat", "017.mat", "1 (copy).mat"):
        (data / name).write_bytes(b"x")
    (data / "._1.mat").write_bytes(b"litter")
    (data / "README.txt").write_bytes(b"text")
    listing = FigshareSource(folder=data).list_records()
    assert len(listing.records) == 4
    assert [skip.where for skip in listing.skipped] == [f"other .mat file {n} of 5" for n in range(1, 6)]
    assert {skip.reason for skip in listing.skipped} == {"not named 1.mat ... 3064.mat"}


def test_when_no_slice_can_be_used_the_first_says_why(tmp_path):
    write_slice(tmp_path / "8.mat", image_of(8), leave_out=("image",))
    assert refusal(FigshareSource(folder=tmp_path)).endswith(
        "none of 1 slices can be used; 8.mat: lacks the field 'image'"
    )


def test_no_slices_at_all(tmp_path):
    source = FigshareSource(folder=tmp_path)
    assert refusal(source) == "INPUT: the folder holds neither N.mat files nor the original zips"
    with zipfile.ZipFile(tmp_path / "renamed.zip", "w") as archive:
        archive.writestr(ORIGINAL_ZIPS[0], b"x")
    assert refusal(source).endswith("the outer archive (1512427.zip) is there: unpack it first")
    assert "no such folder" in refusal(FigshareSource(folder=tmp_path / "none"))
    assert "no such folder" in refusal(FigshareSource(folder=tmp_path / "renamed.zip"))


def test_a_zip_cut_short_is_named_only_by_its_original_name(zipped):
    content = (zipped / ORIGINAL_ZIPS[0]).read_bytes()
    (zipped / ORIGINAL_ZIPS[0]).write_bytes(content[: len(content) // 2])
    assert refusal(FigshareSource(folder=zipped)).startswith(f"INPUT: {ORIGINAL_ZIPS[0]} is cut short")
    (zipped / ORIGINAL_ZIPS[0]).rename(zipped / f"{SECRET}.zip")
    assert refusal(FigshareSource(folder=zipped)).startswith("INPUT: zip 1 of 2 by name is cut short")


def test_a_flipped_byte_in_a_zip_is_one_skip(zipped):
    with zipfile.ZipFile(zipped / ORIGINAL_ZIPS[1]) as archive:
        start = archive.getinfo("inner/3.mat").header_offset
    content = bytearray((zipped / ORIGINAL_ZIPS[1]).read_bytes())
    content[start + 600] ^= 0x55
    (zipped / ORIGINAL_ZIPS[1]).write_bytes(content)
    listing = FigshareSource(folder=zipped).list_records()
    assert [record.where for record in listing.records] == ["1.mat", "2.mat", "17.mat"]
    (skip,) = listing.skipped
    assert skip.where == "3.mat"
    assert skip.reason.startswith("cannot be unpacked from its zip (")


def test_a_file_gone_since_the_listing_is_damage(data):
    source = FigshareSource(folder=data)
    record = source.list_records().records[0]
    (data / "1.mat").unlink()
    with pytest.raises(DamagedSampleError, match=r"^1\.mat: cannot be read: No such file"):
        source.read(record)


def test_author_folds_may_be_prescribed(data):
    records = FigshareSource(folder=data, author_folds=True).list_records().records
    assert [(record.author_fold, record.fold) for record in records] == [(1, 0), (2, 1), (3, 2), (2, 1)]


def test_author_folds_without_their_file(data):
    (data / "cvind.mat").unlink()
    assert {record.author_fold for record in FigshareSource(folder=data).list_records().records} == {None}
    assert "--author-folds: there is no cvind.mat" in refusal(
        FigshareSource(folder=data, author_folds=True), UsageError
    )


def test_author_folds_in_a_zip_or_a_folder_below(zipped, tmp_path):
    (zipped / "below").mkdir()
    (zipped / "cvind.mat").rename(zipped / "below" / "cvind.mat")
    assert FigshareSource(folder=zipped).list_records().records[2].author_fold == 3
    with zipfile.ZipFile(zipped / "1512427.zip", "w") as archive:
        archive.write(zipped / "below" / "cvind.mat", "cvind.mat")
    assert FigshareSource(folder=zipped).list_records().records[2].author_fold == 3
    (zipped / "below" / "cvind.mat").unlink()
    assert FigshareSource(folder=zipped).list_records().records[2].author_fold == 3
    write_folds(zipped / "cvind.mat", FOLDS[::-1])
    assert refusal(FigshareSource(folder=zipped)) == "INPUT: 2 different cvind.mat are there: leave one"


def test_damaged_author_folds_end_the_build(data):
    (data / "cvind.mat").write_bytes(b"x")
    assert refusal(FigshareSource(folder=data)).startswith("cvind.mat: no whole MATLAB file")


@pytest.mark.parametrize("column", ["index", "file", "exam", "pid"])
def test_persons_of_slices_or_exams(data, tmp_path, column):
    if column in ("exam", "pid"):
        lines = [f"{SECRET}-A,other,one", f" {SECRET}-B,other,two"]
    else:
        lines = ["17,other,two", "1,other,one", "2.mat,other,one", "003,other,two", "3064,other,unused"]
    table = persons_csv(tmp_path, f"{column},more,person", *lines)
    records = FigshareSource(folder=data, persons=table).list_records().records
    assert [record.person for record in records] == ["one", "one", "two", "two"]


def test_a_damaged_slice_needs_no_person(data, tmp_path):
    (data / "17.mat").write_bytes(b"")
    table = persons_csv(tmp_path, "index,person", "1,a", "2,a", "3,b")
    assert len(FigshareSource(folder=data, persons=table).list_records().records) == 3


def test_a_slice_without_a_row_is_refused(data, tmp_path):
    table = persons_csv(tmp_path, "index,person", "1,a", "2,a", "3,b")
    line = refusal(FigshareSource(folder=data, persons=table))
    assert line == "--persons: 17.mat has no person: the table has no row for its number"


def test_an_exam_of_two_persons_is_refused(data, tmp_path):
    table = persons_csv(tmp_path, "index,person", "1,SECRETa", "2,SECRETa", "3,SECRETb", "17,SECRETa")
    line = refusal(FigshareSource(folder=data, persons=table))
    assert line.startswith("--persons: 3.mat and 17.mat share an exam (PID) but not a person")


def test_a_table_of_persons_that_is_not_there(data, tmp_path):
    assert "cannot be read: No such file" in refusal(FigshareSource(folder=data, persons=tmp_path / "none.csv"))


def test_fingerprint_follows_all_that_is_read(data, zipped, tmp_path):
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
