import gc
import os
import subprocess
import sys
import weakref

from hsadml_dist.process import process_start_time, read_proc_stat, resume_gc


class Cycle:
    def __init__(self):
        self.me = self


def test_garbage_of_the_start_is_left_and_later_garbage_collected():
    code = (
        "import gc, weakref\n"
        "from hsadml_dist.process import resume_gc, pause_gc\n"
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


def test_a_process_that_collects_all_along_is_left_alone():
    before = gc.get_freeze_count()
    resume_gc()
    assert gc.isenabled() and gc.get_freeze_count() == before
    late = weakref.ref(Cycle())
    gc.collect()
    assert late() is None


def test_the_start_time_tells_a_process_from_its_parent_and_stays():
    with subprocess.Popen(["sleep", "60"]) as child:
        first = process_start_time(child.pid)
        assert first is not None and first >= process_start_time(os.getpid())
        assert process_start_time(child.pid) == first
        child.kill()


def test_a_zombie_and_a_process_that_is_gone_have_none():
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert read_proc_stat(child.pid)[0] == "Z"
    assert process_start_time(child.pid) is None
    child.wait()
    assert read_proc_stat(child.pid) is None
    assert process_start_time(child.pid) is None
