import pytest

from hsadml_dist.checkpoint.layout import CheckpointName, lineage, list_checkpoints, read_parents, read_progress


def name(step, attempt=1):
    return CheckpointName(step, attempt)


def test_checkpoint_name_round_trip_and_order():
    assert str(name(1234, 2)) == "step-00001234.attempt-0002"
    assert CheckpointName.parse("step-00001234.attempt-0002") == name(1234, 2)
    assert CheckpointName.parse(str(name(10**9, 10_000))) == name(10**9, 10_000)
    assert sorted([name(10, 1), name(9, 3), name(9, 2)]) == [name(9, 2), name(9, 3), name(10, 1)]


@pytest.mark.parametrize(
    "text", ["", "step-1.attempt-1", ".step-00000001.attempt-0001.tmp", "step-00000001.attempt-0001x", "latest"]
)
def test_parse_of_other_names_returns_none(text):
    assert CheckpointName.parse(text) is None


def test_list_checkpoints_returns_folders_with_a_checkpoint_name(run):
    assert list_checkpoints(run.folder) == []
    names = [run.save(1, step) for step in (20, 10)]
    (run.folder.checkpoints / ".step-00000030.attempt-0001.tmp").mkdir()
    (run.folder.checkpoints / "notes").mkdir()
    assert list_checkpoints(run.folder) == sorted(names)


def test_list_checkpoints_includes_a_folder_without_commit_file(run):
    """Otherwise it would be ignored silently, and a run without another checkpoint would start from scratch."""
    kept = run.save(1, 10)
    (run.path(kept) / "COMMIT").unlink()
    assert list_checkpoints(run.folder) == [kept]


def test_read_parents_skips_attempts_that_have_not_chosen(run):
    run.begin(2, name(10))
    run.folder.attempt(3).path.mkdir()
    assert read_parents(run.folder) == {1: None, 2: name(10)}


def test_progress_round_trip(run, state):
    saved = run.save(1, 10)
    assert read_progress(run.path(saved)) == state(10).progress


@pytest.mark.parametrize(
    ("names", "chosen", "line"),
    [
        pytest.param([], {}, [], id="no checkpoints"),
        pytest.param([], {1: None}, [], id="no checkpoint yet"),
        pytest.param([(10, 1), (20, 1)], {1: None}, [(20, 1), (10, 1)], id="newest first"),
        pytest.param([(10, 1), (20, 1), (30, 2)], {1: None, 2: (20, 1)}, [(30, 2), (20, 1), (10, 1)], id="resumed"),
        pytest.param([(10, 1), (20, 1), (30, 1), (20, 2)], {1: None, 2: (10, 1)}, [(20, 2), (10, 1)], id="superseded"),
        pytest.param([(10, 1), (30, 1)], {1: None, 2: (10, 1)}, [(10, 1)], id="superseded, no checkpoint since"),
        pytest.param([(30, 1)], {1: None, 2: None}, [], id="superseded before its first checkpoint"),
        pytest.param(
            [(10, 1), (20, 1), (20, 2), (30, 2), (25, 3)],
            {1: None, 2: (10, 1), 3: (20, 2)},
            [(25, 3), (20, 2), (10, 1)],
            id="two fallbacks",
        ),
        pytest.param([(10, 1)], {1: None, 3: (10, 1)}, [(10, 1)], id="attempt without parent file"),
        pytest.param([(10, 1), (12, 2)], {1: None}, [(12, 2)], id="lost parent file"),
    ],
)
def test_lineage_of_attempts_and_parents(names, chosen, line):
    chosen = {number: parent and name(*parent) for number, parent in chosen.items()}
    assert lineage([name(*pair) for pair in names], chosen) == [name(*pair) for pair in line]


def test_lineage_excludes_a_late_checkpoint_of_a_superseded_attempt(run):
    first = run.save(1, 10)
    run.begin(2, first)
    late = run.save(1, 30)
    second = run.save(2, 20)
    assert list_checkpoints(run.folder) == [first, second, late]
    assert lineage(list_checkpoints(run.folder), read_parents(run.folder)) == [second, first]
