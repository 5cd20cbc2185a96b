import json
import os
import pty
import subprocess
import sys

import pytest

from hsadml_dist.launch import cli
from hsadml_dist.models.registry import BACKBONE_FACTS
from tests.launch.cli.terminal_output import read_terminal

MODELS = [sys.executable, "-m", "hsadml_dist.launch.cli", "models"]


def printed(capsys, *words):
    assert cli.main(["models", *words]) == 0
    return capsys.readouterr()


def test_table_has_a_row_per_backbone_and_the_legend_is_on_stderr(capsys):
    found = printed(capsys)
    title, *lines = found.out.splitlines()
    assert title.split()[:5] == ["backbone", "weights", "features", "ddp", "zero-1"]
    assert [line.split()[0] for line in lines] == list(BACKBONE_FACTS)
    (line,) = [line for line in lines if line.startswith("monai_vit_large_16")]
    assert line.split()[1:8] == ["302.7M", "1024", "4.51", "2.68", "1.69", "0.70", "295"]
    assert "each of 8 ranks" in found.err
    assert max(map(len, found.out.splitlines())) <= 120


def test_json_has_the_memory_of_each_backbone(capsys):
    rows = json.loads(printed(capsys, "--json", "--ranks", "4", "--image-size", "112").out)
    assert [row["name"] for row in rows] == list(BACKBONE_FACTS)
    (row,) = [row for row in rows if row["name"] == "monai_vit_base_16"]
    weights = BACKBONE_FACTS["monai_vit_base_16"].weights
    assert row["rank_bytes"] == {
        "ddp": 16 * weights,
        "zero-1": 11 * weights,
        "zero-2": 8 * weights,
        "zero-3": 5 * weights,
    }
    assert row["activation_bytes"] == BACKBONE_FACTS["monai_vit_base_16"].activations / 4
    (swin,) = [row for row in rows if row["name"] == "monai_swinunetr_encoder"]
    assert swin["activation_bytes"] is None, "112 is not a multiple of 32"


def test_single_backbone_is_described_in_detail(capsys):
    text = printed(capsys, "monai_vit_large_16", "--ranks", "4", "--batch", "32").out
    assert "Dosovitskiy et al., ICLR 2021" in text
    assert "a multiple of 16 pixels" in text
    (line,) = [line for line in text.splitlines() if line.startswith("zero-2")]
    assert line.split() == ["zero-2", "1.41", "0.28", "0.56", "9.22", "11.48"]
    assert json.loads(printed(capsys, "monai_vit_large_16", "--batch", "3", "--json").out)["batch"] == 3


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["monia_resnet18"], 1, "'monai_resnet18'"),
        (["monai_vit_base_16", "--image-size", "100"], 1, "96 or 112"),
        (["--ranks", "0"], 2, "--ranks 0: "),
    ],
)
def test_invalid_argument_is_one_line(capsys, words, code, text):
    assert cli.main(["models", *words]) == code
    err = capsys.readouterr().err
    assert text in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("words", [[], ["monai_resnet18"], ["--json"]])
def test_models_does_not_import_torch(words):
    code = "import sys; from hsadml_dist.launch.cli import main; main(sys.argv[1:]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "models", *words], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "monai", "pydantic"} & set(done.stdout.splitlines()[-1].split())


def test_table_fits_a_narrow_terminal():
    leader, follower = pty.openpty()
    environ = os.environ | {"COLUMNS": "80"}
    process = subprocess.Popen(MODELS, stdout=follower, stderr=subprocess.DEVNULL, env=environ)
    os.close(follower)
    text = read_terminal(leader)
    assert process.wait() == 0
    lines = text.decode().splitlines()
    assert len(lines) == len(BACKBONE_FACTS) + 1
    assert max(map(len, lines)) <= 80
