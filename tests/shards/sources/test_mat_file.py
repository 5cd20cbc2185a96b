import io
import struct
import zlib

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from hsadml_dist.errors import DataError
from hsadml_dist.shards.source import DamagedSampleError
from hsadml_dist.shards.sources.mat_file import SLICES, read_author_folds, read_header, read_pixels, read_v5_array
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
def test_read_v5_array_reads_all_numeric_types(packed, kind, count):
    values = (np.arange(count) % 100).astype(kind)
    content = mat(packed, first=np.ones(3), text="cvind", cvind=values, last=[1.0])
    np.testing.assert_array_equal(read_v5_array(content, "cvind"), values)


def test_read_v5_array_flattens_columns_first():
    np.testing.assert_array_equal(read_v5_array(mat(x=np.array([[1, 2, 3], [4, 5, 6]])), "x"), [1, 4, 2, 5, 3, 6])


@pytest.mark.parametrize("value", ["text", {"a": 1}, np.array([1j]), np.array([1, "x"], object)])
def test_read_v5_array_ignores_non_numeric_variables(value):
    assert read_v5_array(mat(cvind=value, other=[1.0]), "cvind") is None


@pytest.mark.parametrize("order", ["<", ">"])
def test_read_v5_array_reads_doubles_stored_as_bytes_in_either_byte_order(order):
    """MATLAB itself writes class double with data uint8; scipy never does."""

    def element(kind, data):
        return struct.pack(order + "II", kind, len(data)) + data + bytes(-len(data) % 8)

    values = bytes([5, 1, 2, 3, 4, 5, 1, 2, 3])
    body = element(6, struct.pack(order + "II", 6, 0)) + element(5, struct.pack(order + "ii", 1, 9))
    body += element(1, b"cvind") + element(2, values)
    mark = struct.pack(order + "H", 0x0100) + (b"IM" if order == "<" else b"MI")
    content = b"MATLAB 5.0 MAT-file".ljust(124) + mark + element(14, body)
    assert list(read_v5_array(content, "cvind")) == list(values)


@pytest.mark.parametrize("packed", [False, True])
def test_read_v5_array_of_truncated_file_raises_or_returns_none(packed):
    content = mat(packed, cvind=np.arange(50.0))
    for length in range(len(content)):
        try:
            assert read_v5_array(content[:length], "cvind") is None
            assert length == 128
        except ValueError:
            assert length != 128


@pytest.mark.parametrize("packed", [False, True])
def test_read_v5_array_of_damaged_file_does_not_crash(packed):
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


def test_read_v5_array_rejects_zip_bomb():
    packed = zlib.compress(bytes(5_000_000))
    content = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + struct.pack("<II", 15, len(packed)) + packed
    with pytest.raises(ValueError, match="too large"):
        read_v5_array(content, "cvind")


SECRET = "SECRET-12345"
IMAGE = np.arange(6 * 8).reshape(6, 8) * 100 - 700
MASK = IMAGE > 2000
FOLDS = 1 + np.arange(SLICES) % 5


@pytest.fixture
def slice_file(tmp_path):
    def write(**options):
        write_slice(tmp_path / "17.mat", IMAGE, **{"pid": SECRET, "label": 3, "mask": MASK, **options})
        return tmp_path / "17.mat"

    return write


def damage_of(path):
    """Return the reason why the file cannot be used, which must not contain the PID."""
    with pytest.raises(DamagedSampleError) as caught:
        read_header(path, "17.mat")
    assert caught.value.skip.where == "17.mat"
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(path.parent) not in str(caught.value)
    return caught.value.skip.reason


def test_write_slice_has_the_original_layout(slice_file):
    content = slice_file().read_bytes()
    assert content.startswith(b"MATLAB 7.3 MAT-file")
    assert content[512:520] == b"\x89HDF\r\n\x1a\n"
    with h5py.File(io.BytesIO(content)) as file:
        assert file["cjdata/image"].shape == (8, 6)
        assert file["cjdata/PID"].shape == (len(SECRET), 1)


def test_read_header_and_pixels_undo_the_transposition(slice_file):
    path = slice_file()
    header = read_header(path, "17.mat")
    assert (header.label, header.pid, header.shape) == (3, SECRET, (6, 8))
    pixels = read_pixels(path, "17.mat")
    assert pixels.image.dtype == np.int16
    np.testing.assert_array_equal(pixels.image, IMAGE)
    np.testing.assert_array_equal(pixels.mask != 0, MASK)


def test_read_header_and_pixels_accept_bytes(slice_file):
    content = slice_file().read_bytes()
    assert read_header(io.BytesIO(content), "x").pid == SECRET
    np.testing.assert_array_equal(read_pixels(io.BytesIO(content), "x").image, IMAGE)


def test_read_pixels_without_mask(slice_file):
    path = slice_file(leave_out=("tumorMask", "tumorBorder"))
    assert read_header(path, "17.mat").label == 3
    assert read_pixels(path, "17.mat").mask is None


def test_read_header_strips_the_pid(slice_file):
    assert read_header(slice_file(pid=f" {SECRET}\0 "), "17.mat").pid == SECRET


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"leave_out": ("PID",)}, "'PID'"),
        ({"leave_out": ("label",)}, "'label'"),
        ({"leave_out": ("image",)}, "'image'"),
        ({"label": 4}, "label is none of 1, 2, 3"),
        ({"label": 1.5}, "label is none of 1, 2, 3"),
        ({"label": float("nan")}, "label is none of 1, 2, 3"),
        ({"label": [1, 2]}, "label is none of 1, 2, 3"),
        ({"pid": "  "}, "PID is empty"),
        ({"pid": "a\nb"}, "PID is empty"),
        ({"PID": np.array([[0xD800]], np.uint16)}, "PID is empty"),
        ({"PID": np.zeros((0, 1), np.uint16)}, "1 to 64 characters"),
        ({"PID": np.zeros((65, 1), np.uint16)}, "1 to 64 characters"),
        ({"PID": np.array([[12345.0]])}, "1 to 64 characters"),
        ({"image": np.zeros((2, 8, 6), np.int16)}, "two-dimensional"),
        ({"image": np.zeros((8, 6), np.complex64)}, "two-dimensional"),
        ({"image": np.zeros((0, 6), np.int16)}, "two-dimensional"),
        ({"image": np.zeros((1, 4097), np.int16)}, "two-dimensional"),
        ({"tumorMask": np.zeros((6, 8), np.uint8)}, "tumorMask"),
    ],
)
def test_read_header_names_fault_without_the_pid(slice_file, options, fact):
    assert fact in damage_of(slice_file(**options))


@pytest.mark.parametrize("length", [0, 3, 512, 700, 5000, -1])
def test_read_header_rejects_truncated_file(slice_file, length):
    path = slice_file()
    path.write_bytes(path.read_bytes()[:length])
    assert "HDF5" in damage_of(path)


def test_read_header_rejects_other_and_missing_files(tmp_path, slice_file):
    savemat(tmp_path / "17.mat", {"cjdata": {"PID": SECRET}})
    assert "HDF5" in damage_of(tmp_path / "17.mat")
    write_folds(tmp_path / "17.mat", FOLDS)
    assert "'cjdata'" in damage_of(tmp_path / "17.mat")
    (tmp_path / "17.mat").unlink()
    assert "No such file" in damage_of(tmp_path / "17.mat")


def test_read_header_rejects_empty_pid(slice_file):
    path = slice_file(PID=np.zeros(2, np.uint64))
    with h5py.File(path, "r+") as file:
        file["cjdata/PID"].attrs["MATLAB_empty"] = np.uint8(1)
    assert "field 'PID'" in damage_of(path)


def test_read_header_rejects_struct_in_place_of_array(slice_file):
    path = slice_file(leave_out=("label",))
    with h5py.File(path, "r+") as file:
        file["cjdata"].create_group("label")
    assert "field 'label'" in damage_of(path)


def _external(file, secret):
    file["cjdata"].create_dataset("image", (4, 4), np.uint8, external=[(str(secret), 0, 16)])


def _virtual(file, secret):
    layout = h5py.VirtualLayout((4, 4), np.uint8)
    layout[:] = h5py.VirtualSource(str(secret), "x", (4, 4))
    file["cjdata"].create_virtual_dataset("image", layout)


def _linked(file, secret):
    file["cjdata"]["image"] = h5py.ExternalLink(str(secret), "x")


def _in_large_chunks(file, secret):
    chunks = {"maxshape": (None, None), "chunks": (20_000, 20_000), "compression": 1}
    file["cjdata"].create_dataset("image", (4, 4), np.uint8, **chunks)


@pytest.mark.parametrize("change", [_external, _virtual, _linked, _in_large_chunks])
def test_pixels_outside_the_file_or_in_large_chunks_are_not_read(slice_file, tmp_path, change):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = np.full((4, 4), 7, np.uint8)
    path = slice_file(leave_out=("image", "tumorMask"))
    with h5py.File(path, "r+") as file:
        change(file, tmp_path / "secret.h5")
    assert "'image'" in damage_of(path)
    with pytest.raises(DamagedSampleError, match="'image'"):
        read_pixels(path, "17.mat")


def test_read_pixels_detects_damage(tmp_path):
    path = tmp_path / "1.mat"
    write_slice(path, np.random.default_rng(0).integers(0, 4000, (128, 128)))
    with h5py.File(path) as file:
        chunk = file["cjdata/image"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    start = chunk.byte_offset if content[chunk.byte_offset] == 0x78 else chunk.byte_offset + 512
    content[start : start + 100] = bytes(100)
    path.write_bytes(content)
    assert read_header(path, "1.mat").shape == (128, 128)
    with pytest.raises(DamagedSampleError, match=r"^1\.mat: .*HDF5"):
        read_pixels(path, "1.mat")


def folds_file(tmp_path, version, values=FOLDS, name="cvind"):
    if version == "7.3":
        write_folds(tmp_path / "cvind.mat", values, name)
    else:
        savemat(tmp_path / "cvind.mat", {name: np.asarray(values, float).reshape(1, -1)}, do_compression=True)
    return (tmp_path / "cvind.mat").read_bytes()


@pytest.mark.parametrize("version", ["5", "7.3"])
def test_read_author_folds_of_both_versions(tmp_path, version):
    assert read_author_folds(folds_file(tmp_path, version)) == tuple(FOLDS)


@pytest.mark.parametrize("version", ["5", "7.3"])
@pytest.mark.parametrize("values", [FOLDS[:-1], FOLDS - 1, FOLDS * 1.1, np.full(SLICES, np.nan)])
def test_read_author_folds_rejects_other_values(tmp_path, version, values):
    with pytest.raises(DataError, match=rf"^cvind\.mat: 'cvind' .*{SLICES} whole numbers from 1 to 5"):
        read_author_folds(folds_file(tmp_path, version, values))


@pytest.mark.parametrize("version", ["5", "7.3"])
def test_read_author_folds_rejects_damaged_file(tmp_path, version):
    with pytest.raises(DataError, match=r"^cvind\.mat: no array 'cvind'"):
        read_author_folds(folds_file(tmp_path, version, name="other"))
    content = folds_file(tmp_path, version)
    for length in (len(content) // 2, 200, 0):
        with pytest.raises(DataError, match=r"^cvind\.mat: .*MATLAB"):
            read_author_folds(content[:length])
