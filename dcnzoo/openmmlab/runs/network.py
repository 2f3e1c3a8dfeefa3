"""This machine's address and interface in a network.

``python -m dcnzoo.openmmlab.runs.network ADDRESS`` prints the address with which it reaches another one.

The address of the host name is usually different: ``/etc/hosts`` of Debian and Ubuntu has 127.0.1.1, and
other machines may not know the name.
"""

import contextlib
import socket
import struct
import sys

_SIOCGIFADDR = 0x8915  # of <linux/sockios.h>


def address_towards(host: str) -> str:
    """Return the address with which this machine reaches another one; empty if there is none.

    If ``host`` is this machine, that may be the loopback, which others cannot use. The function then returns
    the address of the usual route.
    """
    own = _source(host)
    return _source("192.0.2.1") if own.startswith("127.") or own in ("", "::1") else own  # a reserved address


def _source(host: str) -> str:
    with contextlib.suppress(OSError):
        family, kind, protocol, _, target = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(target)  # chooses the route; UDP sends nothing
            return str(probe.getsockname()[0]).partition("%")[0]
    return ""


def interface_of(address: str) -> str:
    """Return the network interface with an IPv4 address; empty if there is none, and on Windows."""
    try:
        import fcntl  # noqa: TID251  for addresses, not for locks
    except ModuleNotFoundError:
        return ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # it has no address
                reply = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(reply[20:24]) == address:
                    return name
    return ""


if __name__ == "__main__":
    print(address_towards(sys.argv[1]))
