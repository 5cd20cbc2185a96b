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
        (RunLockedError("locked"), 75, "hsadml: locked\n"),
        (PeerLostError("lost"), 70, "hsadml: lost\n"),
        (OSError(28, "No space left on device", "/x/y"), 1, "hsadml: /x/y: no space left\n"),
        (OSError(30, "Read-only file system"), 1, "hsadml: Read-only file system\n"),
        (KeyboardInterrupt(), 85, "hsadml: interrupted\n"),
        (SystemExit("enough"), 1, "hsadml: enough\n"),
        (SystemExit(5), 5, ""),
        (SystemExit(), 0, ""),
    ],
)
def test_user_error_is_a_message_and_an_exit_code(capsys, fault, code, text):
    assert run_with_exit_code(raises(fault)) == code
    assert capsys.readouterr().err == text


def test_missing_package_names_the_extra_that_installs_it(capsys):
    assert run_with_exit_code(raises(ModuleNotFoundError("No module named 'torch._C'", name="torch._C"))) == 1
    message = capsys.readouterr().err
    assert message.startswith("hsadml: ") and message.count("\n") == 1
    assert "'torch'" in message and "pip install 'hsadml-dist[train]'" in message


@pytest.mark.parametrize(
    "fault",
    [
        ValueError("odd"),
        FileNotFoundError(2, "No such file", "x"),
        ModuleNotFoundError("No module named 'x'", name="x"),
    ],
)
def test_defect_is_a_traceback_and_70(capsys, fault):
    assert run_with_exit_code(raises(fault)) == 70
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback") and str(fault) in printed


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (85, 85)])
def test_result_is_the_exit_code(result, code):
    assert run_with_exit_code(lambda: result) == code
