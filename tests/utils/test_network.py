"""The address that other machines reach this one with."""

import socket

from dcnzoo.utils.network import address_towards


def test_an_address_towards_another_machine_is_no_loopback():
    address = address_towards("192.0.2.7")  # reserved: nothing is sent
    assert address == "" or not socket.inet_aton(address).startswith(b"\x7f")
    assert address_towards("localhost") == address
