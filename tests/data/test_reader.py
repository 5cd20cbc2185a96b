import hashlib
import io
import os
import resource
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from hsadml_dist.data.index import SampleRow, ShardFile, ShardIndex, load_index, samples_table, table_digest
from hsadml_dist.data.reader import ShardReader, decode_image
from hsadml_dist.errors import DataError
from tests.data.image_bytes import foreign_files, make_png, make_tiff, png_of


@pytest.fixture
def shards(tiny_shards, tmp_path):
    """A copy of the shards that a test may damage."""
    shutil.copytree(tiny_shards, tmp_path / "shards")
    return tmp_path / "shards"


def damage(folder, index, position, bit=1):
    row = index.samples[position]
    offset, size = row.members["png"]
    with open(folder / index.shards[row.shard].name, "r+b") as file:
        file.seek(offset + size // 2)
        byte = file.read(1)[0]
        file.seek(offset + size // 2)
        file.write(bytes([byte ^ bit]))


def test_image_matches_tar_member(tiny_shards):
    index = load_index(tiny_shards)
    reader = ShardReader(tiny_shards, index)
    for position, row in enumerate(index.samples):
        with tarfile.open(tiny_shards / index.shards[row.shard].name) as archive:
            expected = np.array(Image.open(archive.extractfile(f"{row.key}.png")))
        image = reader.image(position)
        assert image.dtype == np.uint16
        assert image.shape == (64, 64)
        np.testing.assert_array_equal(image, expected)


def reader_of(folder, png: bytes, size: int = 16, **changes) -> ShardReader:
    """A reader of one sample whose image has the bytes ``png`` and matches its hash, as in shards made to do harm."""
    (folder / "0.tar").write_bytes(bytes(512) + png)
    row = SampleRow(
        key="ab" * 8,
        shard=0,
        members={"png": (512, len(png)), "json": (0, 1)},
        sha256=hashlib.sha256(png).hexdigest(),
        label=0,
        person=None,
        exam=None,
        fold=0,
    )
    rows = (replace(row, **changes),)
    file = ShardFile(name="0.tar", bytes=512 + len(png), sha256="")
    index = ShardIndex(
        source="table",
        classes=("a",),
        split_unit="slice",
        folds=1,
        seed=0,
        size=size,
        digest=table_digest(samples_table(rows)),
        shards=(file,),
        samples=rows,
    )
    return ShardReader(folder, index)


DEEP = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257


def test_image_that_matches_hash_and_index_is_read(tmp_path):
    np.testing.assert_array_equal(reader_of(tmp_path, make_png(DEEP)).image(0), DEEP)


@pytest.mark.parametrize(
    "content",
    [
        *foreign_files().values(),
        make_tiff([DEEP]),
        make_png(DEEP.astype(np.uint8)),
        make_png(DEEP[:8]),
        make_png(np.repeat(DEEP[..., None], 3, axis=2)),
        png_of(60_000, 60_000, 16, 0, b"\0" * 1000),
        make_png(DEEP)[:-40],
        b"",
    ],
)
def test_image_that_matches_its_hash_but_is_another_kind_is_a_data_error(tmp_path, content):
    with pytest.raises(DataError, match=r"^0\.tar: sample (ab){8}: ") as caught:
        reader_of(tmp_path, content).image(0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("span", [(0, 10**15), (512, 1 << 62), (10**15, 10), (1 << 70, 1)])
def test_member_beyond_the_tar_is_a_data_error_and_allocates_nothing(tmp_path, span):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reader = reader_of(tmp_path, make_png(DEEP), members={"png": span, "json": (0, 1)})
    with pytest.raises(DataError, match=r"^0\.tar: sample (ab){8}"):
        reader.image(0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_images_can_be_read_in_any_order(tiny_shards):
    index = load_index(tiny_shards)
    assert len(index.shards) > 2
    forward, backward = ShardReader(tiny_shards, index), ShardReader(tiny_shards, index)
    images = [forward.image(position) for position in range(len(index))]
    for position in reversed(range(len(index))):
        np.testing.assert_array_equal(backward.image(position), images[position])


def test_decode_image_keeps_all_16_bit_levels():
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    file = io.BytesIO()
    Image.fromarray(levels).save(file, format="PNG")
    decoded = decode_image("key.png", file.getvalue())
    assert decoded.dtype == np.uint16
    np.testing.assert_array_equal(decoded, levels)


def test_decode_image_reads_masks_too():
    mask = np.eye(8, dtype=np.uint8) * 255
    decoded = decode_image(".mask.png", make_png(mask))
    assert decoded.dtype == np.uint16
    np.testing.assert_array_equal(decoded, mask)


def test_decode_image_ignores_other_members():
    assert decode_image("key.json", b"{}") is None


def test_phantom_images_use_more_than_8_bits(tiny_shards):
    reader = ShardReader(tiny_shards, load_index(tiny_shards))
    assert len(np.unique(reader.image(0))) > 1000


@pytest.mark.parametrize("bit", [1, 128])
def test_flipped_bit_is_detected(shards, bit):
    index = load_index(shards)
    damage(shards, index, 5, bit)
    reader = ShardReader(shards, index)
    with pytest.raises(DataError, match=index.samples[5].key) as caught:
        reader.image(5)
    assert index.shards[index.samples[5].shard].name in str(caught.value)
    assert "\n" not in str(caught.value)
    reader.image(4)


def test_missing_shard_is_named(shards):
    index = load_index(shards)
    (shards / index.shards[0].name).unlink()
    with pytest.raises(DataError, match=f"{index.shards[0].name}: .*No such file"):
        ShardReader(shards, index).image(0)


def test_truncated_shard_is_named(shards):
    index = load_index(shards)
    last = max(position for position, row in enumerate(index.samples) if row.shard == 0)
    os.truncate(shards / index.shards[0].name, index.samples[last].members["png"][0] + 10)
    with pytest.raises(DataError, match=index.samples[last].key):
        ShardReader(shards, index).image(last)


def test_unreadable_shard_is_named(shards):
    index = load_index(shards)
    (shards / index.shards[0].name).unlink()
    (shards / index.shards[0].name).mkdir()
    with pytest.raises(DataError, match=f"{index.shards[0].name}: sample .*Is a directory"):
        ShardReader(shards, index).image(0)


def test_each_shard_is_opened_once(tiny_shards):
    index = load_index(tiny_shards)
    reader = ShardReader(tiny_shards, index)
    before = len(os.listdir("/proc/self/fd"))
    for position in range(len(index)):
        reader.image(position)
        reader.image(position)
    assert len(os.listdir("/proc/self/fd")) == before + len(index.shards)
