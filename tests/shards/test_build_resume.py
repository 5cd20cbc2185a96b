import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hsadml_dist.errors import DataError
from hsadml_dist.shards.build import BuildOptions, build_shards
from hsadml_dist.shards.pseudonyms import load_or_create_key
from hsadml_dist.shards.sources.phantom.phantom_source import PhantomSource
from hsadml_dist.shards.sources.table import TableSource
from hsadml_dist.shards.verify import verify_shards
from tests.shards.test_build_shards import OPTIONS, contents, quiet

HANG_SECONDS = 240


@pytest.fixture
def full_disk(tmp_path):
    """File system of 300 KB."""
    folder = tmp_path / "full"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder], check=False, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"cannot mount a small file system: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_build_on_full_disk_is_reported_and_resumes(full_disk, key, workers):
    source = PhantomSource(patients=12, seed=0, size=96)
    options = replace(OPTIONS, size=96)
    with pytest.raises(DataError, match=r"--out .*: .*No space left on device"):
        build_shards(source, full_disk / "out", options, key, workers, quiet)
    assert not (full_disk / "out").exists()
    subprocess.run(["mount", "-o", "remount,size=50m", full_disk], check=True)
    report = build_shards(source, full_disk / "out", options, key, workers, quiet)
    assert report.reused > 0
    assert verify_shards(full_disk / "out") == ()


BUILDER = """
import sys
from pathlib import Path
from hsadml_dist.shards.build import BuildOptions, build_shards
from hsadml_dist.shards.pseudonyms import load_or_create_key
from hsadml_dist.shards.sources.table import TableSource
table, out, key, workers = sys.argv[1:]
options = BuildOptions(samples_per_shard=4, size=640)
key = load_or_create_key(Path(key))
build_shards(TableSource(table=Path(table)), Path(out), options, key, int(workers), lambda *_: None)
"""


def children(pid: int) -> list[int]:
    """Return the child processes of ``pid``: the workers of its pool."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("workers", [1, 2])
def test_build_killed_repeatedly_resumes_to_the_same_bytes(table, tmp_path, workers):

    out, key_path = tmp_path / "out", tmp_path / "key"
    chance = random.Random(workers)
    orphans: list[int] = []
    for kill in range(1, 6):
        words = [sys.executable, "-c", BUILDER, str(table), str(out), str(key_path), str(workers)]
        process = subprocess.Popen(words)
        deadline = time.monotonic() + HANG_SECONDS
        while len(list((tmp_path / ".out.building").glob(".done-*"))) < kill and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.05))
        orphans += children(process.pid)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not out.exists()
    key, options = load_or_create_key(key_path), BuildOptions(samples_per_shard=4, size=640)
    report = build_shards(TableSource(table=table), out, options, key, workers, quiet)
    assert 5 <= report.reused < len(report.index)
    assert verify_shards(out) == ()
    build_shards(TableSource(table=table), tmp_path / "reference", options, key, 1, quiet)
    assert contents(out) == contents(tmp_path / "reference")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key", "out", "reference"]
    deadline = time.monotonic() + HANG_SECONDS
    while not all(map(is_gone, orphans)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in orphans if not is_gone(pid)] == []
