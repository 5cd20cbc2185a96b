from importlib.metadata import version

from hsadml_dist.report.provenance import provenance_table, settings, software
from tests.report.made_up import VERSIONS, full_result_of, result_of


def test_versions_are_those_installed() -> None:
    found = software()
    assert found["torch"] == version("torch")
    assert next(iter(found)) == "Python"


def test_settings_are_flattened_and_unset_ones_left_out() -> None:
    named = dict(settings(full_result_of()))
    assert named == {"image size": "112", "embedding dim": "64", "loss.margin": "4", "optimiser": "<adamw>"}
    assert settings(result_of()) == []


def test_the_table_names_weights_data_and_software() -> None:
    rows = dict(provenance_table(result_of(), VERSIONS).rows)
    assert rows["weights"] == "step-00000600.attempt-0001: step 600, attempt 1"
    assert rows["data (SHA-256 of the table of samples)"] == "ab" * 32
    assert rows["software of the verdict"] == "Python 3.11.7, torch 2.13.0"
    assert dict(provenance_table(result_of(), {}).rows)["software of the verdict"] == "not recorded"
