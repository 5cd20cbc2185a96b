import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hsadml_dist.launch import local
from hsadml_dist.launch.local import RankExit, exit_code, first_failure, run_ranks

SCRIPTED_RANK = str(Path(__file__).with_name("scripted_rank.py"))


def command(plan):
    return [sys.executable, SCRIPTED_RANK, json.dumps(plan)]


def started(run, nproc, seconds=60.0):
    """Wait until all ranks have started and return what each has recorded."""
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


def wait_gone(pids, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not all(gone(pid) for pid in pids):
        assert time.monotonic() < deadline, f"still there: {[pid for pid in pids if not gone(pid)]}"
        time.sleep(0.02)


@pytest.fixture
def launcher(tmp_path):
    """Start run_ranks in a process of its own process group, as a shell does."""
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


def test_ranks_get_rank_world_size_and_a_session_of_their_own(tmp_path):
    environ = {**os.environ, "EXTRA": "here"}
    assert run_ranks(tmp_path, 3, environ=environ, command=command({})) == 0
    seen = started(tmp_path, 3)
    assert [facts["RANK"] for facts in seen] == ["0", "1", "2"]
    assert [facts["LOCAL_RANK"] for facts in seen] == ["0", "1", "2"]
    assert {(facts["WORLD_SIZE"], facts["LOCAL_WORLD_SIZE"], facts["EXTRA"]) for facts in seen} == {("3", "3", "here")}
    assert len({facts["HSADML_LAUNCH"] for facts in seen}) == 1
    assert all(facts["stdin"] == "" and facts["sid"] == facts["pid"] for facts in seen)


def test_each_launch_has_its_own_token(tmp_path):
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
        ({"0": {"code": 1}, "1": {"after": 600}}, 1),
        ({"0": {"after": 600}, "1": {"code": 75}}, 75),
        ({"0": {"after": 600, "term": 70}, "1": {"code": 1}}, 1),
    ],
)
def test_run_ranks_returns_the_exit_code_of_the_run(tmp_path, plan, code):
    assert run_ranks(tmp_path, 2, command=command(plan)) == code


def test_killed_rank_is_named_and_peers_that_ignore_signals_are_killed(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(local, "FAILED_GRACE_SECONDS", 0.5)
    plan = {"0": {"after": 600, "term": None}, "1": {"after": 0.5, "self": "KILL"}}
    assert run_ranks(tmp_path, 2, command=command(plan)) == 70
    first, second = capfd.readouterr().err.splitlines()
    assert "rank 1" in first and "SIGKILL" in first
    assert "rank 0" in second
    wait_gone([facts["pid"] for facts in started(tmp_path, 2)])


def test_rank_that_keeps_running_after_a_stop_is_killed(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(local, "STOPPED_GRACE_SECONDS", 0.5)
    plan = {"0": {"after": 600, "term": None}, "1": {"code": 85, "after": 0.3}}
    assert run_ranks(tmp_path, 2, command=command(plan)) == 85
    assert "rank 0" in capfd.readouterr().err


def test_rank_that_finishes_early_does_not_stop_the_others(tmp_path):
    assert run_ranks(tmp_path, 2, command=command({"1": {"after": 1.0}})) == 0
    assert not list(tmp_path.glob("signals-*"))


@pytest.mark.parametrize(("sent", "seen"), [("TERM", "TERM"), ("USR2", "USR2"), ("INT", "INT"), ("HUP", "TERM")])
def test_signal_is_forwarded_once_to_every_rank(tmp_path, launcher, sent, seen):
    process = launcher({"0": {"after": 600}, "1": {"after": 600}}, 2)
    started(tmp_path, 2)
    # To the whole group, as a terminal does with Ctrl-C.
    os.killpg(process.pid, getattr(signal, f"SIG{sent}"))
    assert process.wait(120) == 85
    assert [(tmp_path / f"signals-{rank}").read_text() for rank in range(2)] == [f"SIG{seen}\n"] * 2


def test_second_interrupt_kills(tmp_path, launcher):
    process = launcher({"0": {"after": 600, "term": None}}, 1)
    pids = [facts["pid"] for facts in started(tmp_path, 1)]
    process.send_signal(signal.SIGINT)
    while not (tmp_path / "signals-0").exists():
        time.sleep(0.02)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 85
    wait_gone(pids)


def test_ignored_signals_stay_ignored(tmp_path, launcher):
    process = launcher({"0": {"after": 1.5}}, 1, before="signal.signal(signal.SIGHUP, signal.SIG_IGN)")
    started(tmp_path, 1)
    process.send_signal(signal.SIGHUP)
    assert process.wait(120) == 0
    assert not (tmp_path / "signals-0").exists()


def test_ranks_do_not_outlive_a_killed_launcher(tmp_path, launcher):
    process = launcher({"0": {"after": 600, "term": None}, "1": {"after": 600, "term": None}}, 2)
    pids = [facts["pid"] for facts in started(tmp_path, 2)]
    process.kill()
    process.wait(120)
    wait_gone(pids)


def test_signal_handlers_are_restored(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    run_ranks(tmp_path, 1, command=command({}))
    assert signal.getsignal(signal.SIGTERM) is before


def test_run_ranks_can_be_called_from_any_thread(tmp_path):
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(run_ranks, tmp_path, 1, command=command({"0": {"code": 85}})).result() == 85


def test_first_failure_prefers_a_killed_rank_then_a_user_error():
    lost_peer = RankExit(rank=0, code=70, poll=3)
    killed = RankExit(rank=2, code=-9, poll=3)
    assert first_failure([lost_peer, killed]) is killed
    assert exit_code([lost_peer, killed]) == 70
    mine = RankExit(rank=1, code=1, poll=3)
    assert exit_code([lost_peer, mine]) == 1
    earlier = RankExit(rank=3, code=75, poll=2)
    assert exit_code([killed, earlier, mine]) == 75
    assert first_failure([RankExit(rank=0, code=85, poll=1), RankExit(rank=1, code=-9, poll=9, killed=True)]) is None


def test_ranks_import_this_package_from_any_working_directory(tmp_path, monkeypatch):
    root = Path(local.hsadml_dist.__file__).parent.parent
    monkeypatch.chdir(tmp_path)
    # A namesake in the current directory must not come before it.
    (tmp_path / "hsadml_dist.py").write_text("raise SystemExit(3)")
    (tmp_path / "run").mkdir()
    monkeypatch.delenv("PYTHONPATH", raising=False)
    code = f"import hsadml_dist; assert hsadml_dist.__file__.startswith({str(root)!r}), hsadml_dist.__file__"
    assert run_ranks(tmp_path / "run", 1, command=[sys.executable, "-P", "-c", code]) == 0
