import os
import subprocess
import sys
import textwrap

import pytest

from hsadml_dist.config.yaml_loader import build_recipe, dump_recipe


@pytest.fixture
def run(tmp_path):
    dump_recipe(build_recipe({"data.shards": "s", "train.steps": 7}), tmp_path / "config.yaml")
    return tmp_path


def rank(run, body, **environ):
    """Run a rank in a process whose trainer is ``body``, a function of recipe, path and stop_signal."""
    code = (
        "import os, signal, sys, threading, time, types\n"
        "from hsadml_dist.errors import CheckpointError\n"
        f"def train(recipe, path, stop_signal):\n{textwrap.indent(textwrap.dedent(body), '    ')}\n"
        "stub = sys.modules['hsadml_dist.trainer'] = types.ModuleType('hsadml_dist.trainer')\n"
        "stub.train = train\n"
        "from hsadml_dist.launch.rank import hard_exit, main\n"
        "hard_exit(main(sys.argv[1:]))\n"
    )
    environ = {name: value for name, value in os.environ.items() if name not in ("RANK", "SLURM_PROCID")} | environ
    words = [sys.executable, "-c", code, str(run)]
    return subprocess.run(words, env=environ, capture_output=True, text=True, timeout=300, check=False)


def test_rank_passes_the_stored_recipe_and_returns_the_trainers_exit_code(run):
    done = rank(run, "print(recipe.train.steps, path.name)\nreturn 85")
    assert (done.returncode, done.stdout) == (85, f"7 {run.name}\n")


def test_error_message_names_the_rank(run):
    done = rank(run, "raise CheckpointError('none verifies')", RANK="3")
    assert (done.returncode, done.stderr) == (1, "hsadml: rank 3: none verifies\n")


def test_defect_exits_with_70(run):
    done = rank(run, "raise ValueError('odd')")
    assert done.returncode == 70
    assert "ValueError: odd" in done.stderr


def test_invalid_config_is_reported_without_the_trainer(run):
    (run / "config.yaml").write_text("train: {steps: x}\n")
    done = rank(run, "return 0")
    assert done.returncode == 1
    assert "config.yaml:1: train.steps" in done.stderr


def test_wrong_arguments_are_a_usage_error():
    words = [sys.executable, "-m", "hsadml_dist.launch.rank"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR2", "SIGINT"])
def test_signal_before_the_trainer_starts_is_passed_to_it(run, name):
    code = f"""
        import os, signal, sys
        from hsadml_dist.launch import rank
        loaded = rank.load_recipe
        def slow(path):
            os.kill(os.getpid(), signal.{name})
            return loaded(path)
        rank.load_recipe = slow
        import types
        stub = sys.modules["hsadml_dist.trainer"] = types.ModuleType("hsadml_dist.trainer")
        stub.train = lambda recipe, path, stop_signal: print(stop_signal.reason.name) or 85
        rank.hard_exit(rank.main(sys.argv[1:]))
    """
    words = [sys.executable, "-c", textwrap.dedent(code), str(run)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (85, f"{name}\n")


def test_running_thread_does_not_delay_the_exit(run):
    done = rank(run, "threading.Thread(target=time.sleep, args=(600,)).start()\nprint('out')\nreturn 0")
    assert (done.returncode, done.stdout) == (0, "out\n")


def test_imports_start_no_thread_and_torch_may_use_several(run):
    body = """
        import numpy, torch
        numpy.ones((64, 64)) @ numpy.ones((64, 64))
        threads = len(os.listdir("/proc/self/task"))
        torch.set_num_threads(2)
        print(threads, torch.get_num_threads())
        return 0
    """
    assert rank(run, body).stdout == "1 2\n"
