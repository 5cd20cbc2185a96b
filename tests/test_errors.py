import re

import pytest

from hsadml_dist import errors
from hsadml_dist.errors import ConfigError, ExitCode, Fault, HsadmlError, did_you_mean


def subclasses(kind):
    return {kind, *(deeper for child in kind.__subclasses__() for deeper in subclasses(child))}


def test_the_tree_in_the_docstring_is_the_tree_in_the_code():
    drawn = dict(re.findall(r"(\w+Error)\s+(?:exit code)?\s*(\d*)", errors.__doc__))
    own = {kind.__name__: kind for kind in subclasses(HsadmlError) if kind.__module__ == errors.__name__}
    assert drawn.keys() == own.keys()
    assert {name: str(int(own[name].exit_code)) for name, code in drawn.items() if code} == {
        name: code for name, code in drawn.items() if code
    }


def test_exit_codes_are_those_that_users_rely_on():
    assert {code.name: int(code) for code in ExitCode} == {
        "DONE": 0,
        "USER": 1,
        "USAGE": 2,
        "INTERNAL": 70,
        "HELD": 75,
        "STOPPED": 85,
    }


def test_a_config_error_carries_all_faults_a_line_each():
    faults = [Fault(where="a.yaml:3", key="x.y", problem="is 1"), Fault(where="command line", key="z", problem="is 2")]
    error = ConfigError(iter(faults))
    assert str(error) == "a.yaml:3: x.y: is 1\ncommand line: z: is 2"
    assert error.faults == tuple(faults)
    assert error.exit_code is ExitCode.USER_ERROR


@pytest.mark.parametrize(
    ("word", "text"), [("cosfase", " (did you mean 'cosface'?)"), ("softmax", " (did you mean 'softmax'?)"), ("q", "")]
)
def test_nearest_spelling(word, text):
    assert did_you_mean(word, ["softmax", "cosface", "sphereface"]) == text
