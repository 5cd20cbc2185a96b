import io
import pickle
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from hsadml_dist.data.index import SkippedSample
from hsadml_dist.data.sample import SampleMeta
from hsadml_dist.shards.encode import (
    EncodedSample,
    EncodeTask,
    encode_png,
    encode_sample,
    pad_square,
    scaled_spacing,
    to_mask,
    to_uint16,
)
from hsadml_dist.shards.source import DamagedSampleError, SourceListing, SourcePixels, SourceRecord


def decode(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def test_bytes_at_equal_size_are_exact_and_come_back():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    stored = decode(encode_png(to_uint16(image, 16)))
    assert stored.dtype == np.uint16
    np.testing.assert_array_equal(stored, image.astype(np.uint16) * 257)


def test_sixteen_bits_survive_the_png():
    image = np.random.default_rng(0).integers(0, 65536, (64, 64)).astype(np.uint16)
    assert len(np.unique(image)) > 3000
    np.testing.assert_array_equal(decode(encode_png(image)), image)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.float32, np.float64])
def test_other_types_are_stretched_to_the_full_range(dtype):
    image = np.linspace(-100 if np.dtype(dtype).kind != "u" else 7, 900, 64).astype(dtype).reshape(8, 8)
    stored = to_uint16(image, 8)
    assert (stored.min(), stored.max()) == (0, 65535)
    assert (np.diff(stored.ravel().astype(int)) > 0).all()


def test_a_constant_image_becomes_zero():
    assert not to_uint16(np.full((8, 8), 3.5), 8).any()


def test_halving_averages_and_aliases_nothing():
    checkers = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    inner = to_uint16(checkers, 32)[4:-4, 4:-4].astype(float)
    np.testing.assert_allclose(inner, 65535 / 2, rtol=0.02)


def test_overshoot_is_clipped_not_wrapped():
    step = np.zeros((64, 64), np.uint8)
    step[:, 32:] = 255
    stored = to_uint16(step, 24)
    assert stored[:, :8].max() < 2000
    assert stored[:, -8:].min() > 63000


def test_padding_keeps_the_form_and_centres_it():
    image = np.full((4, 8), 9, np.uint8)
    image[0, 0] = 2
    square = pad_square(image)
    assert square.shape == (8, 8)
    np.testing.assert_array_equal(square[2:6], image)
    assert (square[:2] == 2).all() and (square[6:] == 2).all()


def test_a_mask_keeps_two_values_and_its_place():
    mask = np.zeros((32, 64), np.uint8)
    mask[8:16, 20:40] = 3
    stored = to_mask(mask, 16)
    assert set(np.unique(stored)) == {0, 255}
    rows, columns = np.nonzero(stored)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (6, 7, 5, 9)
    assert stored.dtype == decode(encode_png(stored)).dtype == np.uint8


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4, 3)), np.zeros((0, 4)), np.array([[1.0, np.nan]]), np.array([[np.inf]])]
)
def test_what_is_no_image_is_refused(image):
    with pytest.raises(ValueError, match="image"):
        to_uint16(image, 4)


def test_spacing_grows_as_pixels_do():
    assert scaled_spacing((0.5, 0.5), (512, 256), 256) == (1.0, 1.0)
    assert scaled_spacing(None, (512, 512), 256) is None


META = SampleMeta(
    key="0" * 16,
    class_name="a",
    label=0,
    person=None,
    exam=None,
    fold=0,
    author_fold=None,
    plane=None,
    spacing_mm=(0.5, 0.5),
    shape=(32, 32),
    volume=(32, 32),
    origin=(0, 0),
)


@dataclass(frozen=True)
class OneImage:
    name: ClassVar[str] = "one"
    image: np.ndarray
    mask: np.ndarray | None = None
    damaged: bool = False

    def list_records(self) -> SourceListing:
        return SourceListing(records=())

    def read(self, record: SourceRecord) -> SourcePixels:
        if self.damaged:
            raise DamagedSampleError(record.where, "cut short")
        return SourcePixels(image=self.image, mask=self.mask)

    def fingerprint(self) -> str:
        return ""


def entry(*values, **names) -> EncodeTask:
    return EncodeTask(
        source=OneImage(*values, **names), record=SourceRecord(record_id="i", where="row 9", class_name="a"), meta=META
    )


def test_members_and_the_spacing_after_resampling():
    made = encode_sample(entry(np.arange(64 * 64).reshape(64, 64)))
    assert isinstance(made, EncodedSample)
    assert set(made.members) == {"png", "json"}
    assert made.meta.spacing_mm == (1.0, 1.0)
    assert SampleMeta.from_json(made.members["json"]) == made.meta
    assert set(encode_sample(entry(np.eye(9), np.eye(9))).members) == {"png", "json", "mask.png"}


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (entry(np.eye(4), damaged=True), "cut short"),
        (entry(np.zeros((2, 3, 4))), "an image of shape (2, 3, 4): expected (height, width)"),
        (entry(np.full((4, 4), np.nan)), "an image with values that are not finite"),
    ],
)
def test_what_cannot_be_used_is_a_skip_that_names_the_row(made, reason):
    assert encode_sample(made) == SkippedSample(where="row 9", reason=reason)


def test_the_error_of_a_damaged_sample_comes_through_from_another_process():
    error = pickle.loads(pickle.dumps(DamagedSampleError("row 2", "torn")))
    assert (str(error), error.skip) == ("row 2: torn", SkippedSample(where="row 2", reason="torn"))
