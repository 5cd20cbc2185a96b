import json

import pytest

from hsadml_dist.run.rows import read_jsonl
from hsadml_dist.run.tail import tail_bytes, tail_jsonl


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"step": step, "note": "x" * (step % 7)}) + "\n" for step in range(1, 101)))
    return path


@pytest.mark.parametrize("most", [1, 17, 18, 19, 20, 100, 2000, 1 << 20])
def test_the_last_rows_are_the_end_of_all_rows_as_far_as_the_bytes_reach(path, most):
    rows, everything = tail_jsonl(path, most), list(read_jsonl(path))
    assert rows == everything[len(everything) - len(rows) :]
    sizes = [len(line) + 1 for line in path.read_text().splitlines()][::-1]
    assert len(rows) == sum(sum(sizes[: count + 1]) <= most for count in range(len(sizes)))


def test_a_row_that_is_not_whole_is_left_out(path):
    with path.open("a") as file:
        file.write('{"step": 101')
    assert tail_jsonl(path, 1 << 20)[-1]["step"] == 100


def test_rubbish_between_rows_is_passed_over(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"step": 1}\n\0\0\0\n[3]\n\xff\n{"step": 2}\n')
    assert tail_jsonl(path, 1000) == [{"step": 1}, {"step": 2}]


def test_no_file_has_no_end(tmp_path):
    assert tail_jsonl(tmp_path / "none", 100) == []
    assert tail_bytes(tmp_path / "none", 100) == b""
    assert tail_bytes(tmp_path, 100) == b""
