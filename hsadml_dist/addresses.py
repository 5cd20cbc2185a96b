"""Addresses of files on servers: recognise them, and format them for people without the keys that they may contain."""

from __future__ import annotations

import re

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)(\S+)")
_HOST = re.compile(r"(\[[^\]@]*\]|[^:@\[\]]*)(:\d*)?")
_TRAILING = "'\"`,.;:!)]}>"
"""Characters that end the sentence around an address rather than the address itself."""
HIDDEN = "..."


def is_url(location: str) -> bool:
    """Return whether a location, such as ``data.shards``, is an address rather than a folder."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", location) is not None


def display_address(location: str) -> str:
    """Return a location for messages: an address without user, password, parameters and query; a folder unchanged.

    Of an address that cannot be parsed only the scheme is left, because any part of it may be the password.
    """
    if not is_url(location):
        return location
    scheme, _, rest = location.partition("://")
    authority, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    host = authority.rpartition("@")[2]
    if not _HOST.fullmatch(host):
        return f"{scheme}://{HIDDEN}"
    return f"{scheme}://{host}{slash}{re.sub(';[^/]*', '', path)}"


def contains_key(value: object) -> bool:
    """Return whether a value is an address with a user, a password, parameters or a query: each may be a key."""
    return isinstance(value, str) and display_address(value) != value


def redact_addresses(text: str) -> str:
    """Return a text with each address in it as :func:`display_address` formats it."""
    return _ADDRESS.sub(_displayed, text)


def _displayed(match: re.Match[str]) -> str:
    address = match[0].rstrip(_TRAILING)
    if len(address) <= len(match[1]):
        return match[0]
    return display_address(address) + match[0][len(address) :]
