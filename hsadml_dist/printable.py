"""Foreign text on terminals and in logs: names of files and classes, answers of servers, errors of libraries.

A control character could move the cursor, change the title or hide what was printed before; a character that reverses
the direction of writing makes a name look like another. Both are shown as escapes, such as ``\\x1b``.
"""

from __future__ import annotations

import json
import logging
import re
from typing import Any

from hsadml_dist.addresses import redact_addresses

_DIRECTION = "\u202a-\u202e\u2066-\u2069"
_SURROGATES = "\ud800-\udfff"
_UNPRINTABLE = re.compile(f"[\0-\x1f\x7f-\x9f\u2028\u2029{_DIRECTION}{_SURROGATES}]")
_UNPRINTABLE_BUT_LAYOUT = re.compile(f"[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029{_DIRECTION}{_SURROGATES}]")
"""The same without tabs and line ends."""


def printable(text: object) -> str:
    """Return a text on one line: line ends, tabs and what must not reach a terminal are escaped."""
    return _UNPRINTABLE.sub(_escaped, str(text))


def printable_lines(text: str) -> str:
    """Return a text of several lines, whose line ends and tabs are kept; see :func:`printable`."""
    return _UNPRINTABLE_BUT_LAYOUT.sub(_escaped, text)


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Return a value as JSON in printable ASCII."""
    return json.dumps(value, indent=indent).replace("\x7f", "\\u007f")


class PrintableFormatter(logging.Formatter):
    """Formats log records: each message on one line, without the keys of addresses."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        return printable(redact_addresses(super().formatMessage(record)))

    def formatException(self, ei: Any) -> str:
        """Return the traceback of a record."""
        return printable_lines(redact_addresses(super().formatException(ei)))


def escape_early_warnings() -> None:
    """Escape the warnings that this process logs before its log has a file, and prints on stderr therefore."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(PrintableFormatter("hsadml: %(message)s"))


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape", "surrogatepass").decode("ascii")
