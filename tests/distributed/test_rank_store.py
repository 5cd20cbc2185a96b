import datetime
import os
from pathlib import Path

import pytest
import torch.distributed as dist

from hsadml_dist.distributed.rank_store import (
    GLOO_INTERFACE,
    LOOPBACK,
    SealedStore,
    connect_store,
    create_store,
    keep_gloo_on_loopback,
)
from hsadml_dist.distributed.topology import Topology
from hsadml_dist.errors import RunError

ONE_NODE = Topology(rank=0, world_size=2, local_rank=0, local_world_size=2)
TWO_NODES = Topology(rank=0, world_size=2, local_rank=0, local_world_size=1, num_nodes=2)
SECONDS = 30
SECRET = b"of this start"


@pytest.fixture
def inner():
    return dist.HashStore()


@pytest.fixture
def store(inner):
    return SealedStore(inner, SECRET)


def name_of(store, inner, key):
    """Return the name under which the server knows a key."""
    return SealedStore(inner, SECRET)._name(key)


@pytest.mark.parametrize("value", ["text", b"\x00\xff", "", b"x" * 100_000])
def test_entry_is_read_back_by_holders_of_the_secret_only(store, inner, value):
    store.set("key", value)
    expected = value.encode() if isinstance(value, str) else value
    assert store.get("key") == SealedStore(inner, SECRET).get("key") == expected
    other = SealedStore(inner, b"another start")
    assert not other.check(["key"])
    assert store.check(["key"])


def test_server_sees_neither_keys_nor_values(store, inner):
    store.set("0//cpu//0/0", b"127.0.0.1:41234" * 3)
    raw = inner.get(name_of(store, inner, "0//cpu//0/0"))
    assert b"127.0.0.1" not in raw and b"cpu" not in name_of(store, inner, "0//cpu//0/0").encode()
    assert not inner.check(["0//cpu//0/0"])


@pytest.mark.parametrize("forge", [lambda raw: b"", lambda raw: raw[:-1], lambda raw: raw[:40] + b"x" + raw[41:]])
def test_forged_entry_is_refused(store, inner, forge):
    store.set("key", b"an address of a peer")
    name = name_of(store, inner, "key")
    inner.set(name, forge(inner.get(name)))
    with pytest.raises(RunError):
        store.get("key")


def test_entry_moved_to_another_key_is_refused(store, inner):
    store.set("one", b"value")
    inner.set(name_of(store, inner, "two"), inner.get(name_of(store, inner, "one")))
    with pytest.raises(RunError):
        store.get("two")


def test_other_operations_act_like_those_of_a_plain_store(store):
    assert [store.add("count", 2), store.add("count", 3)] == [2, 5]
    store.set("key", "old")
    assert store.compare_set("key", "wrong", "new") == b"old"
    assert store.compare_set("key", "old", "new") == b"new"
    assert store.get("key") == b"new"
    store.wait(["key"], datetime.timedelta(seconds=1))
    assert store.delete_key("key") and not store.check(["key"])
    assert not store.delete_key("key")


def listening_addresses(port):
    """Return the local addresses, as in /proc/net, on which a port listens."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return [row[1].partition(":")[0] for row in rows if row[3] == "0A" and int(row[1].partition(":")[2], 16) == port]


def test_store_of_one_node_listens_on_the_loopback_only():
    server, address = create_store(ONE_NODE, SECONDS)
    assert address.host == LOOPBACK
    assert listening_addresses(address.port) == ["0100007F"]
    client = connect_store(address, SECONDS)
    client.set("key", "value")
    assert server.get("key") == client.clone().get("key") == b"value"


def test_store_of_several_nodes_listens_on_the_chosen_interface(monkeypatch):
    monkeypatch.setenv(GLOO_INTERFACE, "lo")
    _, address = create_store(TWO_NODES, SECONDS)
    assert address.host == LOOPBACK
    assert listening_addresses(address.port) == ["0100007F"]


def test_store_of_several_nodes_can_be_reached_by_the_published_host():
    server, address = create_store(TWO_NODES, SECONDS)
    connect_store(address, SECONDS).set("key", "value")
    assert server.get("key") == b"value"


def test_gloo_stays_on_the_loopback_of_one_node_unless_told(monkeypatch):
    monkeypatch.delenv(GLOO_INTERFACE, raising=False)
    keep_gloo_on_loopback(TWO_NODES)
    assert GLOO_INTERFACE not in os.environ
    keep_gloo_on_loopback(ONE_NODE)
    assert os.environ[GLOO_INTERFACE] == "lo"
    monkeypatch.setenv(GLOO_INTERFACE, "ib0")
    keep_gloo_on_loopback(ONE_NODE)
    assert os.environ[GLOO_INTERFACE] == "ib0"
