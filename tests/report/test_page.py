import jinja2
import pytest

from hsadml_dist.report import page
from hsadml_dist.report.page import Table, render_page


@pytest.fixture
def template(monkeypatch):
    real = page._text
    start = '{% extends "base.html" %}{% from "parts.html" import table %}'
    text = start + "{% block main %}{{ table(one) }}{{ two }}{% endblock %}"
    monkeypatch.setattr(page, "_text", lambda package, name: text if name == "own.html" else real(package, name))


def test_a_page_has_frame_style_and_tables(template):
    one = Table(caption="A < B", head=("x", "y"), rows=[("1", "2")])
    text = render_page("any", "own.html", {"one": one, "two": "<i>"})
    assert text.startswith("<!DOCTYPE html>") and text.rstrip().endswith("</html>")
    assert "<style>" in text and "A &lt; B" in text and "&lt;i&gt;" in text
    assert '<th scope="row" class="short">1</th>' in text


def test_a_missing_value_is_an_error(template):
    with pytest.raises(jinja2.UndefinedError, match="two"):
        render_page("any", "own.html", {"one": Table(caption="", head=(), rows=())})
