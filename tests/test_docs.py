"""The commands in README and docs do what the text says: each ``sh`` block is run, in order, in an empty folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from hsadml_dist.losses.margins import LOSSES

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
SECONDS = 120


def commands(page: Path) -> list[list[str]]:
    """Return the commands of a page's ``sh`` blocks, as words."""
    return [shlex.split(line) for block in BLOCK.findall(page.read_text()) for line in block.splitlines()]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_the_commands_of_a_page_work(page: Path, tmp_path: Path) -> None:
    environ = os.environ | {"XDG_CONFIG_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    for words in commands(page):
        assert words[0] == "hsadml", f"only hsadml's commands are run here, not {words}"
        command = [sys.executable, "-m", "hsadml_dist.launch.cli", *words[1:]]
        done = subprocess.run(
            command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_says_what_this_is_not_for() -> None:
    assert "Research use only" in (ROOT / "README.md").read_text()


def test_the_page_on_losses_names_every_loss_with_its_source() -> None:
    lines = (ROOT / "docs" / "losses.md").read_text().splitlines()
    for name in LOSSES:
        (row,) = [line for line in lines if line.startswith(f"| `{name}`")]
        assert "the same" in row or re.search(r"(ACM MM|CVPR|TPAMI|ICLR) 20\d\d", row), name


def test_the_figure_of_the_losses_is_small_and_shows_the_curves_of_today(tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "examples" / "loss_curves.py"), "--out", str(tmp_path / "new" / "losses.png")]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(script, env=environ, check=True, timeout=SECONDS, stdout=subprocess.DEVNULL)
    committed = ROOT / "docs" / "losses.png"
    assert committed.stat().st_size < 200_000
    digests = [Image.open(path).text["Description"] for path in (committed, tmp_path / "new" / "losses.png")]
    assert digests[0] == digests[1], "draw it again: python examples/loss_curves.py"
