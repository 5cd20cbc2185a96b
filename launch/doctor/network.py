"""Which of a machine's addresses its peers see, and which network interface has it."""

from __future__ import annotations

import fcntl
import socket
import struct

SIOCGIFADDR = 0x8915
ANY_PORT = 9
"""A datagram socket that is connected sends nothing: the port does not matter."""


def source_address(peer: str) -> str:
    """Return the address from which this machine reaches ``peer``; empty where it cannot."""
    try:
        family, _, _, _, target = socket.getaddrinfo(peer, ANY_PORT, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def interface_with_address(address: str) -> str:
    """Return the name of the interface that has an IPv4 address; empty: not known."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # an interface without an IPv4 address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return ""
