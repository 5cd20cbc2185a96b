"""Keyed hashes in place of identifiers, and the file that holds the key.

Whoever has the key file can tell whether a known person is in a folder of shards; nobody else can. The same key gives
the same hashes in every build, so that one person in two folders can be recognised. Losing the key loses only that.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from hsadml_dist.errors import DataError

KEY_BYTES = 32
LEAST_KEY_BYTES = 16
PERSON_DIGITS = 16
SAMPLE_DIGITS = 32


@dataclass(frozen=True, kw_only=True)
class IdKey:
    """The secret under which identifiers are hashed; it has no text form, so that it reaches no log."""

    secret: bytes

    def __repr__(self) -> str:
        return "IdKey(...)"

    def person(self, person: str) -> str:
        """Return the hash of a person: the same from every source."""
        return self._hash("person", person)[:PERSON_DIGITS]

    def exam(self, person: str | None, exam: str) -> str:
        """Return the hash of an exam of a person: "1" of one person is not "1" of the next."""
        return self._hash("exam", person, exam)[:PERSON_DIGITS]

    def sample(self, record_id: str, person: str | None, exam: str | None) -> str:
        """Return a sample's key from the identity of its row in the source and its identifiers."""
        return self._hash("sample", record_id, person, exam)[:SAMPLE_DIGITS]

    def seal(self, text: str) -> str:
        """Return the hash of any other text."""
        return self._hash("seal", text)

    def _hash(self, *parts: str | None) -> str:
        return hmac.new(self.secret, json.dumps(parts).encode(), hashlib.sha256).hexdigest()


def default_key_path() -> Path:
    """Return the key file's place: ``$XDG_CONFIG_HOME/hsadml/id.key``, else ``~/.config/hsadml/id.key``."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base and Path(base).is_absolute() else Path.home() / ".config") / "hsadml" / "id.key"


def load_or_create_key(path: Path) -> IdKey:
    """Read the key file, making it on first use: 32 random bytes, mode 0600.

    Raises:
        DataError: The file cannot be read or made, is readable by others, or is too short to be a secret.
    """
    try:
        if not path.exists():
            _create(path)
        secret, mode = path.read_bytes(), path.stat().st_mode
    except OSError as error:
        raise DataError(f"--id-key: {path} cannot be read or made: {error.strerror}") from error
    if mode & 0o077:
        raise DataError(f"--id-key: {path} can be read by others (mode {mode & 0o777:o}): run chmod 600 {path}")
    if len(secret) < LEAST_KEY_BYTES:
        raise DataError(f"--id-key: {path} holds {len(secret)} bytes: a key needs at least {LEAST_KEY_BYTES}")
    return IdKey(secret=secret)


def _create(path: Path) -> None:
    """Make a key file whole at once: two builds that start together agree on one key."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_bytes(KEY_BYTES))
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass  # the other build's key is as good, and is the one to use
    finally:
        os.unlink(temporary)
