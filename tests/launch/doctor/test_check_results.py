from hsadml_dist.launch.doctor.check_results import CheckStatus, as_table, check_result, summary, unknown_result


def test_the_gravest_verdict_that_says_what_to_do_counts():
    assert check_result("g", "n", "f").verdict is CheckStatus.OK
    assert check_result("g", "n", "f", warn="w").verdict is CheckStatus.WARN
    both = check_result("g", "n", "f", fail="do", warn="w")
    assert (both.verdict, both.todo) == (CheckStatus.FAIL, "do")
    assert unknown_result("g", "n", "f", "ask").verdict is CheckStatus.UNKNOWN


FINDINGS = [
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


def test_the_table_is_grouped_and_wrapped():
    assert as_table(FINDINGS, 54) == NARROW


def test_a_narrow_terminal_keeps_every_word():
    words = as_table(FINDINGS, 10).split()
    assert all(word in words for one in FINDINGS for word in f"{one.found} {one.todo}".split())


def test_a_wide_terminal_is_not_used_beyond_120_columns():
    long = check_result("disk", "room", "word " * 100)
    assert max(map(len, as_table([long], 500).splitlines())) <= 120


def test_colours_change_nothing_else():
    coloured = as_table(FINDINGS, 54, colour=True)
    assert "\033[1;31mFAIL\033[0m" in coloured
    for code in ("\033[32m", "\033[33m", "\033[1;31m", "\033[2m", "\033[0m"):
        coloured = coloured.replace(code, "")
    assert "\n".join(line.rstrip() for line in coloured.splitlines()) == NARROW


def test_verdicts_are_counted():
    assert summary([FINDINGS[1]] * 2) == "2 warnings"
    assert summary([]) == ""
