"""Another user of the machine was first: in the cache of images, in the copies of shards, next to a new file.

The attacker is ``nobody``, started by root; the victim is root.
"""

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from hsadml_dist import atomic
from hsadml_dist.data.index import load_index
from hsadml_dist.data.reader import open_prepared_cache
from hsadml_dist.data.shard_cache import ShardCache
from hsadml_dist.data.transforms import Preprocessing
from hsadml_dist.errors import ConfigError, DataError
from hsadml_dist.shards.build_folder import open_build_folder
from hsadml_dist.slurm import job_queue

NOBODY = 65534

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root, to start another user"),
]


def as_nobody(script, **options):
    command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "sh", "-c", script]
    return subprocess.Popen(command, **options)


def let_nobody(script):
    assert as_nobody(script).wait() == 0, script


@pytest.fixture
def shared():
    """A folder like /tmp, where every user may create files."""
    folder = Path(tempfile.mkdtemp(prefix="hsadml-attack-", dir="/tmp"))
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def precious(tmp_path):
    """A file of the victim that no attack may change or make readable."""
    path = tmp_path / "precious"
    path.write_text("precious")
    path.chmod(0o600)
    yield path
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("precious", 0o600)


@pytest.fixture
def index(tiny_shards):
    return load_index(tiny_shards)


@pytest.fixture
def prepare():
    return Preprocessing(16)


@pytest.fixture
def cache_name(index, prepare, tmp_path):
    """The name of the cache file, which anyone can compute who knows the shards."""
    store = open_prepared_cache(tmp_path / "own", index, prepare)
    store.close()
    return store.path.name


@pytest.mark.parametrize("mode", ["700", "755", "777", "1777"])
def test_cache_folder_of_another_user_is_refused(shared, precious, index, prepare, cache_name, mode):
    folder = shared / "cache"
    let_nobody(f"umask 0; mkdir {folder}; ln -s {precious} {folder}/{cache_name}; chmod {mode} {folder}")
    with pytest.raises(ConfigError, match=rf"data\.cache: {folder} belongs to another user \(nobody\)"):
        open_prepared_cache(folder, index, prepare)


@pytest.mark.parametrize("plant", ["ln -s {precious} {file}", ": >{file}; chmod 666 {file}", "mkfifo -m 666 {file}"])
def test_cache_file_of_another_user_in_a_shared_folder_is_refused(shared, precious, index, prepare, cache_name, plant):
    let_nobody(plant.format(precious=precious, file=shared / cache_name))
    with pytest.raises(ConfigError, match=rf"data\.cache: {shared}/{cache_name}"):
        open_prepared_cache(shared, index, prepare)


def test_link_of_another_user_to_an_own_folder_is_refused(shared, tmp_path, index, prepare):
    (tmp_path / "papers").mkdir(mode=0o700)
    let_nobody(f"ln -s {tmp_path}/papers {shared}/cache")
    with pytest.raises(ConfigError, match="is a link of another user"):
        open_prepared_cache(shared / "cache", index, prepare)
    assert os.listdir(tmp_path / "papers") == []


def test_cached_images_and_copies_cannot_be_read_or_exchanged(shared, index, prepare, tiny_shards):
    store = open_prepared_cache(shared / "cache", index, prepare)
    store.put(0, index.samples[0].sha256, prepare(np.zeros((64, 64), dtype=np.uint16)))
    cache = ShardCache(source=str(tiny_shards), folder=shared / "stage")
    cache.fetch(index.shards[0])
    copy = shared / "stage" / f"{index.shards[0].sha256}.tar"
    for path in (store.path, copy):
        folder, quiet = path.parent, {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        for attempt in (f"cat {path}", f"echo >>{path}", f"rm -f {path}", f"mv {folder} {shared}/gone", f"ls {folder}"):
            assert as_nobody(attempt, **quiet).wait() != 0, attempt
    store.close()
    assert cache.has(index.shards[0])


@pytest.mark.parametrize("mode", ["755", "777", "1777"])
def test_staging_folder_of_another_user_is_refused(shared, precious, index, tiny_shards, mode):
    folder, file = shared / "stage", index.shards[0]
    links = [f"ln -s {precious} {folder}/{file.sha256}{suffix}" for suffix in (".tar", ".lock")]
    let_nobody(f"umask 0; mkdir {folder}; {'; '.join(links)}; chmod {mode} {folder}")
    cache = ShardCache(source=str(tiny_shards), folder=folder)
    for use in (lambda: cache.require_free_space(index.shards), lambda: cache.open(file)):
        with pytest.raises(DataError, match=rf"^data\.stage: {folder} belongs to another user"):
            use()


def test_lock_that_another_user_holds_does_not_stop_a_copy(shared, index, tiny_shards):
    file = index.shards[0]
    cache = ShardCache(source=str(tiny_shards), folder=shared / "stage")
    cache.fetch(file)
    lock = shared / "stage" / f"{file.sha256}.lock"
    assert as_nobody(f"exec 9<{lock} && flock 9", stderr=subprocess.DEVNULL).wait() != 0
    (shared / "stage" / f"{file.sha256}.tar").unlink()
    cache.fetch(file)


def test_answers_of_squeue_that_another_user_forged_are_not_used(shared, monkeypatch):
    forged = {"uid": 0, "conf": None, "queue": {"asked": time.time(), "answered": time.time(), "problem": None}}
    job = {"job": "1", "state": "RUNNING"}
    forged["queue"] |= {"jobs": [job], "others": []}
    env = {"PATH": "/nowhere", "XDG_CACHE_HOME": str(shared)}
    path = job_queue._Cache.of(env, time.time).path
    let_nobody(f"mkdir {path.parent}; cat >{path} <<'END'\n{json.dumps(forged)}\nEND\n")
    assert job_queue.query_queue(env=env).jobs == {}
    assert json.loads(path.read_text()) == forged, "nothing is written into another user's folder"


def test_build_folder_of_another_user_is_refused(shared, precious):
    let_nobody(f"umask 0; mkdir {shared}/.out.building; ln -s {precious} {shared}/.out.building/.lock")
    with pytest.raises(DataError, match=r"--out .*belongs to another user"), open_build_folder(shared / "out", "x"):
        pytest.fail("it was opened")


def test_attacker_who_exchanges_temporary_files_never_reaches_another_file(shared, precious):
    """The attacker puts links under every temporary name that appears, as fast as possible, for three seconds."""
    link = f"ln -sf {precious}"
    race = f"while :; do for f in {shared}/.*.tmp; do {link} $f; {link} {shared}/a.json; done; done"
    attacker = as_nobody(race, stderr=subprocess.DEVNULL)
    try:
        end, written = time.monotonic() + 3, 0
        while time.monotonic() < end:
            try:
                atomic.write_text(shared / "a.json", "new", durable=False)
                written += 1
            except OSError:
                pass  # the attacker was first: nothing is written
    finally:
        attacker.kill()
        attacker.wait()
    assert written > 0
