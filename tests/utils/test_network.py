"""The address that other machines reach this one with."""

import socket

from dcnzoo.openmmlab.runs.network import address_towards, interface_of


def test_an_address_towards_another_machine_is_no_loopback():
    address = address_towards("192.0.2.7")  # reserved: nothing is sent
    assert address == "" or not socket.inet_aton(address).startswith(b"\x7f")
    assert address_towards("localhost") == address


def test_the_interface_of_an_address():
    assert interface_of("127.0.0.1") == "lo" and interface_of("192.0.2.7") == ""
