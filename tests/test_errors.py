import errno
import re

import pytest

from hsadml_dist import errors
from hsadml_dist.errors import ConfigError, ExitCode, Fault, HsadmlError, did_you_mean, os_error_reason


def subclasses(kind):
    return {kind, *(deeper for child in kind.__subclasses__() for deeper in subclasses(child))}


def test_exception_tree_in_docstring_matches_code():
    drawn = dict(re.findall(r"(\w+Error)\s+(?:exit code)?\s*(\d*)", errors.__doc__))
    own = {kind.__name__: kind for kind in subclasses(HsadmlError) if kind.__module__ == errors.__name__}
    assert drawn.keys() == own.keys()
    assert {name: str(int(own[name].exit_code)) for name, code in drawn.items() if code} == {
        name: code for name, code in drawn.items() if code
    }


def test_exit_codes_are_the_documented_ones():
    assert {code.name: int(code) for code in ExitCode} == {
        "SUCCESS": 0,
        "USER_ERROR": 1,
        "USAGE_ERROR": 2,
        "INTERNAL_ERROR": 70,
        "RUN_LOCKED": 75,
        "STOPPED": 85,
    }


def test_config_error_has_one_line_per_fault():
    faults = [Fault(where="a.yaml:3", key="x.y", problem="is 1"), Fault(where="command line", key="z", problem="is 2")]
    error = ConfigError(iter(faults))
    assert str(error) == "a.yaml:3: x.y: is 1\ncommand line: z: is 2"
    assert error.faults == tuple(faults)
    assert error.exit_code is ExitCode.USER_ERROR


@pytest.mark.parametrize(
    ("word", "text"), [("cosfase", " (did you mean 'cosface'?)"), ("softmax", " (did you mean 'softmax'?)"), ("q", "")]
)
def test_did_you_mean_suggests_closest_spelling(word, text):
    assert did_you_mean(word, ["softmax", "cosface", "sphereface"]) == text


def test_os_error_reason_is_the_same_for_full_disk_and_full_quota():
    assert os_error_reason(OSError(errno.ENOSPC, "x")) == os_error_reason(OSError(errno.EDQUOT, "y"))
    assert os_error_reason(OSError(errno.EACCES, "Permission denied")) == "Permission denied"
