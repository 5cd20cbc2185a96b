"""Commands in README and docs succeed: the ``sh`` and ``python`` blocks of each page run in order.

Pages start with the same few commands. All run in one folder, and a command that has run is not repeated.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from hsadml_dist.losses.margins import LOSSES

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
TIMEOUT_SECONDS = 600


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the commands of a page in order: each line of a ``sh`` block, each ``python`` block as a script."""
    for language, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            yield [sys.executable, "-c", block]
        else:
            yield from ([sys.executable, "-m", *_module_call(line)] for line in block.splitlines())


def _module_call(line: str) -> list[str]:
    program, *arguments = shlex.split(line)
    assert program == "hsadml", f"only commands of hsadml are run here, not {line!r}"
    return ["hsadml_dist.launch.cli", *arguments]


@pytest.fixture(scope="module")
def run_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[str]], None]:
    """Return a function that runs a command unless it has run before; a failure fails the test."""
    folder, finished = tmp_path_factory.mktemp("pages"), []
    environ = os.environ | {"XDG_CONFIG_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)}

    def run(command: list[str]) -> None:
        if command in finished:
            return
        done = subprocess.run(
            command, cwd=folder, env=environ, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
        finished.append(command)

    return run


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCK.search(page.read_text())], ids=lambda page: page.name)
def test_commands_of_a_page_succeed(page: Path, run_once: Callable[[list[str]], None]) -> None:
    for command in commands(page):
        run_once(command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_readme_states_research_use_only() -> None:
    assert "Research use only" in (ROOT / "README.md").read_text()


def test_losses_page_lists_every_loss_with_its_source() -> None:
    lines = (ROOT / "docs" / "losses.md").read_text().splitlines()
    for name in LOSSES:
        (row,) = [line for line in lines if line.startswith(f"| `{name}`")]
        assert "the same" in row or re.search(r"(ACM MM|CVPR|TPAMI|ICLR) 20\d\d", row), name


def test_losses_figure_is_small_and_current(tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "examples" / "loss_curves.py"), "--out", str(tmp_path / "new" / "losses.png")]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(script, env=environ, check=True, timeout=TIMEOUT_SECONDS, stdout=subprocess.DEVNULL)
    committed = ROOT / "docs" / "losses.png"
    assert committed.stat().st_size < 200_000
    digests = [Image.open(path).text["Description"] for path in (committed, tmp_path / "new" / "losses.png")]
    assert digests[0] == digests[1], "draw it again: python examples/loss_curves.py"
