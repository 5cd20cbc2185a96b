import io
import struct
import zlib

import numpy as np
import pytest
from scipy.io import savemat

from hsadml_dist.shards.sources.figshare.matlab5 import read_v5_array

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
