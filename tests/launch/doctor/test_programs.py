from importlib.metadata import version

from hsadml_dist.launch.doctor.programs import check_versions, compare_versions, pins, versions

HAVE = {"python": "3.11.7", "torch": "2.13.0+cpu", "monai": "1.5.0", "webdataset": "1.0", "deepspeed": None}


def test_installed_versions_are_named_without_an_import():
    found = versions()
    assert found["torch"] == version("torch")
    assert set(found) == {"python", "hsadml-dist", "torch", "monai", "webdataset", "deepspeed"}


def test_the_clones_pins_are_compared_with():
    by_name = {one.name: one for one in check_versions()}
    assert by_name["python"].verdict == "ok"


def test_another_version_than_the_tested_one_is_a_remark():
    by_name = {one.name: one for one in compare_versions(HAVE, pins("torch==2.13.0\n# x\nMONAI==1.6.0\n"))}
    assert by_name["torch"].found == "2.13.0+cpu"
    assert by_name["monai"].found == "1.5.0; 1.6.0 was tested with the others"
    assert by_name["deepspeed"].found == "not installed"
    assert all(one.verdict == "ok" for one in by_name.values())
    assert "training" not in by_name


def test_a_login_node_without_torch_is_told_that_this_is_fine():
    by_name = {one.name: one for one in compare_versions({**HAVE, "torch": None, "hsadml-dist": None}, {})}
    assert by_name["training"].found.startswith("no torch here: fine on a login node")
    assert by_name["hsadml-dist"].found == "runs from a clone, not installed"
