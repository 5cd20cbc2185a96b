"""Rendering of templates as pages, Markdown and plain text."""

from pathlib import Path

import jinja2
import pytest

from hsadml_dist.report import page
from hsadml_dist.report.page import Table, escape_markdown, render_markdown, render_page, render_paragraphs

PAGE = """{% extends "base.html" %}
{% from "parts.html" import table %}
{% block main %}{{ table(one) }}{{ two }}{% endblock %}
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with a template of its own."""
    folder = tmp_path / "package_with_template"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "own.html").write_text(PAGE)
    monkeypatch.syspath_prepend(tmp_path)
    return folder.name


@pytest.fixture
def templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(page, "TEMPLATES", tmp_path)
    return tmp_path


def test_page_of_another_package_has_frame_style_and_escaped_table(package: str) -> None:
    table = Table(caption="A < B", head=("x", "y"), rows=[("1", "2")])
    text = render_page(package, "own.html", {"one": table, "two": "<i>"})
    assert text.startswith("<!DOCTYPE html>") and text.rstrip().endswith("</html>")
    assert "<style>" in text and "A &lt; B" in text and "&lt;i&gt;" in text
    assert '<th scope="row" class="short">1</th>' in text


def test_page_with_missing_value_is_an_error(package: str) -> None:
    with pytest.raises(jinja2.UndefinedError, match="two"):
        render_page(package, "own.html", {"one": Table(caption="", head=(), rows=())})


def test_markdown_values_are_escaped_and_the_template_is_not(templates: Path) -> None:
    (templates / "card.md.j2").write_text("| **{{ name }}** | {{ share|percent }} |\n")
    assert render_markdown("card.md.j2", {"name": "a_b\n# c", "share": 0.5}) == "| **a\\_b \\# c** | 50.0% |\n"


def test_escape_markdown_escapes_markdown_and_html() -> None:
    assert escape_markdown("a_b*c`d|e<f>") == r"a\_b\*c\`d\|e\<f\>"


def test_paragraphs_are_joined_lines_and_keep_no_break_spaces(templates: Path) -> None:
    (templates / "text.txt.j2").write_text("One\n  line{{ x }}.\n\n{% if false %}\nNone.\n\n{% endif %}\nTwo.\n")
    assert render_paragraphs("text.txt.j2", {"x": "\N{NO-BREAK SPACE}<1"}) == ["One line\N{NO-BREAK SPACE}<1.", "Two."]
