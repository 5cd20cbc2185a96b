"""Another user of the machine attacks the ranks of a training: its files, its store, and every port it listens on.

The attacker is ``nobody``, forked from root, who is the victim.
"""

import datetime
import json
import multiprocessing
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from hsadml_dist.run.folder import RunFolder
from hsadml_dist.run.history import merged_metrics

NOBODY = 65534
HANG_SECONDS = 900
STEPS = 800
"""A quarter of a minute, or minutes on a busy machine."""
PATIENCE = datetime.timedelta(seconds=2)

pytestmark = [pytest.mark.soak, pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")]


class Payload:
    """An object that creates a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def as_nobody(attack, *arguments):
    """Return what ``attack`` returns in a process of another user."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def run():
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        theirs.send(attack(*arguments))

    process = context.Process(target=run)
    process.start()
    assert ours.poll(HANG_SECONDS), "the attack hangs"
    found = ours.recv()
    process.join()
    return found


def listening_ports(since):
    """Return the ports on which root listens, except those in ``since``."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {int(row[1].partition(":")[2], 16) for row in rows if row[3] == "0A" and row[7] == "0"} - since


def rewrite_store(ports, marker):
    """Connect to every port as to a store, and set all names to a pickle; return how many."""
    names = [f"{prefix}cpu//0/{rank}" for prefix in ("0//", "0//1//", "0//2//", "0//3//") for rank in range(2)]
    replaced = 0
    for port in ports:
        try:
            store = dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False, timeout=PATIENCE)
            known = store.list_keys() if hasattr(store, "list_keys") else []
            for name in [*names, *known]:
                store.set(name, pickle.dumps(Payload(marker)))
                replaced += 1
        except RuntimeError:  # not a store, or it has closed the connection
            continue
    return replaced


def send_garbage(ports, marker):
    """Send pickles and noise to every port; return the number of connections."""
    connected = 0
    for port in ports:
        for text in (pickle.dumps(Payload(marker)), b"\xff" * 4096, b""):
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
                    connection.sendall(text)
                    connected += 1
            except OSError:
                continue
    return connected


def read_secret(path):
    try:
        return Path(path).read_text()
    except PermissionError:
        return None


@pytest.fixture
def shared():
    """A folder that every user can look into."""
    folder = Path(tempfile.mkdtemp(prefix="hsadml-attack-", dir="/tmp"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def train(tiny_shards, run, steps):
    settings = [f"data.shards={tiny_shards}", "data.image_size=32", f"train.steps={steps}", "train.global_batch=8"]
    quiet = ["evaluation.at_end=false", "run.tensorboard=false", "checkpoint.every=100000"]
    command = [sys.executable, "-m", "hsadml_dist.launch.cli", "train", "demo", *settings, *quiet]
    return subprocess.Popen([*command, "--run", run, "--nproc", "2"], stderr=subprocess.PIPE, text=True)


def wait_for(condition, process):
    deadline = time.monotonic() + HANG_SECONDS
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)


def digest(run):
    command = [sys.executable, "-m", "hsadml_dist.launch.cli", "checkpoint", "digest", run]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_running_training_is_not_changed_by_another_user(tiny_shards, shared):
    undisturbed = train(tiny_shards, shared / "plain", STEPS)
    assert undisturbed.wait(HANG_SECONDS) == 0
    marker, before = shared / "marker", listening_ports(set())
    run = RunFolder(shared / "run")
    process = train(tiny_shards, run.path, STEPS)
    wait_for(lambda: len(merged_metrics(run.path)) > 2, process)
    ports = listening_ports(before)
    store = json.loads(run.attempt(1).rendezvous.read_text())["port"]
    assert store in ports
    assert as_nobody(read_secret, run.attempt(1).rendezvous) is None
    assert as_nobody(rewrite_store, [store], marker) > 0, "the store can be reached, as by any user of the machine"
    assert as_nobody(send_garbage, ports, marker) > 0
    assert process.poll() is None, "the attack came in time"
    assert process.wait(HANG_SECONDS) == 0, process.stderr.read()
    assert not marker.exists()
    assert digest(run.path) == digest(shared / "plain")


@pytest.mark.parametrize("attack", [rewrite_store, send_garbage])
def test_start_under_attack_runs_no_code_of_another_user(tiny_shards, shared, attack):
    """It may be prevented, but only by an error that says so."""
    marker, before = shared / "marker", listening_ports(set())
    run = RunFolder(shared / "run")
    process = train(tiny_shards, run.path, 20)
    wait_for(lambda: run.attempts() and run.attempt(1).rendezvous.exists(), process)
    for _ in range(20):
        as_nobody(attack, listening_ports(before), marker)
    code = process.wait(HANG_SECONDS)
    assert not marker.exists()
    assert code in (0, 1, 70), process.stderr.read()
    if code == 0:
        assert [row["step"] for row in merged_metrics(run.path)] == list(range(1, 21))
