from dataclasses import replace

from hsadml_dist.launch.doctor.probe_job import read_rank_reports, write_rank_report


def test_written_rank_reports_are_read_back(tmp_path, reports):
    alone = replace(reports[3], together=None, error="no network")
    for report in (reports[0], reports[1], alone):
        write_rank_report(tmp_path, report)
    assert read_rank_reports(tmp_path) == {0: reports[0], 1: reports[1], 3: alone}


def test_folder_without_reports_is_empty(tmp_path):
    assert read_rank_reports(tmp_path) == {}
