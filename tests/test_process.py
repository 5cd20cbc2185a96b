import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

from hsadml_dist.process import die_with_this_process, process_start_time, read_proc_stat, resume_gc
from tests.process_waits import wait_until_ended

HELPER = """
import os, signal, sys
from hsadml_dist.process import setup_helper_process
child = os.fork()
if child == 0:
    setup_helper_process("hsadml-test")
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        os.kill(os.getpid(), number)
    print(os.getpid(), open("/proc/self/comm").read().strip(), flush=True)
    signal.pause()
signal.pause()
"""
STARTER = """
import signal, subprocess, sys
from hsadml_dist.process import die_with_this_process
child = subprocess.Popen(["sleep", "600"], preexec_fn=die_with_this_process(70))
print(child.pid, flush=True)
signal.pause()
"""


class Cycle:
    def __init__(self):
        self.me = self


def test_resume_gc_exempts_startup_objects_and_collects_later_ones():
    code = (
        "import gc, weakref\n"
        "from hsadml_dist.process import pause_gc, resume_gc\n"
        "class Cycle:\n"
        "    def __init__(self): self.me = self\n"
        "pause_gc()\n"
        "early = weakref.ref(Cycle())\n"
        "many = [[] for _ in range(100_000)]\n"
        "assert early() is not None\n"
        "resume_gc()\n"
        "assert gc.get_freeze_count() > 0\n"
        "late = weakref.ref(Cycle())\n"
        "gc.collect()\n"
        "print(early() is not None, late() is None)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


def test_resume_gc_without_pause_changes_nothing():
    before = gc.get_freeze_count()
    resume_gc()
    assert gc.isenabled() and gc.get_freeze_count() == before
    late = weakref.ref(Cycle())
    gc.collect()
    assert late() is None


def test_helper_process_ignores_stop_signals_and_dies_with_its_parent():
    with subprocess.Popen([sys.executable, "-c", HELPER], stdout=subprocess.PIPE, text=True) as parent:
        pid, name = parent.stdout.readline().split()
        assert name == "hsadml-test"
        parent.kill()
    assert wait_until_ended(int(pid))


def test_child_dies_with_the_process_that_started_it():
    with subprocess.Popen([sys.executable, "-c", STARTER], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        parent.kill()
    assert wait_until_ended(pid)


def test_child_of_a_dead_parent_ends_with_the_given_code():
    bind = die_with_this_process(70)
    child = os.fork()
    if child == 0:
        # Here the parent is another process than the one that called die_with_this_process.
        grandchild = os.fork()
        if grandchild == 0:
            bind()
            os._exit(0)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 70


def test_start_time_identifies_a_process():
    with subprocess.Popen(["sleep", "60"]) as child:
        first = process_start_time(child.pid)
        assert first is not None and first >= process_start_time(os.getpid())
        assert process_start_time(child.pid) == first
        child.kill()


def test_ended_process_has_no_start_time():
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert read_proc_stat(child.pid)[0] == "Z"
    assert process_start_time(child.pid) is None
    child.wait()
    assert read_proc_stat(child.pid) is None
    assert process_start_time(child.pid) is None
