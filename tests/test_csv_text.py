import csv
import io

import pytest

from hsadml_dist.csv_text import csv_text


def written(cell):
    header, row = csv.reader(io.StringIO(csv_text(["name"], [[cell]])))
    assert header == ["name"]
    return row[0]


@pytest.mark.parametrize(
    "cell",
    [
        "=1+1",
        "+cmd|' /C calc'!A0",
        "-2+3+cmd",
        "@SUM(A1)",
        "\t=1",
        "\n=1",
        "\uff1d1+1",
        "-1.png",
        "=",
        "--5",
        "-inf",
    ],
)
def test_cell_that_would_be_calculated_becomes_text(cell):
    assert written(cell).startswith("'")
    assert written(cell).replace("'", "") == cell.replace("'", "")


@pytest.mark.parametrize(
    "cell", ["0.5", "-0.25", "+3", "-1e-7", "1.", ".5", "glioma", "a=b", "a-b", "", "'=1", "50 %", "é"]
)
def test_numbers_and_ordinary_text_stay_unchanged(cell):
    assert written(cell) == cell


def test_part_of_a_cell_that_another_locale_separates_is_text_too():
    assert written("a;=1+1") == "a;'=1+1"
    assert written("a\t=1+1\n@x") == "a\t'=1+1\n'@x"
    assert written("a; b-c") == "a; b-c"


def test_commas_and_quotes_survive():
    assert written('so, "bad"\n') == 'so, "bad"\n'


def test_control_characters_and_invalid_utf8_are_escaped():
    assert written("\r=1 \x1b[2J a\udcff") == "\\r=1 \\x1b[2J a\\udcff"
