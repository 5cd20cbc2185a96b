from hsadml_dist.launch.cli.cmd_doctor import count_statuses, format_results
from hsadml_dist.launch.doctor import CheckStatus, check_result, unknown_result


def test_check_result_takes_the_most_severe_status_with_a_remedy():
    assert check_result("g", "n", "f").verdict is CheckStatus.OK
    assert check_result("g", "n", "f", warn="w").verdict is CheckStatus.WARN
    both = check_result("g", "n", "f", fail="do", warn="w")
    assert (both.verdict, both.todo) == (CheckStatus.FAIL, "do")
    assert unknown_result("g", "n", "f", "ask").verdict is CheckStatus.UNKNOWN


RESULTS = [
    check_result("disk", "room", "3 GiB"),
    check_result(
        "disk", "speed of writing", "a text that is too long for one line", warn="and something to do about it"
    ),
    check_result("slurm", "controller", "none", fail="start it"),
    unknown_result("slurm", "limit", ""),
]
NARROW = """\
disk
  ok    room              3 GiB
  warn  speed of writing  a text that is too long for
                          one line
                          -> and something to do about
                             it

slurm
  FAIL  controller        none
                          -> start it
  ?     limit

1 failed, 1 warning, 1 unknown, 1 ok"""


def test_format_results_groups_and_wraps():
    assert format_results(RESULTS, 54) == NARROW


def test_format_results_keeps_every_word_on_a_narrow_terminal():
    words = format_results(RESULTS, 10).split()
    assert all(word in words for one in RESULTS for word in f"{one.found} {one.todo}".split())


def test_format_results_uses_at_most_120_columns():
    long = check_result("disk", "room", "word " * 100)
    assert max(map(len, format_results([long], 500).splitlines())) <= 120


def test_format_results_in_colour_has_the_same_text():
    coloured = format_results(RESULTS, 54, colour=True)
    assert "\033[1;31mFAIL\033[0m" in coloured
    for code in ("\033[32m", "\033[33m", "\033[1;31m", "\033[2m", "\033[0m"):
        coloured = coloured.replace(code, "")
    assert "\n".join(line.rstrip() for line in coloured.splitlines()) == NARROW


def test_count_statuses_uses_the_plural():
    assert count_statuses([RESULTS[1]] * 2) == "2 warnings"
    assert count_statuses([]) == ""
