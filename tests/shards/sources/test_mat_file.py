import io
import struct
import zlib

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from hsadml_dist.errors import DataError
from hsadml_dist.shards.source import DamagedSampleError
from hsadml_dist.shards.sources.mat_file import FILES, read_author_folds, read_header, read_pixels, read_v5_array
from tests.shards.matlab_files import write_folds, write_slice

KINDS = ("float64", "float32", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


def mat(packed=True, **variables):
    """Return a v5 file as scipy writes it."""
    file = io.BytesIO()
    savemat(file, variables, do_compression=packed)
    return file.getvalue()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 3, 4, 5, 3064])
def test_all_numbers_of_scipys_files_come_back(packed, kind, count):
    values = (np.arange(count) % 100).astype(kind)
    content = mat(packed, first=np.ones(3), text="cvind", cvind=values, last=[1.0])
    np.testing.assert_array_equal(read_v5_array(content, "cvind"), values)


def test_shape_is_flattened_columns_first():
    np.testing.assert_array_equal(read_v5_array(mat(x=np.array([[1, 2, 3], [4, 5, 6]])), "x"), [1, 4, 2, 5, 3, 6])


@pytest.mark.parametrize("value", ["text", {"a": 1}, np.array([1j]), np.array([1, "x"], object)])
def test_what_is_no_array_of_numbers_is_not_taken(value):
    assert read_v5_array(mat(cvind=value, other=[1.0]), "cvind") is None


@pytest.mark.parametrize("order", ["<", ">"])
def test_whole_doubles_in_the_smallest_type_and_either_byte_order(order):
    """As MATLAB itself writes them: class double, data uint8; scipy never does."""

    def element(kind, data):
        return struct.pack(order + "II", kind, len(data)) + data + bytes(-len(data) % 8)

    values = bytes([5, 1, 2, 3, 4, 5, 1, 2, 3])
    body = element(6, struct.pack(order + "II", 6, 0)) + element(5, struct.pack(order + "ii", 1, 9))
    body += element(1, b"cvind") + element(2, values)
    mark = struct.pack(order + "H", 0x0100) + (b"IM" if order == "<" else b"MI")
    content = b"MATLAB 5.0 MAT-file".ljust(124) + mark + element(14, body)
    assert list(read_v5_array(content, "cvind")) == list(values)


@pytest.mark.parametrize("packed", [False, True])
def test_every_cut_is_an_error_or_no_array(packed):
    content = mat(packed, cvind=np.arange(50.0))
    for length in range(len(content)):
        try:
            assert read_v5_array(content[:length], "cvind") is None
            assert length == 128
        except ValueError:
            assert length != 128


@pytest.mark.parametrize("packed", [False, True])
def test_any_flipped_byte_is_an_error_or_other_values(packed):
    content = mat(packed, cvind=np.arange(6.0))
    refused = 0
    for place in range(124, len(content)):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(content)
            damaged[place] ^= flip
            try:
                read_v5_array(bytes(damaged), "cvind")
            except ValueError:
                refused += 1
    assert refused > 60


def test_a_packed_element_that_would_fill_the_memory_is_refused():
    packed = zlib.compress(bytes(5_000_000))
    content = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + struct.pack("<II", 15, len(packed)) + packed
    with pytest.raises(ValueError, match="too large"):
        read_v5_array(content, "cvind")


SECRET = "SECRET-12345"
IMAGE = np.arange(6 * 8).reshape(6, 8) * 100 - 700
MASK = IMAGE > 2000
FOLDS = 1 + np.arange(FILES) % 5


@pytest.fixture
def slice_file(tmp_path):
    def write(**options):
        write_slice(tmp_path / "17.mat", IMAGE, **{"pid": SECRET, "label": 3, "mask": MASK, **options})
        return tmp_path / "17.mat"

    return write


def damage_of(path):
    """Return why the file cannot be used; nothing in it may be the PID."""
    with pytest.raises(DamagedSampleError) as caught:
        read_header(path, "17.mat")
    assert caught.value.skip.where == "17.mat"
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(path.parent) not in str(caught.value)
    return caught.value.skip.reason


def test_the_file_is_laid_out_as_the_original(slice_file):
    content = slice_file().read_bytes()
    assert content.startswith(b"MATLAB 7.3 MAT-file")
    assert content[512:520] == b"\x89HDF\r\n\x1a\n"
    with h5py.File(io.BytesIO(content)) as file:
        assert file["cjdata/image"].shape == (8, 6)
        assert file["cjdata/PID"].shape == (len(SECRET), 1)


def test_header_and_pixels_stand_upright_again(slice_file):
    path = slice_file()
    header = read_header(path, "17.mat")
    assert (header.label, header.pid, header.shape) == (3, SECRET, (6, 8))
    pixels = read_pixels(path, "17.mat")
    assert pixels.image.dtype == np.int16
    np.testing.assert_array_equal(pixels.image, IMAGE)
    np.testing.assert_array_equal(pixels.mask != 0, MASK)


def test_bytes_are_read_like_a_file(slice_file):
    content = slice_file().read_bytes()
    assert read_header(io.BytesIO(content), "x").pid == SECRET
    np.testing.assert_array_equal(read_pixels(io.BytesIO(content), "x").image, IMAGE)


def test_a_slice_without_mask_is_kept(slice_file):
    path = slice_file(leave_out=("tumorMask", "tumorBorder"))
    assert read_header(path, "17.mat").label == 3
    assert read_pixels(path, "17.mat").mask is None


def test_blanks_around_a_pid_are_no_part_of_it(slice_file):
    assert read_header(slice_file(pid=f" {SECRET}\0 "), "17.mat").pid == SECRET


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"leave_out": ("PID",)}, "lacks the field 'PID'"),
        ({"leave_out": ("label",)}, "lacks the field 'label'"),
        ({"leave_out": ("image",)}, "lacks the field 'image'"),
        ({"label": 4}, "its label is none of 1, 2, 3"),
        ({"label": 1.5}, "its label is none of 1, 2, 3"),
        ({"label": float("nan")}, "its label is none of 1, 2, 3"),
        ({"label": [1, 2]}, "its label is none of 1, 2, 3"),
        ({"pid": "  "}, "its PID is empty or no text"),
        ({"pid": "a\nb"}, "its PID is empty or no text"),
        ({"PID": np.array([[0xD800]], np.uint16)}, "its PID is empty or no text"),
        ({"PID": np.zeros((0, 1), np.uint16)}, "its PID is no text of 1 to 64 characters"),
        ({"PID": np.zeros((65, 1), np.uint16)}, "its PID is no text of 1 to 64 characters"),
        ({"PID": np.array([[12345.0]])}, "its PID is no text of 1 to 64 characters"),
        ({"image": np.zeros((2, 8, 6), np.int16)}, "its image is not two-dimensional and real"),
        ({"image": np.zeros((8, 6), np.complex64)}, "its image is not two-dimensional and real"),
        ({"image": np.zeros((0, 6), np.int16)}, "its image is not two-dimensional and real"),
        ({"tumorMask": np.zeros((6, 8), np.uint8)}, "its tumorMask has not the image's shape"),
    ],
)
def test_each_fault_is_named_without_the_pid(slice_file, options, reason):
    assert damage_of(slice_file(**options)) == reason


@pytest.mark.parametrize("length", [0, 3, 512, 700, 5000, -1])
def test_a_file_cut_short_is_damaged(slice_file, length):
    path = slice_file()
    path.write_bytes(path.read_bytes()[:length])
    assert damage_of(path) == "no whole MATLAB v7.3 (HDF5) file: cut short, damaged or of another kind"


def test_files_of_another_kind_and_no_file(tmp_path, slice_file):
    savemat(tmp_path / "17.mat", {"cjdata": {"PID": SECRET}})
    assert damage_of(tmp_path / "17.mat").startswith("no whole MATLAB v7.3")
    write_folds(tmp_path / "17.mat", FOLDS)
    assert damage_of(tmp_path / "17.mat") == "holds no struct 'cjdata'"
    (tmp_path / "17.mat").unlink()
    assert damage_of(tmp_path / "17.mat") == "cannot be read: No such file or directory"


def test_an_empty_matlab_array_is_no_pid(slice_file):
    path = slice_file(PID=np.zeros(2, np.uint64))
    with h5py.File(path, "r+") as file:
        file["cjdata/PID"].attrs["MATLAB_empty"] = np.uint8(1)
    assert damage_of(path) == "its field 'PID' is empty or no array"


def test_a_struct_in_place_of_an_array(slice_file):
    path = slice_file(leave_out=("label",))
    with h5py.File(path, "r+") as file:
        file["cjdata"].create_group("label")
    assert damage_of(path) == "its field 'label' is empty or no array"


def test_damaged_pixels_are_found_when_read(tmp_path):
    path = tmp_path / "1.mat"
    write_slice(path, np.random.default_rng(0).integers(0, 4000, (128, 128)))
    with h5py.File(path) as file:
        chunk = file["cjdata/image"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    start = chunk.byte_offset if content[chunk.byte_offset] == 0x78 else chunk.byte_offset + 512
    content[start : start + 100] = bytes(100)
    path.write_bytes(content)
    assert read_header(path, "1.mat").shape == (128, 128)
    with pytest.raises(DamagedSampleError, match=r"^1\.mat: no whole MATLAB"):
        read_pixels(path, "1.mat")


def folds_file(tmp_path, version, values=FOLDS, name="cvind"):
    if version == "7.3":
        write_folds(tmp_path / "cvind.mat", values, name)
    else:
        savemat(tmp_path / "cvind.mat", {name: np.asarray(values, float).reshape(1, -1)}, do_compression=True)
    return (tmp_path / "cvind.mat").read_bytes()


@pytest.mark.parametrize("version", ["5", "7.3"])
def test_author_folds_of_both_versions(tmp_path, version):
    assert read_author_folds(folds_file(tmp_path, version)) == tuple(FOLDS)


@pytest.mark.parametrize("version", ["5", "7.3"])
@pytest.mark.parametrize("values", [FOLDS[:-1], FOLDS - 1, FOLDS * 1.1, np.full(FILES, np.nan)])
def test_other_folds_are_refused(tmp_path, version, values):
    with pytest.raises(DataError, match=rf"^cvind\.mat: 'cvind' .*expected {FILES} whole numbers from 1 to 5$"):
        read_author_folds(folds_file(tmp_path, version, values))


@pytest.mark.parametrize("version", ["5", "7.3"])
def test_folds_that_cannot_be_read(tmp_path, version):
    with pytest.raises(DataError, match=r"^cvind\.mat: holds no array 'cvind'"):
        read_author_folds(folds_file(tmp_path, version, name="other"))
    content = folds_file(tmp_path, version)
    for length in (len(content) // 2, 200, 0):
        with pytest.raises(DataError, match=r"^cvind\.mat: no whole MATLAB file"):
            read_author_folds(content[:length])
