# SPDX-License-Identifier: Apache-2.0
"""Whether a URL is the gateway's own address, as far as that can be told without asking anybody for a name."""

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

from vllm_gateway.configuration.settings import Server

_EVERYWHERE = frozenset({"", "::"})
_LOCALHOST = frozenset({ip_address("127.0.0.1"), ip_address("::1")})


def is_own(url: str, server: Server) -> bool:
    parts = urlsplit(url)
    if server.socket is not None or parts.port != server.port:
        return False
    host, listens = (parts.hostname or "").lower(), server.host.lower()
    addresses = _addresses(host)
    if listens in _EVERYWHERE:
        return any(map(_is_of_this_machine, addresses))
    if listens == "0.0.0.0":  # noqa: S104 - compared, not bound
        return any(one.version == 4 and _is_of_this_machine(one) for one in addresses)
    return host == listens or bool(addresses & _addresses(listens))


def _addresses(host: str) -> frozenset[IPv4Address | IPv6Address]:
    """Where a connection to it goes; none for a name that would have to be looked up."""
    if host == "localhost":
        return _LOCALHOST
    try:
        address = ip_address(host)
    except ValueError:
        return frozenset()
    if address.is_unspecified:
        return frozenset(one for one in _LOCALHOST if one.version == address.version)
    return frozenset({getattr(address, "ipv4_mapped", None) or address})


def _is_of_this_machine(address: IPv4Address | IPv6Address) -> bool:
    """Only such a one can be bound."""
    if address.is_loopback:
        return True
    with socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as one:
        try:
            one.bind((str(address), 0))
        except OSError:
            return False
    return True
