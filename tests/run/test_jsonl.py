import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hsadml_dist.errors import RunError
from hsadml_dist.run.jsonl import JsonlWriter, read_jsonl, tail_bytes, tail_jsonl
from tests.checkpoint.test_save import small_disk


def test_jsonl_round_trip_keeps_all_digits(tmp_path):
    rows = [{"step": 1, "loss": 0.1 + 0.2, "text": "ü\n"}, {"step": 2, "loss": 1e-300, "none": None}]
    writer = JsonlWriter(tmp_path / "deep" / "rows.jsonl")
    for row in rows:
        writer.write(row)
    writer.close()
    assert list(read_jsonl(tmp_path / "deep" / "rows.jsonl")) == rows


def test_jsonl_writer_appends_and_is_visible_at_once(tmp_path):
    path = tmp_path / "rows.jsonl"
    first = JsonlWriter(path)
    first.write({"a": 1})
    assert list(read_jsonl(path)) == [{"a": 1}]
    JsonlWriter(path).write({"a": 2})
    first.write({"a": 3})
    assert [row["a"] for row in read_jsonl(path)] == [1, 2, 3]


def test_read_jsonl_of_a_missing_file_is_empty(tmp_path):
    assert list(read_jsonl(tmp_path / "none.jsonl")) == []


@pytest.mark.parametrize("cut", [1, 2, 9])
def test_read_jsonl_skips_a_truncated_last_row(tmp_path, cut):
    path = tmp_path / "rows.jsonl"
    writer = JsonlWriter(path)
    writer.write({"a": 1})
    writer.write({"name": "ümläut"})
    os.truncate(path, path.stat().st_size - cut)
    assert list(read_jsonl(path)) == [{"a": 1}]


def test_jsonl_round_trip_of_nan_and_infinity(tmp_path):
    writer = JsonlWriter(tmp_path / "rows.jsonl")
    writer.write({"loss": math.nan})
    writer.write({"loss": math.inf})
    assert [str(row["loss"]) for row in read_jsonl(tmp_path / "rows.jsonl")] == ["nan", "inf"]


def test_jsonl_writer_leaves_complete_rows_when_killed(tmp_path):
    path = tmp_path / "rows.jsonl"
    code = (
        "import os, sys; from pathlib import Path; from hsadml_dist.run.jsonl import JsonlWriter; "
        "w = JsonlWriter(Path(sys.argv[1])); print('on', flush=True)\n"
        "while True: w.write({'fill': 'x' * 500})"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    writer.stdout.readline()
    while path.stat().st_size < 100_000:
        pass
    writer.kill()
    writer.wait()
    writer.stdout.close()
    lines = path.read_bytes().split(b"\n")
    assert lines[-1] == b""
    assert all(json.loads(line) == {"fill": "x" * 500} for line in lines[:-1])


def test_jsonl_writer_reports_a_full_disk():
    with pytest.raises(RunError, match=r"^/dev/full: .*no space left$"):
        JsonlWriter(Path("/dev/full")).write({"step": 1})


def test_jsonl_writer_reports_a_disk_that_fills_within_a_row(tmp_path):
    with small_disk(tmp_path / "disk", kibibytes=8):
        writer = JsonlWriter(tmp_path / "disk" / "rows.jsonl")
        writer.write({"step": 1})
        with pytest.raises(RunError, match=r"rows\.jsonl: .*no space left$"):
            writer.write({"fill": "x" * 9000})
        writer.close()
        assert list(read_jsonl(tmp_path / "disk" / "rows.jsonl")) == [{"step": 1}]


@pytest.mark.parametrize("reopened", [False, True])
def test_row_after_one_that_was_cut_short_is_whole(tmp_path, caplog, reopened):
    with small_disk(tmp_path / "disk", kibibytes=8):
        path, filler = tmp_path / "disk" / "rows.jsonl", tmp_path / "disk" / "filler"
        writer = JsonlWriter(path)
        writer.write({"step": 1})
        filler.write_bytes(b"x" * 4096)
        with pytest.raises(RunError):
            writer.write({"fill": "x" * 9000})
        filler.unlink()
        if reopened:
            writer.close()
            writer = JsonlWriter(path)
        for step in (2, 3):
            writer.write({"step": step})
        writer.close()
        assert [row["step"] for row in read_jsonl(path)] == [1, 2, 3]
    assert "line 2" in caplog.text


def test_read_jsonl_skips_damaged_rows_and_those_without_the_wanted_fields(tmp_path, caplog):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"step": 1}\n{"step": 2{"step": 3}\n[4]\n{"step": "5"}\n{"step": 6}\n')
    assert [row["step"] for row in read_jsonl(path, {"step": int})] == [1, 6]
    assert [f"rows.jsonl: line {number} is" in caplog.text for number in range(1, 6)] == [
        False,
        True,
        True,
        True,
        False,
    ]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"step": step, "note": "x" * (step % 7)}) + "\n" for step in range(1, 101)))
    return path


@pytest.mark.parametrize("limit", [1, 17, 18, 19, 20, 100, 2000, 1 << 20])
def test_tail_jsonl_returns_the_rows_in_the_last_bytes(path, limit):
    rows, everything = tail_jsonl(path, limit), list(read_jsonl(path))
    assert rows == everything[len(everything) - len(rows) :]
    sizes = [len(line) + 1 for line in path.read_text().splitlines()][::-1]
    assert len(rows) == sum(sum(sizes[: count + 1]) <= limit for count in range(len(sizes)))


def test_tail_jsonl_skips_an_incomplete_last_row(path):
    with path.open("a") as file:
        file.write('{"step": 101')
    assert tail_jsonl(path, 1 << 20)[-1]["step"] == 100


def test_tail_jsonl_skips_lines_that_are_not_objects(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"step": 1}\n\0\0\0\n[3]\n\xff\n{"step": 2}\n')
    assert tail_jsonl(path, 1000) == [{"step": 1}, {"step": 2}]


def test_tail_of_a_missing_file_is_empty(tmp_path):
    assert tail_jsonl(tmp_path / "none", 100) == []
    assert tail_bytes(tmp_path / "none", 100) == b""
    assert tail_bytes(tmp_path, 100) == b""
