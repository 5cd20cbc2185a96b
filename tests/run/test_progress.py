import io

import pytest

from hsadml_dist.run import progress
from hsadml_dist.run.progress import BarProgress, LineProgress, open_progress_display


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_each_30_seconds_and_one_at_the_end(clock):
    stream = io.StringIO()
    lines = LineProgress(stream, total=100)
    for step in range(1, 101):
        clock[0] += 1.0
        lines.update(step, loss=1 / step, rate=123.4)
    lines.close()
    said = stream.getvalue().splitlines()
    assert [line.split()[1] for line in said] == ["30/100", "60/100", "90/100", "100/100"]
    assert said[0] == "step 30/100  loss 0.0333  123 samples/s"


def test_logs_get_lines_and_terminals_a_bar():
    assert isinstance(open_progress_display(io.StringIO(), 0, 10), LineProgress)
    bar = open_progress_display(Terminal(), 3, 10)
    assert isinstance(bar, BarProgress)
    bar.close()


def test_a_bar_goes_on_from_the_steps_done_before(capsys):
    bar = BarProgress(3, 10)
    bar.update(5, loss=0.25, rate=50.0)
    bar.close()
    said = capsys.readouterr()
    assert said.out == ""
    assert "5/10" in said.err
    assert "loss 0.2500" in said.err
