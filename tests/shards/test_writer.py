import pickle
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from hsadml_dist.data.index import SkippedSample
from hsadml_dist.data.sample import SampleMeta
from hsadml_dist.shards.source import DamagedSampleError, SourceListing, SourcePixels, SourceRecord
from hsadml_dist.shards.writer import EncodedSample, EncodeTask, encode_sample

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


def test_encode_sample_returns_members_and_scaled_spacing():
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
def test_encode_sample_skips_unusable_sample_by_row(made, reason):
    assert encode_sample(made) == SkippedSample(where="row 9", reason=reason)


def test_damaged_sample_error_can_be_pickled():
    error = pickle.loads(pickle.dumps(DamagedSampleError("row 2", "torn")))
    assert (str(error), error.skip) == ("row 2: torn", SkippedSample(where="row 2", reason="torn"))
