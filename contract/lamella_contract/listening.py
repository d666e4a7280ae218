"""Where a server listens that wants every address: IPv4's and IPv6's, where the machine has both.

A pod does not know whether its cluster speaks IPv4, IPv6 or both, and probes come to whichever
address it got; `0.0.0.0` alone would be deaf in a cluster of IPv6. Knows no protocol.
"""

from __future__ import annotations

import socket

WILDCARDS = ("", "0.0.0.0", "::")
EVERY = "::"


def host_of(host: str) -> str:
    """The address to bind for ``host``: a wildcard means both families, where that can be had."""
    if host in WILDCARDS:
        return EVERY if socket.has_dualstack_ipv6() else "0.0.0.0"
    return host


def family_of(host: str) -> socket.AddressFamily:
    """The family of an address that `host_of` gave."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def open_to_both(listener: socket.socket, host: str) -> None:
    """Before it is bound to ``host``: a socket of every address takes IPv4 too, whatever the
    system's default is."""
    if host == EVERY:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
