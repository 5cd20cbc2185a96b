import pytest

from hsadml_dist.errors import DataError
from hsadml_dist.shards.sources.figshare.persons import parse_persons


def test_numbers_come_before_exams():
    persons = parse_persons(b"\xef\xbb\xbfexam, index ,person\nX,7,one\n\nY,8.mat,two\n")
    assert persons.by_number
    assert (persons.of(7, "Y"), persons.of(8, "")) == ("one", "two")


def test_one_person_may_be_given_twice():
    assert parse_persons(b"index,person\n7,one\n07,one\n").of(7, "") == "one"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "lacks the column person; it needs person and one of index, file, exam, pid"),
        (b"SECRET1,SECRET2\n", "lacks the column person; it needs"),
        (b"index,persn\n1,SECRET\n", r"lacks the column person; column 2: \(did you mean 'person'\?\); it needs"),
        (b"person,indx\n1,SECRET\n", r"lacks the column index or .*column 2: \(did you mean 'index'\?\)"),
        (b"person-SECRET,index\n", r"lacks the column person"),
        (b"index,person,person\n", "names the column 'person' twice"),
        (b"index,person\n1,a\n1,SECRET\n", "rows 1 and 2 give one slice or exam two persons"),
        (b"pid,person\nSECRET,a\nx,y\nSECRET,b\n", "rows 1 and 3 give one slice or exam two persons"),
        (b"index,person\n1,\n", "row 1: an empty cell"),
        (b"index,person\n1,a\n,SECRET\n", "row 2: an empty cell"),
        (b"index,person\nSECRET,a\n", "row 1: its slice is no number such as 17 or 17.mat"),
        (b"index,person\n1\n", "row 1: 1 cells, fewer than the header has"),
        (b"index,person\n1,SECRET\xff\n", "no CSV in UTF-8: byte 21 is none"),
        (b'index,person\n1,"SECRET"x\n', "no CSV: "),
    ],
)
def test_faults_are_one_line_without_a_cell(content, text):
    with pytest.raises(DataError, match=text) as caught:
        parse_persons(content)
    assert str(caught.value).startswith("--persons: ")
    assert "SECRET" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_row_names_the_slice_and_no_pid():
    with pytest.raises(DataError, match=r"^--persons: 17\.mat has no person: the table has no row for its PID$"):
        parse_persons(b"pid,person\nA,one\n").of(17, "SECRET")
