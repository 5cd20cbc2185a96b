import signal
from pathlib import Path

import pytest

from hsadml_dist.data.index import load_index
from tests.conftest import MONAI
from tests.data.test_order_schedule import held_out_shards
from tests.process_waits import wait_until_ended

SCRIPT = "data/shard_cache_ranks.py"


@pytest.fixture
def index(tiny_shards):
    return load_index(tiny_shards)


@pytest.fixture
def stalling_server(server, index):
    for file in index.shards:
        server.plans[file.name] = ["stall"]
    return server


def test_prefetcher_copies_in_order_of_need_and_ignores_stop_signals(ranks, server, tiny_shards):
    answer = ranks(SCRIPT, 1, f"prefetch {tiny_shards} {server.address}", preload=MONAI)[0]
    assert answer["before"] == [], "nothing is copied before the first step is known"
    assert answer["other"] is None, "one process per node"
    assert answer["arrived"] == answer["expected"]
    assert len(answer["expected"]) > 2
    assert len(server.requested) == len(answer["expected"])


def test_rank_that_waits_for_a_shard_can_be_stopped_and_closed(ranks, stalling_server, tiny_shards):
    answer = ranks(SCRIPT, 1, f"closed {tiny_shards} {stalling_server.address}", preload=MONAI)[0]
    assert answer["batch"] is None
    assert answer["left"] == ""
    assert not stalling_server.resumed.is_set(), "close waits for no answer of the server"


def test_prefetcher_dies_with_its_rank(ranks, stalling_server, tiny_shards, tmp_path):
    case = f"orphan {tiny_shards} {stalling_server.address}"
    ranks(SCRIPT, 1, case, folder=tmp_path, preload=MONAI, expect=-signal.SIGKILL)
    assert wait_until_ended(int((tmp_path / "pid").read_text()))


def test_copies_change_no_byte_of_any_batch(ranks, server, tiny_shards, tmp_path, index):
    case = f"batches {tiny_shards} {tiny_shards} {server.address}"
    answer = ranks(SCRIPT, 1, case, folder=tmp_path, preload=MONAI)[0]
    assert answer.pop("threads") == [1] * 5, "copying starts no thread before workers are forked"
    plain = answer.pop("plain")
    assert len(plain) == 7
    assert {name: batches == plain for name, batches in answer.items()} == dict.fromkeys(answer, True)
    assert len(answer) == 4
    not_copied = {file.sha256 for file in index.shards} - {path.stem for path in copies(tmp_path / "remote 2")}
    assert len(not_copied) == len(held_out_shards(index))


def copies(folder: Path) -> list[Path]:
    return list(folder.glob("*.tar"))
