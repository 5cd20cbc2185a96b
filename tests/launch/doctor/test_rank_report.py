from dataclasses import replace

from hsadml_dist.launch.doctor.rank_report import read_rank_reports, write_rank_report


def test_what_a_rank_writes_is_read(tmp_path, answers):
    alone = replace(answers[3], together=None, error="no network")
    for answer in (answers[0], answers[1], alone):
        write_rank_report(tmp_path, answer)
    assert read_rank_reports(tmp_path) == {0: answers[0], 1: answers[1], 3: alone}


def test_no_answers_are_none(tmp_path):
    assert read_rank_reports(tmp_path) == {}
