"""Write files in the layout of Jun Cheng's dataset: MATLAB v7.3, one struct ``cjdata`` per slice, columns first."""

import h5py
import numpy as np

HEAD = b"MATLAB 7.3 MAT-file, Platform: PCWIN64, Created on: Thu Apr 02 10:00:00 2015 HDF5 schema 1.00 ."
FIELDS = ("PID", "image", "label", "tumorBorder", "tumorMask")


def write_slice(path, image, /, label=1, pid="100000", mask=None, leave_out=(), **fields):
    """Write ``N.mat`` of an ``image`` (height, width).

    ``mask`` is all zero by default; ``leave_out`` names fields to omit; ``fields`` replace whole HDF5 datasets.
    """
    mask = np.zeros(image.shape, np.uint8) if mask is None else mask
    content = {
        "PID": (np.array([[ord(letter)] for letter in pid], np.uint16), "char"),
        "image": (image.astype(np.int16).T, "int16"),
        "label": (np.array([[label]], np.float64), "double"),
        "tumorBorder": (np.array([[10.5, 20.5, 11.5, 21.5]], np.float64), "double"),
        "tumorMask": ((mask != 0).astype(np.uint8).T, "logical"),
    }
    with h5py.File(path, "w", userblock_size=512) as file:
        struct = file.create_group("cjdata")
        struct.attrs["MATLAB_class"] = np.bytes_("struct")
        for name in FIELDS:
            if name not in leave_out:
                values, kind = content[name]
                _add(struct, name, fields.get(name, values), kind)
    _head(path)


def write_folds(path, values, name="cvind"):
    """Write ``cvind.mat``: one row of folds."""
    with h5py.File(path, "w", userblock_size=512) as file:
        _add(file, name, np.asarray(values, np.float64).reshape(-1, 1), "double")
    _head(path)


def _add(group, name, values, kind):
    packed = {"chunks": True, "compression": 3} if np.size(values) > 1000 else {}
    dataset = group.create_dataset(name, data=values, **packed)
    dataset.attrs["MATLAB_class"] = np.bytes_(kind)
    if kind in ("char", "logical"):
        dataset.attrs["MATLAB_int_decode"] = np.int32(2 if kind == "char" else 1)


def _head(path):
    with open(path, "r+b") as file:
        file.write(HEAD.ljust(116) + bytes(8) + b"\x00\x02IM")
