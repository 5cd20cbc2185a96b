import pytest

from hsadml_dist.errors import ConfigError, DataError, Fault, PeerLostError, RunLockedError, UsageError
from hsadml_dist.launch.exit_codes import run_with_exit_code

FAULT = Fault(where="r.yaml:3", key="train.seed", problem="is odd")


def raises(fault):
    def work():
        raise fault

    return work


@pytest.mark.parametrize(
    ("fault", "code", "text"),
    [
        (ConfigError([FAULT, FAULT]), 1, "hsadml: r.yaml:3: train.seed: is odd\nr.yaml:3: train.seed: is odd\n"),
        (DataError("gone"), 1, "hsadml: gone\n"),
        (UsageError("what"), 2, "hsadml: what\n"),
        (RunLockedError("held"), 75, "hsadml: held\n"),
        (PeerLostError("lost"), 70, "hsadml: lost\n"),
        (OSError(28, "No space left on device", "/x/y"), 1, "hsadml: /x/y: no space left\n"),
        (OSError(30, "Read-only file system"), 1, "hsadml: Read-only file system\n"),
        (KeyboardInterrupt(), 85, "hsadml: interrupted\n"),
        (SystemExit("enough"), 1, "hsadml: enough\n"),
        (SystemExit(5), 5, ""),
        (SystemExit(), 0, ""),
        (
            ModuleNotFoundError("No module named 'torch._C'", name="torch._C"),
            1,
            "hsadml: this needs the package 'torch', which is not installed: pip install 'hsadml-dist[train]'\n",
        ),
    ],
)
def test_what_a_user_can_repair_is_text_and_a_code(capsys, fault, code, text):
    assert run_with_exit_code(raises(fault)) == code
    assert capsys.readouterr().err == text


@pytest.mark.parametrize(
    "fault",
    [
        ValueError("odd"),
        FileNotFoundError(2, "No such file", "x"),
        ModuleNotFoundError("No module named 'x'", name="x"),
    ],
)
def test_a_defect_is_a_traceback_and_70(capsys, fault):
    assert run_with_exit_code(raises(fault)) == 70
    told = capsys.readouterr().err
    assert told.startswith("Traceback") and str(fault) in told


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (85, 85)])
def test_a_result_is_the_code(result, code):
    assert run_with_exit_code(lambda: result) == code
