import os

import numpy as np
import pytest
from PIL import Image

from hsadml_dist.errors import DataError, UsageError
from hsadml_dist.launch.input_images import list_input_files, read_input_image, scale_input_array
from hsadml_dist.shards.image_codec import to_uint16
from tests.data.image_bytes import foreign_files, make_png, make_tiff, png_of

DICOM = bytes(128) + b"DICM" + bytes(300)
NIFTI = bytes(344) + b"n+1\0" + bytes(100)


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_folder_lists_all_images_below_it_sorted(tmp_path, monkeypatch):
    touch(tmp_path, "in/b/2.png", "in/b/1.TIFF", "in/a.jpg", "in/c.jpeg", "in/.hidden.png", "in/.git/x.png")
    touch(tmp_path, "in/labels.csv", "in/b/README", "one.txt")
    monkeypatch.chdir(tmp_path)
    listed = list_input_files([type(tmp_path)("one.txt"), type(tmp_path)("in")])
    assert list(map(str, listed.files)) == ["one.txt", "in/a.jpg", "in/b/1.TIFF", "in/b/2.png", "in/c.jpeg"]
    assert list(map(str, listed.skipped)) == ["in/b/README", "in/labels.csv"]


def test_folder_lists_unsupported_medical_images(tmp_path):
    touch(tmp_path, "v.nii.gz", "s.dcm", "old.MAT")
    (tmp_path / "IM0001").write_bytes(DICOM)
    (tmp_path / "volume").write_bytes(NIFTI)
    names = [path.name for path in list_input_files([tmp_path]).files]
    assert names == ["IM0001", "old.MAT", "s.dcm", "v.nii.gz", "volume"]


def test_missing_path_and_folder_without_images_are_usage_errors(tmp_path):
    with pytest.raises(UsageError, match=r"^PATH /no/such: "):
        list_input_files([type(tmp_path)("/no/such")])
    touch(tmp_path, "notes.txt")
    with pytest.raises(UsageError, match=rf"^PATH {tmp_path}: "):
        list_input_files([tmp_path])


@pytest.mark.parametrize(("name", "dtype"), [("a.png", np.uint8), ("b.png", np.uint16), ("c.tif", np.float32)])
def test_image_is_scaled_as_in_shards(tmp_path, name, dtype):
    pixels = (np.random.default_rng(0).random((30, 20)) * 200).astype(dtype)
    Image.fromarray(pixels).save(tmp_path / name)
    found = read_input_image(tmp_path / name, 24)
    np.testing.assert_array_equal(found.pixels, to_uint16(pixels, 24))
    assert found.notes == ()


def test_only_coloured_images_get_a_note(tmp_path):
    grey = np.repeat(np.random.default_rng(0).integers(0, 256, (40, 40, 1), dtype=np.uint8), 3, axis=2)
    colour = grey.copy()
    colour[5:15, 5:15] = (200, 20, 20)
    for name, pixels in (("grey", grey), ("colour", colour)):
        for ending in ("png", "jpg"):
            Image.fromarray(pixels).save(tmp_path / f"{name}.{ending}")
            notes = read_input_image(tmp_path / f"{name}.{ending}", 24).notes
            assert ["colour" in note for note in notes] == [True] * (name == "colour"), f"{name}.{ending}"
    expected = to_uint16(np.asarray(Image.fromarray(grey).convert("L")), 24)
    np.testing.assert_array_equal(read_input_image(tmp_path / "grey.png", 24).pixels, expected)


def test_first_of_several_pages_is_read_with_a_note(tmp_path):
    first, second = (Image.fromarray(np.full((9, 9), value, np.uint8)) for value in (10, 200))
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
    found = read_input_image(tmp_path / "a.tif", 9)
    assert len(found.notes) == 1 and "2 pages" in found.notes[0]
    assert set(found.pixels.ravel()) == {10 * 257}


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("IM1", DICOM, "DICOM.*PNG or TIFF"),
        ("a.png", DICOM, "DICOM"),
        ("v.nii", NIFTI, "NIfTI"),
        ("v.nii.gz", b"\x1f\x8b", "NIfTI"),
        ("1.mat", b"MATLAB 5.0 MAT-file", "MATLAB or HDF5"),
        ("a.png", b"", "empty"),
        ("a.txt", b"only words", "not a PNG, JPEG or TIFF"),
        ("bomb.png", png_of(60_000, 60_000, 8, 0, b""), "decoded: its header declares 60000 x 60000"),
        ("cut.tif", make_tiff([np.zeros((9, 9), np.uint8)] * 3)[:-200], "decoded: page 3: .*cut short"),
        *((f"{kind}.png", content, "not a PNG, JPEG or TIFF") for kind, content in foreign_files().items()),
        ("a.jpg", b"\xff\xd8\xff\xe0" + b"0" * 50, "decode"),
    ],
)
def test_unusable_file_is_an_error_without_its_name(tmp_path, name, content, text):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=text) as caught:
        read_input_image(tmp_path / name, 24)
    assert str(tmp_path) not in str(caught.value)


def test_16_bit_colour_is_read_in_full_with_a_note(tmp_path):
    colour = np.random.default_rng(0).integers(0, 65536, (9, 9, 3)).astype(np.uint16)
    grey = np.repeat(colour[..., :1], 3, axis=2)
    for name, pixels in (("colour", colour), ("grey", grey)):
        (tmp_path / f"{name}.png").write_bytes(make_png(pixels))
    found = read_input_image(tmp_path / "grey.png", 9)
    np.testing.assert_array_equal(found.pixels, to_uint16(grey[..., 0], 9))
    assert found.notes == ()
    assert len(read_input_image(tmp_path / "colour.png", 9).notes) == 1


def test_truncated_and_non_finite_images_are_errors(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:-900])
    with pytest.raises(DataError, match="decode"):
        read_input_image(tmp_path / "a.png", 24)
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "b.tif")
    with pytest.raises(DataError, match="not finite"):
        read_input_image(tmp_path / "b.tif", 24)


def test_pipe_is_an_error_and_not_opened(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match="neither a file"):
        read_input_image(tmp_path / "a.png", 24)


def test_scale_input_array_scales_like_a_file(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (30, 20), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    scaled = scale_input_array(pixels, 24)
    assert (scaled.shape, scaled.dtype) == ((24, 24), np.uint16)
    np.testing.assert_array_equal(scaled, read_input_image(tmp_path / "a.png", 24).pixels)


@pytest.mark.parametrize("image", [np.zeros((2, 3, 3, 1)), np.full((4, 4), np.nan)])
def test_scale_input_array_refuses_other_arrays(image):
    with pytest.raises(DataError):
        scale_input_array(image, 24)
