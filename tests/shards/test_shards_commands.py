import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from hsadml_dist.errors import DataError, UsageError
from hsadml_dist.launch.cli.cmd_shards import app, pairs
from tests.data.image_bytes import make_tiff


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("COLUMNS", "120")


def run(*words: object) -> None:
    """Call the command in this process; exceptions propagate."""
    app([str(word) for word in words], exit_on_error=False, result_action="return_value")


OPTIONS = ["--folds", 3, "--size", 16, "--workers", 1, "--samples-per-shard", 8]


@pytest.fixture
def phantom(tmp_path):
    run("build", "phantom", 6, "--out", tmp_path / "phantom", *OPTIONS)
    return tmp_path / "phantom"


def test_build_command_creates_key_once(tmp_path, capsys):
    run("build", "phantom", 6, "--out", tmp_path / "one", *OPTIONS)
    key = tmp_path / "config" / "hsadml" / "id.key"
    assert str(key) in capsys.readouterr().out
    content = key.read_bytes()
    assert len(content) == 32
    run("build", "phantom", 6, "--out", tmp_path / "two", *OPTIONS)
    assert str(key) not in capsys.readouterr().out
    assert key.read_bytes() == content


def test_verify_and_info_commands_of_valid_folder(phantom, capsys):
    capsys.readouterr()
    run("verify", phantom)
    assert str(phantom) in capsys.readouterr().out
    run("info", phantom, "--json")
    counts = json.loads(capsys.readouterr().out)
    assert counts["total"]["persons"] == 6
    assert sum(fold["samples"] for fold in counts["folds"].values()) == counts["total"]["samples"]
    assert {name: count["persons"] for name, count in counts["classes"].items()} == {
        "glioma": 2,
        "meningioma": 2,
        "pituitary": 2,
    }
    run("info", phantom)
    assert "meningioma" in capsys.readouterr().out


def test_verify_command_exits_with_1_and_names_the_shard(phantom, capsys):
    path = phantom / "shard-00000.tar"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(SystemExit) as caught:
        run("verify", phantom)
    assert caught.value.code == 1
    assert "shard-00000.tar" in capsys.readouterr().out


def test_build_command_counts_jpeg_masks_and_names_files_of_several_pages(small_table, tmp_path, capsys):
    Image.fromarray(np.full((8, 8), 200, np.uint8)).save(tmp_path / "m.jpg")
    (tmp_path / "p.tif").write_bytes(make_tiff([np.zeros((8, 8), np.uint8)] * 24))
    files = ["a.png", "a.png", "p.tif", "a.png", "a.png", "a.png", "a.png"]
    table = small_table("file,class,person,mask", *(f"{name},x,{n},m.jpg" for n, name in enumerate(files)))
    run("build", "table", table, "--out", tmp_path / "out", *OPTIONS)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1] for line in lines if "24 pages" in line] == ["row 3"]
    assert [line.split()[1] for line in lines if line.startswith("note: ") and "JPEG" in line] == ["6"]


def test_build_command_passes_table_options(table, tmp_path, capsys):
    out = tmp_path / "t"
    options = ["--columns", "person=exam,exam=person", "--where", "class=glioma", "--where", "plane=axial"]
    run("build", "table", table, "--out", out, "--folds", 2, "--size", 16, "--workers", 1, *options)
    capsys.readouterr()
    run("info", out, "--json")
    counts = json.loads(capsys.readouterr().out)
    assert (counts["total"]["persons"], counts["total"]["samples"], list(counts["classes"])) == (2, 10, ["glioma"])


@pytest.mark.parametrize(
    ("words", "kind", "text"),
    [
        (
            ["tabel", "x"],
            UsageError,
            r"SOURCE 'tabel': .*allowed: table, figshare, folders, phantom.*'table'",
        ),
        (["nifti", "x"], UsageError, r"SOURCE 'nifti': .*allowed: table"),
        (["folders", "x", "--persons", "p.csv"], UsageError, r"--persons: .*folders.*only for figshare"),
        (["table", "x", "--author-folds"], UsageError, r"--author-folds: .*table.*only for figshare or folders"),
        (["phantom", "many"], UsageError, r"INPUT 'many'"),
        (["phantom", "0"], UsageError, r"INPUT 0"),
        (["phantom", "5", "--columns", "file=a"], UsageError, r"--columns: .*phantom.*only for table"),
        (["phantom", "5", "--workers", "0"], UsageError, r"--workers 0: .*allowed: 1"),
        (["phantom", "3"], DataError, r"--folds 5: .*3 patients"),
        (
            ["phantom", "9", "--split-by", "slices"],
            UsageError,
            r"--split-by 'slices': .*person, exam, slice.*'slice'",
        ),
        (["table", "none.csv"], DataError, r"none.csv: .*No such file"),
        (["table", "none.csv", "--columns", "file"], UsageError, r"--columns 'file': .*NAME=VALUE"),
    ],
)
def test_build_command_errors_are_one_line(tmp_path, words, kind, text):
    with pytest.raises(kind, match=text) as caught:
        run("build", *words, "--out", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_pairs_parses_name_value_items():
    assert pairs(["a=b", " c=d=e ", ""], "--x") == {"a": "b", "c": "d=e"}
    with pytest.raises(UsageError, match="twice"):
        pairs(["a=b", "a=c"], "--x")


def test_verify_and_info_commands_import_neither_torch_nor_numpy(phantom):
    code = (
        "import sys; from hsadml_dist.launch.cli.cmd_shards import app\n"
        "for words in (['info'], ['info', '--json'], ['verify']):\n"
        f"    app([words[0], {str(phantom)!r}, *words[1:]], result_action='return_value')\n"
        "print(sorted({'torch', 'numpy', 'webdataset', 'matplotlib', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
