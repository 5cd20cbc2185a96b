import pytest

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
RESULT = ShardResult(number=0, file=FILE, rows=(ROW,), skipped=(SKIP,))


def leave_one_tar(out, fingerprint="same", content=b"12345"):
    with open_build_folder(out, fingerprint) as staging:
        (staging.folder / "shard-00000.tar").write_bytes(content)
        staging.keep(RESULT)


def test_an_equal_build_takes_over_what_is_finished(tmp_path):
    leave_one_tar(tmp_path / "out")
    with open_build_folder(tmp_path / "out", "same") as staging:
        assert staging.finished(0) == RESULT
        assert staging.finished(1) is None


def test_another_build_starts_anew(tmp_path):
    leave_one_tar(tmp_path / "out")
    with open_build_folder(tmp_path / "out", "other") as staging:
        assert staging.finished(0) is None
        assert not (staging.folder / "shard-00000.tar").exists()


def test_a_tar_of_another_length_is_not_taken_over(tmp_path):
    leave_one_tar(tmp_path / "out", content=b"123")
    with open_build_folder(tmp_path / "out", "same") as staging:
        assert staging.finished(0) is None


def test_a_torn_note_is_not_believed(tmp_path):
    leave_one_tar(tmp_path / "out")
    note = tmp_path / ".out.building" / ".done-00000"
    for keep in (0, 10, 90):
        note.write_bytes(note.read_bytes()[:keep])
        with open_build_folder(tmp_path / "out", "same") as staging:
            assert staging.finished(0) is None


def test_publish_leaves_the_tars_alone(tmp_path):
    with open_build_folder(tmp_path / "deep" / "out", "same") as staging:
        (staging.folder / "shard-00000.tar").write_bytes(b"12345")
        staging.keep(RESULT)
        staging.publish()
    assert [path.name for path in (tmp_path / "deep").rglob("*")] == ["out", "shard-00000.tar"]


def test_publish_overwrites_nothing(tmp_path):
    with open_build_folder(tmp_path / "out", "same") as staging:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("dear")
        with pytest.raises(DataError, match="cannot be put in place"):
            staging.publish()
    assert (tmp_path / "out" / "mine").read_text() == "dear"


def test_two_builds_of_one_folder_at_a_time_are_refused(tmp_path):
    with (
        open_build_folder(tmp_path / "out", "same"),
        pytest.raises(DataError, match="another process"),
        open_build_folder(tmp_path / "out", "same"),
    ):
        pass
    with open_build_folder(tmp_path / "out", "same"):
        pass


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_no_folder_is_refused(tmp_path, kind):
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("x")
    else:
        out.symlink_to(tmp_path)
    with pytest.raises(DataError, match="not a folder"), open_build_folder(out, "same"):
        pass
