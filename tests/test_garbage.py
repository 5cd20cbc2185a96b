import gc
import subprocess
import sys
import weakref

from hsadml_dist.garbage import resume_gc


class Cycle:
    def __init__(self):
        self.me = self


def test_garbage_of_the_start_is_left_and_later_garbage_collected():
    code = (
        "import gc, weakref\n"
        "from hsadml_dist.garbage import resume_gc, pause_gc\n"
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
