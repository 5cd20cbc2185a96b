from hsadml_dist.jobs.prepare import shipped_recipes
from hsadml_dist.launch import cli


def test_list_describes_each_recipe_in_a_line(capsys):
    assert cli.main(["recipes", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(shipped_recipes())
    assert all(len(line.split()) > 3 for line in lines)


def test_show_prints_the_file(capsys):
    assert cli.main(["recipes", "show", "demo"]) == 0
    assert capsys.readouterr().out == shipped_recipes()["demo"].read_text()


def test_copy_does_not_overwrite(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["recipes", "copy", "demo"]) == 0
    assert (tmp_path / "demo.yaml").read_text() == shipped_recipes()["demo"].read_text()
    (tmp_path / "demo.yaml").write_text("mine")
    assert cli.main(["recipes", "copy", "demo"]) == 2
    assert (tmp_path / "demo.yaml").read_text() == "mine"
    assert cli.main(["recipes", "copy", "demo", "--to", "no/folder.yaml"]) == 2
    assert cli.main(["recipes", "show", "dmo"]) == 1
