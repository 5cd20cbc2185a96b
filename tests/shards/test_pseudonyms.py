import hashlib
import stat
import threading
from pathlib import Path

import pytest

from hsadml_dist.data.sample import is_key
from hsadml_dist.errors import DataError
from hsadml_dist.shards.pseudonyms import IdKey, default_key_path, load_or_create_key


def test_key_file_is_created_private_and_kept(tmp_path):
    path = tmp_path / "new" / "id.key"
    first = load_or_create_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(path.read_bytes()) == 32
    assert load_or_create_key(path) == first
    assert list(path.parent.iterdir()) == [path]


def test_new_keys_differ(tmp_path):
    one, two = load_or_create_key(tmp_path / "a"), load_or_create_key(tmp_path / "b")
    assert one.hash_person("x") != two.hash_person("x")


def test_concurrent_creation_agrees_on_one_key(tmp_path, monkeypatch):
    path, found = tmp_path / "id.key", []
    pids = iter(range(100))
    monkeypatch.setattr("hsadml_dist.shards.pseudonyms.os.getpid", lambda: next(pids))
    threads = [threading.Thread(target=lambda: found.append(load_or_create_key(path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1


def test_key_file_readable_by_others_is_rejected(tmp_path):
    path = tmp_path / "id.key"
    path.write_bytes(b"0" * 32)
    path.chmod(0o644)
    with pytest.raises(DataError, match="chmod 600"):
        load_or_create_key(path)


def test_short_key_is_rejected(tmp_path):
    path = tmp_path / "id.key"
    path.write_bytes(b"0" * 15)
    path.chmod(0o600)
    with pytest.raises(DataError, match="at least 16"):
        load_or_create_key(path)


def test_folder_as_key_file_is_rejected(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        load_or_create_key(tmp_path)


def test_default_key_path_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert default_key_path() == tmp_path / "hsadml" / "id.key"
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_key_path() == Path(tmp_path) / ".config" / "hsadml" / "id.key"


def test_hashes_depend_on_key_kind_and_every_part():
    key = IdKey(secret=b"k" * 32)
    assert key.hash_person("a") == IdKey(secret=b"k" * 32).hash_person("a")
    made = [
        key.hash_person("a"),
        key.hash_exam("a", "1"),
        key.hash_exam("b", "1"),
        key.hash_exam(None, "1"),
        key.sample_key("row 1", "a", "1")[:16],
        key.sample_key("row 2", "a", "1")[:16],
        key.sample_key("row 1", "a1", "")[:16],
        key.sample_key("row 1", None, None)[:16],
    ]
    assert len(set(made)) == len(made)
    assert is_key(key.sample_key("row 1", None, None))


def test_repr_hides_the_secret():
    assert "kkkk" not in repr(IdKey(secret=b"k" * 32))


def test_hashes_of_short_numbers_cannot_be_guessed_without_the_key():
    numbers = [str(number) for number in range(3000)]
    hidden = {IdKey(secret=b"k" * 32).hash_person(number) for number in numbers[:200]}
    assert hidden <= {IdKey(secret=b"k" * 32).hash_person(number) for number in numbers}
    spellings = [form for n in numbers for form in (n, f'"{n}"', f'["person", "{n}"]', f'["{n}"]', n.zfill(8))]
    plain = {
        hashlib.new(method, text.encode()).hexdigest()[start : start + 16]
        for method in ("md5", "sha1", "sha256", "sha512", "blake2b", "sha3_256")
        for text in spellings
        for start in (0, 16)
    }
    guessed = {IdKey(secret=secret).hash_person(n) for secret in (b"", b"0" * 32, b"hsadml", b"key") for n in numbers}
    assert not hidden & (plain | guessed)
