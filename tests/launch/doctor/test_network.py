import socket

from hsadml_dist.launch.doctor.network import interface_with_address, source_address


def test_the_loopback_interface_is_known_by_its_address():
    assert interface_with_address("127.0.0.1") in {name for _, name in socket.if_nameindex()}
    assert source_address("127.0.0.1") == "127.0.0.1"


def test_what_is_nowhere_has_no_address_and_no_interface():
    assert source_address("no-such-host.invalid") == ""
    assert interface_with_address("203.0.113.1") == ""
    assert interface_with_address("") == ""
