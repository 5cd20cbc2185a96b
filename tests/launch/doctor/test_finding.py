from hsadml_dist.launch.doctor.finding import CheckStatus, check_result, unknown_result


def test_the_gravest_verdict_that_says_what_to_do_counts():
    assert check_result("g", "n", "f").verdict is CheckStatus.OK
    assert check_result("g", "n", "f", warn="w").verdict is CheckStatus.WARN
    both = check_result("g", "n", "f", fail="do", warn="w")
    assert (both.verdict, both.todo) == (CheckStatus.FAIL, "do")
    assert unknown_result("g", "n", "f", "ask").verdict is CheckStatus.UNKNOWN
