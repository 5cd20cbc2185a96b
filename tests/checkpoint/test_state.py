import dataclasses

import pytest


def test_a_state_cannot_be_pointed_elsewhere(state):
    with pytest.raises(dataclasses.FrozenInstanceError):
        state(1).groups = {}
    assert state(3).progress.step == 3
