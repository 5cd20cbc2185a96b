import pytest

from hsadml_dist.data.contents import ContentHashes
from hsadml_dist.data.index import SampleRow, ShardFile, SkippedSample
from hsadml_dist.errors import DataError
from hsadml_dist.shards.build_folder import open_build_folder
from hsadml_dist.shards.writer import ShardResult

ROW = SampleRow(
    key="a" * 16,
    shard=0,
    members={"png": (512, 3), "json": (1024, 2)},
    sha256="00",
    label=0,
    person=None,
    exam=None,
    fold=1,
)
SKIP = SkippedSample(where="row 4", reason="damaged")
FILE = ShardFile(name="shard-00000.tar", bytes=5, sha256="11")
CONTENTS = ContentHashes(pixels="22", source="33")
RESULT = ShardResult(number=0, file=FILE, rows=(ROW,), contents=(CONTENTS,), skipped=(SKIP,), lossy_masks=2)


def leave_one_tar(out, fingerprint="same", content=b"12345"):
    with open_build_folder(out, fingerprint) as build:
        (build.path / "shard-00000.tar").write_bytes(content)
        build.record_shard(RESULT)


def test_open_build_folder_resumes_equal_build(tmp_path):
    leave_one_tar(tmp_path / "out")
    with open_build_folder(tmp_path / "out", "same") as build:
        assert build.finished_shard(0) == RESULT
        assert build.finished_shard(1) is None


def test_open_build_folder_discards_other_build(tmp_path):
    leave_one_tar(tmp_path / "out")
    with open_build_folder(tmp_path / "out", "other") as build:
        assert build.finished_shard(0) is None
        assert not (build.path / "shard-00000.tar").exists()


def test_finished_shard_requires_equal_length(tmp_path):
    leave_one_tar(tmp_path / "out", content=b"123")
    with open_build_folder(tmp_path / "out", "same") as build:
        assert build.finished_shard(0) is None


def test_finished_shard_ignores_truncated_note(tmp_path):
    leave_one_tar(tmp_path / "out")
    note = tmp_path / ".out.building" / ".done-00000"
    for keep in (0, 10, 90):
        note.write_bytes(note.read_bytes()[:keep])
        with open_build_folder(tmp_path / "out", "same") as build:
            assert build.finished_shard(0) is None


def test_publish_keeps_only_the_tars(tmp_path):
    with open_build_folder(tmp_path / "deep" / "out", "same") as build:
        (build.path / "shard-00000.tar").write_bytes(b"12345")
        build.record_shard(RESULT)
        build.publish()
    assert [path.name for path in (tmp_path / "deep").rglob("*")] == ["out", "shard-00000.tar"]


def test_publish_does_not_overwrite(tmp_path):
    with open_build_folder(tmp_path / "out", "same") as build:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("dear")
        with pytest.raises(DataError, match=r"--out .*Directory not empty"):
            build.publish()
    assert (tmp_path / "out" / "mine").read_text() == "dear"


def test_open_build_folder_rejects_concurrent_build(tmp_path):
    with (
        open_build_folder(tmp_path / "out", "same"),
        pytest.raises(DataError, match="another process"),
        open_build_folder(tmp_path / "out", "same"),
    ):
        pass
    with open_build_folder(tmp_path / "out", "same"):
        pass


@pytest.mark.parametrize("kind", ["file", "link"])
def test_open_build_folder_rejects_file_and_link(tmp_path, kind):
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("x")
    else:
        out.symlink_to(tmp_path)
    with pytest.raises(DataError, match="not a folder"), open_build_folder(out, "same"):
        pass
