"""The address and the interface with which a machine reaches others."""

import socket

from dcnzoo.utils.network import address_towards, interface_of


def test_the_loopback_is_no_address_for_other_machines():
    own = address_towards("127.0.0.1")
    assert not own.startswith("127.") and address_towards("no-such-host.invalid") == own
    assert interface_of("127.0.0.1") == "lo" and interface_of("") == "" and interface_of("192.0.2.77") == ""
    if own:  # the machine has a network
        assert interface_of(own) in [name for _, name in socket.if_nameindex()]
        assert address_towards(own) == own
