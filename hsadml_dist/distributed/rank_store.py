"""The store through which the ranks of a start exchange addresses: only holders of its secret can read or forge it.

PyTorch's TCPStore has no password, and whoever can connect to its port may read and replace every entry. So rank 0
listens on one address only, the loopback or that of the cluster's network, and every entry is sealed by a random
secret, which ranks read from a file of the run folder that is private to the user.
"""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import hmac
import os
import secrets
import socket
import struct
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from hsadml_dist.distributed.topology import Topology
from hsadml_dist.errors import RunError

LOOPBACK = "127.0.0.1"
LOOPBACK_INTERFACE = "lo"
GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
"""The environment variable by which users choose gloo's network interface."""
BACKLOG = 4096
TAG_BYTES = 32
SECRET_BYTES = 32
SIOCGIFADDR = 0x8915
"""Number of the system call for the address of an interface, from ``<linux/sockios.h>``."""


@dataclass(frozen=True, kw_only=True)
class StoreAddress:
    """Where rank 0 waits for its peers, and the secret of the store, in hexadecimal digits."""

    host: str
    port: int
    secret: str


class SealedStore(dist.Store):
    """A store whose keys are hashed, and whose values are encrypted and authenticated.

    The tag of a value is a keyed hash of key and value; it also seeds the key stream that hides the value, so equal
    entries are equal bytes, as :meth:`compare_set` needs (the construction of SIV: Rogaway and Shrimpton, EUROCRYPT
    2006). Counters (:meth:`add`) are kept by the server and only their names are hidden.
    """

    def __init__(self, inner: Any, secret: bytes) -> None:  # torch's stubs know no bytes and no clone()
        super().__init__()
        self._inner, self._secret = inner, secret
        self._clones: list[SealedStore] = []  # kept alive, because torch keeps only their part in C++

    def set(self, key: str, value: str | bytes) -> None:
        """Write an entry."""
        self._inner.set(self._name(key), self._seal(key, _to_bytes(value)))

    def get(self, key: str) -> bytes:
        """Wait for an entry and return it.

        Raises:
            RunError: It was not written by a holder of the secret.
        """
        return self._unseal(key, self._inner.get(self._name(key)))

    def compare_set(self, key: str, expected: str | bytes, desired: str | bytes) -> bytes:
        """Replace an entry if it is as expected (empty: missing), and return what it is then."""
        before = self._seal(key, _to_bytes(expected)) if expected else b""
        found = self._inner.compare_set(self._name(key), before, self._seal(key, _to_bytes(desired)))
        return self._unseal(key, found) if found else b""

    def add(self, key: str, amount: int) -> int:
        """Increase a counter and return it."""
        return int(self._inner.add(self._name(key), amount))

    def check(self, keys: list[str]) -> bool:
        """Return whether all entries exist."""
        return bool(self._inner.check([self._name(key) for key in keys]))

    def wait(self, keys: list[str], timeout: datetime.timedelta | None = None) -> None:
        """Wait for all entries."""
        names = [self._name(key) for key in keys]
        if timeout is None:
            self._inner.wait(names)
        else:
            self._inner.wait(names, timeout)

    def delete_key(self, key: str) -> bool:
        """Remove an entry; return whether it existed."""
        return bool(self._inner.delete_key(self._name(key)))

    def num_keys(self) -> int:
        """Return the number of entries."""
        return int(self._inner.num_keys())

    def clone(self) -> SealedStore:
        """Return another connection to the same entries."""
        self._clones.append(SealedStore(self._inner.clone(), self._secret))
        return self._clones[-1]

    def _name(self, key: str) -> str:
        return self._hash(b"name", key.encode()).hex()

    def _seal(self, key: str, value: bytes) -> bytes:
        tag = self._hash(b"value", key.encode(), value)
        return tag + self._hide(tag, value)

    def _unseal(self, key: str, sealed: bytes) -> bytes:
        tag = sealed[:TAG_BYTES]
        value = self._hide(tag, sealed[TAG_BYTES:])
        if not hmac.compare_digest(tag, self._hash(b"value", key.encode(), value)):
            raise RunError("an entry of the ranks' store was not written by a rank of this start: the start is refused")
        return value

    def _hide(self, tag: bytes, value: bytes) -> bytes:
        stream = hashlib.shake_256(self._hash(b"stream", tag)).digest(len(value))
        return bytes(one ^ other for one, other in zip(value, stream, strict=True))

    def _hash(self, purpose: bytes, *parts: bytes) -> bytes:
        text = b"".join(len(part).to_bytes(8, "big") + part for part in (purpose, *parts))
        return hmac.digest(self._secret, text, "sha256")


def create_store(topology: Topology, timeout_seconds: int) -> tuple[SealedStore, StoreAddress]:
    """Start rank 0's store on a free port; no other process can take the port before it is published.

    It listens on the loopback for ranks of one node, otherwise on the address of the interface that
    ``GLOO_SOCKET_IFNAME`` names or that the host name stands for. If that name stands for the loopback only, as on many
    Debian machines, it listens on all addresses, and peers have to resolve the name.
    """
    address = LOOPBACK if topology.num_nodes == 1 else _fabric_address()
    listener = socket.create_server((address, 0), backlog=BACKLOG)
    port, secret = listener.getsockname()[1], secrets.token_bytes(SECRET_BYTES)
    server = dist.TCPStore(
        address or LOOPBACK,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=datetime.timedelta(seconds=timeout_seconds),
        master_listen_fd=listener.detach(),
    )
    host = address or socket.gethostname()
    return SealedStore(server, secret), StoreAddress(host=host, port=port, secret=secret.hex())


def connect_store(address: StoreAddress, timeout_seconds: int) -> SealedStore:
    """Connect to the store of rank 0."""
    timeout = datetime.timedelta(seconds=timeout_seconds)
    client = dist.TCPStore(address.host, address.port, is_master=False, wait_for_workers=False, timeout=timeout)
    return SealedStore(client, bytes.fromhex(address.secret))


def keep_gloo_on_loopback(topology: Topology) -> None:
    """Let gloo listen on the loopback only if all ranks are on one node, unless the user has chosen an interface."""
    if topology.num_nodes == 1:
        os.environ.setdefault(GLOO_INTERFACE, LOOPBACK_INTERFACE)


def _fabric_address() -> str:
    """Return the IPv4 address at which other nodes reach this one, or an empty text if it is unknown."""
    chosen = os.environ.get(GLOO_INTERFACE, "").partition(",")[0]
    candidates = [_interface_address(chosen)] if chosen else _host_addresses()
    return next((one for one in candidates if one and (chosen or not one.startswith("127."))), "")


def _interface_address(name: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
        except OSError:  # there is no such interface, or it has no IPv4 address
            return ""
    return socket.inet_ntoa(answer[20:24])


def _host_addresses() -> list[str]:
    """Return the addresses of the host name that belong to this machine."""
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError:
        return []
    return [str(address[0]) for _, _, _, _, address in found if _is_own_address(str(address[0]))]


def _is_own_address(address: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def _to_bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value
