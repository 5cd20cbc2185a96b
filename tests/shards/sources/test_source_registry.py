from pathlib import Path

import pytest

from hsadml_dist.errors import UsageError
from hsadml_dist.shards.sources.source_registry import SOURCES, SourceOptions, create_source


def choose(name: str, given: str = "3", **options):
    return create_source(name, given, SourceOptions(**options), seed=5, size=64)


@pytest.mark.parametrize("name", SOURCES)
def test_create_source_returns_source_of_that_name(name):
    assert choose(name).name == name


def test_create_source_passes_options():
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
        ("phantoms", {}, r"SOURCE 'phantoms': .*allowed: table, figshare, folders, phantom.*'phantom'"),
        ("dicom", {}, r"SOURCE 'dicom': .*allowed: table"),
        ("phantom", {"where": {"a": "b"}}, "--where: .*phantom.*only for table"),
        ("folders", {"images": Path("x")}, "--images: .*folders.*only for table"),
        ("table", {"persons": Path("x")}, "--persons: .*table.*only for figshare"),
        ("phantom", {"author_folds": True}, "--author-folds: .*phantom.*only for figshare or folders"),
    ],
)
def test_create_source_rejects_unknown_source_and_foreign_options(name, options, text):
    with pytest.raises(UsageError, match=text):
        choose(name, **options)


def test_create_source_phantom_without_nilearn_is_rejected(monkeypatch):
    monkeypatch.setattr("hsadml_dist.shards.sources.phantom.phantom_source.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"nilearn.*pip install"):
        choose("phantom", "7")
