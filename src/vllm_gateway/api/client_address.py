# SPDX-License-Identifier: Apache-2.0
"""Whose request it is behind proxies: the last address in X-Forwarded-For that no trusted proxy has."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

UNIX = "unix"
"""Among the trusted: whoever connects to a Unix socket."""
_MOST_HOPS = 32
_WITH_PORT = re.compile(r"\[([^\]]+)\](?::\d{1,5})?|([0-9.]+):\d{1,5}")


class ClientAddresses:
    def __init__(self, trusted: Iterable[str]) -> None:
        """`trusted`: addresses and networks of proxies, or UNIX."""
        words = frozenset(trusted)
        self._trusts_unix = UNIX in words
        self._networks = [ip_network(word) for word in words - {UNIX}]
        self._client_of = lru_cache(maxsize=1024)(self._read)

    def client_of(self, peer: str, forwarded: Sequence[bytes]) -> str:
        """`peer`: who has connected, empty for a Unix socket; `forwarded`: the X-Forwarded-For headers in order."""
        if not forwarded or not (self._networks or self._trusts_unix):
            return peer
        return self._client_of(peer, b",".join(forwarded))

    def _read(self, peer: str, forwarded: bytes) -> str:
        """From the right: each trusted proxy vouches for the address that it has added, and for no other."""
        if not (self._is_trusted(_address(peer)) if peer else self._trusts_unix):
            return peer
        client = peer
        for word in reversed(forwarded.decode("latin-1").split(",")[-_MOST_HOPS:]):
            address = _address(word)
            if address is None:
                break  # what is left of it was not vouched for
            client = str(address)
            if not self._is_trusted(address):
                break
        return client

    def _is_trusted(self, address: IPv4Address | IPv6Address | None) -> bool:
        return address is not None and any(address in network for network in self._networks)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """With or without a port; an IPv4 address in the form of IPv6 is the same address."""
    text = text.strip(" \t")
    if found := _WITH_PORT.fullmatch(text):
        text = found[1] or found[2]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
