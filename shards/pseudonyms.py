"""Replace identifiers by keyed hashes (HMAC-SHA256), and manage the file that holds the key.

Only with the key file can one check if a known patient is in a folder of shards. The same key gives the same hashes in
every build, so that a patient in two folders can be recognised. A lost key loses only that.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from hsadml_dist.errors import DataError
from hsadml_dist.shards.source import require_regular_file

KEY_BYTES = 32
MIN_KEY_BYTES = 16
PERSON_DIGITS = 16
SAMPLE_DIGITS = 32


@dataclass(frozen=True, kw_only=True)
class IdKey:
    """The secret under which identifiers are hashed; hidden in the repr, so that it reaches no log."""

    secret: bytes = field(repr=False)

    def hash_person(self, person: str) -> str:
        """Return the hash of a patient, the same for every source."""
        return self._hash("person", person)[:PERSON_DIGITS]

    def hash_exam(self, person: str | None, exam: str) -> str:
        """Return the hash of a patient's exam: exam "1" of two patients gives two hashes."""
        return self._hash("exam", person, exam)[:PERSON_DIGITS]

    def sample_key(self, record_id: str, person: str | None, exam: str | None) -> str:
        """Return the key of a sample."""
        return self._hash("sample", record_id, person, exam)[:SAMPLE_DIGITS]

    def fingerprint(self) -> str:
        """Return a text that only builds with the same key share, and that reveals nothing about the key."""
        return self._hash("key")[:PERSON_DIGITS]

    def hash_text(self, text: str) -> str:
        """Return the hash of any other text."""
        return self._hash("seal", text)

    def _hash(self, *parts: str | None) -> str:
        return hmac.new(self.secret, json.dumps(parts).encode(), hashlib.sha256).hexdigest()


def default_key_path() -> Path:
    """Return the default key file: ``$XDG_CONFIG_HOME/hsadml/id.key``, or ``~/.config/hsadml/id.key`` if unset."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base and Path(base).is_absolute() else Path.home() / ".config") / "hsadml" / "id.key"


def load_or_create_key(path: Path) -> IdKey:
    """Read the key file; create it on first use, with 32 random bytes and mode 0600.

    Raises:
        DataError: The file cannot be read or created, is readable by others, or is too short to be a secret.
    """
    try:
        if not path.exists():
            _create(path)
        require_regular_file(path)
        secret, mode = path.read_bytes(), path.stat().st_mode
    except OSError as error:
        raise DataError(f"--id-key {path}: cannot be read or created: {error.strerror}") from error
    if mode & 0o077:
        raise DataError(f"--id-key {path}: readable by others (mode {mode & 0o777:o}); run chmod 600 {path}")
    if len(secret) < MIN_KEY_BYTES:
        raise DataError(f"--id-key {path}: {len(secret)} bytes is too short; a key needs at least {MIN_KEY_BYTES}")
    return IdKey(secret=secret)


def _create(path: Path) -> None:
    """Create a key file by hard link, which fails if it exists: builds that start together agree on one key."""
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
        pass  # another build created the key in the meantime, and its key is the one to use
    finally:
        os.unlink(temporary)
