from pathlib import Path

import pytest

from hsadml_dist.errors import UsageError
from hsadml_dist.shards.sources.source_registry import SOURCES, SourceOptions, create_source


def choose(name: str, given: str = "3", **options):
    return create_source(name, given, SourceOptions(**options), seed=5, size=64)


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_is_called_what_the_command_line_calls_it(name):
    assert choose(name).name == name


def test_options_reach_their_source():
    table = choose("table", "a.csv", columns={"file": "f"}, images=Path("i"), where={"x": "1"})
    assert (table.table, table.columns, table.images, table.where) == (
        Path("a.csv"),
        {"file": "f"},
        Path("i"),
        {"x": "1"},
    )
    figshare = choose("figshare", "f", persons=Path("p.csv"), author_folds=True)
    assert (figshare.folder, figshare.persons, figshare.author_folds) == (Path("f"), Path("p.csv"), True)
    assert choose("folders", "d", author_folds=True).author_folds
    phantom = choose("phantom", "7")
    assert (phantom.patients, phantom.seed, phantom.size) == (7, 5, 64)


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("phantoms", {}, r"SOURCE 'phantoms': allowed: table, figshare, folders, phantom \(did you mean 'phantom'\?\)"),
        ("dicom", {}, r"SOURCE 'dicom': .*not built in yet"),
        ("phantom", {"where": {"a": "b"}}, "--where: only for SOURCE table; this is phantom"),
        ("folders", {"images": Path("x")}, "--images: only for SOURCE table; this is folders"),
        ("table", {"persons": Path("x")}, "--persons: only for SOURCE figshare; this is table"),
        ("phantom", {"author_folds": True}, "--author-folds: only for SOURCE figshare or folders; this is phantom"),
    ],
)
def test_what_does_not_fit_is_refused(name, options, text):
    with pytest.raises(UsageError, match=text):
        choose(name, **options)


def test_generated_patients_without_their_anatomy_are_refused_at_once(monkeypatch):
    monkeypatch.setattr("hsadml_dist.shards.sources.phantom.phantom_source.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs nilearn.*pip install"):
        choose("phantom", "7")
