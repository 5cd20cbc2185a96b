from hsadml_dist.launch.doctor.finding import Verdict, judged, unknown


def test_the_gravest_verdict_that_says_what_to_do_counts():
    assert judged("g", "n", "f").verdict is Verdict.OK
    assert judged("g", "n", "f", warn="w").verdict is Verdict.WARN
    both = judged("g", "n", "f", fail="do", warn="w")
    assert (both.verdict, both.todo) == (Verdict.FAIL, "do")
    assert unknown("g", "n", "f", "ask").verdict is Verdict.UNKNOWN
