import os
import subprocess

from hsadml_dist.run.processes import process_start_time, read_proc_stat


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
