import io
import json
import logging
import subprocess
import sys

import pytest

from hsadml_dist.printable import PrintableFormatter, json_text, printable, printable_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("a\r\n\tb\0\x7f", r"a\r\n\tb\x00\x7f"),
        ("exe\u202egnp.txt\u2069", r"exe\u202egnp.txt\u2069"),
        ("a\u2028b", r"a\u2028b"),
        ("a\udcff", r"a\udcff"),
        ("glioma [grade ii] [/] 胶质瘤 Größe 🧠 שלום", "glioma [grade ii] [/] 胶质瘤 Größe 🧠 שלום"),
    ],
)
def test_printable_escapes_what_a_terminal_would_obey(text, shown):
    assert printable(text) == shown


def test_printable_lines_keep_line_ends_and_tabs():
    assert printable_lines("a\n\tb\r\x1b") == "a\n\tb\\r\\x1b"


def test_json_text_is_printable_and_reads_back():
    value = {"a": "\x1b\x7f\x9b\u202e\udcff"}
    assert json_text(value).isascii() and json_text(value).isprintable()
    assert json.loads(json_text(value, indent=2)) == value


def test_log_record_is_one_line_without_keys_and_its_traceback_too():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PrintableFormatter("%(levelname)s %(message)s"))
    log = logging.Logger("test")
    log.addHandler(handler)
    log.warning("%s failed", "a\nERROR \x1b[2J of https://me:secret@host/a?k=secret")
    assert stream.getvalue() == "WARNING a\\nERROR \\x1b[2J of https://host/a failed\n"
    try:
        raise ValueError("\x1b[2J https://me:secret@host/a")
    except ValueError:
        log.exception("why")
    lines = stream.getvalue().splitlines()
    assert lines[1] == "ERROR why" and lines[-1] == "ValueError: \\x1b[2J https://host/a"


def test_warning_without_a_log_is_printed_as_text():
    program = (
        "import logging; from hsadml_dist.printable import escape_early_warnings; escape_early_warnings();"
        "logging.getLogger('a').warning('%s', '\\x1b[2J'); logging.getLogger('a').info('nothing')"
    )
    done = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, check=True)
    assert done.stderr == "hsadml: \\x1b[2J\n"
