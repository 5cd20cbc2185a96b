import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from hsadml_dist.launch import local
from hsadml_dist.launch.local import RankExit, exit_code, first_failure, run_ranks

FAKE = str(Path(__file__).with_name("scripted_rank.py"))


def command(plan):
    return [sys.executable, FAKE, json.dumps(plan)]


def started(run, nproc, seconds=20.0):
    """Wait until all ranks listen; return what each has seen."""
    deadline = time.monotonic() + seconds
    files = [run / f"started-{rank}" for rank in range(nproc)]
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline, "the ranks did not start"
        time.sleep(0.02)
    return [json.loads(file.read_text()) for file in files]


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def wait_gone(pids, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not all(gone(pid) for pid in pids):
        assert time.monotonic() < deadline, f"still there: {[pid for pid in pids if not gone(pid)]}"
        time.sleep(0.02)


@pytest.fixture
def launcher(tmp_path):
    """Starts run_ranks in a process of its own, leader of its group, as a shell would."""
    processes = []

    def start(plan, nproc, before=""):
        code = f"""
            import sys, json, signal
            from pathlib import Path
            from hsadml_dist.launch import local
            {before}
            sys.exit(local.run_ranks(Path(sys.argv[1]), int(sys.argv[2]), command=json.loads(sys.argv[3])))
        """
        words = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path), str(nproc), json.dumps(command(plan))]
        processes.append(subprocess.Popen(words, stderr=subprocess.PIPE, text=True, process_group=0))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_each_rank_knows_its_place(tmp_path):
    environ = {**os.environ, "EXTRA": "here"}
    assert run_ranks(tmp_path, 3, environ=environ, command=command({})) == 0
    seen = started(tmp_path, 3)
    assert [facts["RANK"] for facts in seen] == ["0", "1", "2"]
    assert [facts["LOCAL_RANK"] for facts in seen] == ["0", "1", "2"]
    assert {(facts["WORLD_SIZE"], facts["LOCAL_WORLD_SIZE"], facts["EXTRA"]) for facts in seen} == {("3", "3", "here")}
    assert len({facts["HSADML_LAUNCH"] for facts in seen}) == 1
    assert all(facts["stdin"] == "" and facts["sid"] == facts["pid"] for facts in seen)


def test_each_launch_has_a_token_of_its_own(tmp_path):
    tokens = set()
    for _ in range(2):
        run_ranks(tmp_path, 1, command=command({}))
        tokens.add(started(tmp_path, 1)[0]["HSADML_LAUNCH"])
    assert len(tokens) == 2


@pytest.mark.parametrize(
    ("plan", "code"),
    [
        ({}, 0),
        ({"0": {"code": 85}, "1": {"code": 85}}, 85),
        ({"0": {"code": 0}, "1": {"code": 85}}, 85),
        ({"0": {"code": 1}, "1": {"after": 60}}, 1),
        ({"0": {"after": 60}, "1": {"code": 75}}, 75),
        ({"0": {"after": 60, "term": 70}, "1": {"code": 1}}, 1),
    ],
)
def test_the_exit_code_of_the_whole(tmp_path, plan, code):
    assert run_ranks(tmp_path, 2, command=command(plan)) == code


def test_a_killed_rank_is_named_and_its_deaf_peers_do_not_stay(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(local, "FAILED_GRACE", 0.5)
    plan = {"0": {"after": 60, "term": None}, "1": {"after": 0.5, "self": "KILL"}}
    began = time.monotonic()
    assert run_ranks(tmp_path, 2, command=command(plan)) == 70
    assert time.monotonic() - began < 15
    lines = capfd.readouterr().err.splitlines()
    assert lines == [
        "hsadml: rank 1 was killed by SIGKILL (signal 9)",
        "hsadml: rank 0 did not stop in time and was killed",
    ]
    wait_gone([facts["pid"] for facts in started(tmp_path, 2)])


def test_a_rank_that_stays_when_its_peers_have_stopped_is_ended(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(local, "STOPPED_GRACE", 0.5)
    plan = {"0": {"after": 60, "term": None}, "1": {"code": 85, "after": 0.3}}
    assert run_ranks(tmp_path, 2, command=command(plan)) == 85
    assert "rank 0 did not stop in time" in capfd.readouterr().err


def test_a_rank_that_is_done_early_hurries_nobody(tmp_path):
    assert run_ranks(tmp_path, 2, command=command({"1": {"after": 1.0}})) == 0
    assert not list(tmp_path.glob("signals-*"))


@pytest.mark.parametrize(("sent", "seen"), [("TERM", "TERM"), ("USR2", "USR2"), ("INT", "TERM"), ("HUP", "TERM")])
def test_notices_reach_every_rank_once(tmp_path, launcher, sent, seen):
    process = launcher({"0": {"after": 60}, "1": {"after": 60}}, 2)
    started(tmp_path, 2)
    # To the whole group, as a terminal does with Ctrl-C.
    os.killpg(process.pid, getattr(signal, f"SIG{sent}"))
    assert process.wait(20) == 85
    assert [(tmp_path / f"signals-{rank}").read_text() for rank in range(2)] == [f"SIG{seen}\n"] * 2


def test_a_second_interrupt_kills(tmp_path, launcher):
    process = launcher({"0": {"after": 60, "term": None}}, 1)
    pids = [facts["pid"] for facts in started(tmp_path, 1)]
    process.send_signal(signal.SIGINT)
    while not (tmp_path / "signals-0").exists():
        time.sleep(0.02)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 85
    wait_gone(pids)


def test_ignored_signals_stay_ignored(tmp_path, launcher):
    process = launcher({"0": {"after": 1.5}}, 1, before="signal.signal(signal.SIGHUP, signal.SIG_IGN)")
    started(tmp_path, 1)
    process.send_signal(signal.SIGHUP)
    assert process.wait(20) == 0
    assert not (tmp_path / "signals-0").exists()


def test_ranks_do_not_outlive_a_killed_launcher(tmp_path, launcher):
    process = launcher({"0": {"after": 60, "term": None}, "1": {"after": 60, "term": None}}, 2)
    pids = [facts["pid"] for facts in started(tmp_path, 2)]
    process.kill()
    process.wait(10)
    wait_gone(pids)


def test_handlers_are_put_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    run_ranks(tmp_path, 1, command=command({}))
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_failure_that_explains_the_others():
    lost_peer = RankExit(rank=0, code=70, moment=3)
    killed = RankExit(rank=2, code=-9, moment=3)
    assert first_failure([lost_peer, killed]) is killed
    assert exit_code([lost_peer, killed]) == 70
    mine = RankExit(rank=1, code=1, moment=3)
    assert exit_code([lost_peer, mine]) == 1
    earlier = RankExit(rank=3, code=75, moment=2)
    assert exit_code([killed, earlier, mine]) == 75
    assert (
        first_failure([RankExit(rank=0, code=85, moment=1), RankExit(rank=1, code=-9, moment=9, killed=True)]) is None
    )


def test_ranks_import_this_package_from_anywhere(tmp_path, monkeypatch):
    root = Path(local.hsadml_dist.__file__).parent.parent
    monkeypatch.chdir(tmp_path)
    # A namesake in the current directory must not come before it.
    (tmp_path / "hsadml_dist.py").write_text("raise SystemExit(3)")
    (tmp_path / "run").mkdir()
    monkeypatch.delenv("PYTHONPATH", raising=False)
    code = f"import hsadml_dist; assert hsadml_dist.__file__.startswith({str(root)!r}), hsadml_dist.__file__"
    assert run_ranks(tmp_path / "run", 1, command=[sys.executable, "-P", "-c", code]) == 0
