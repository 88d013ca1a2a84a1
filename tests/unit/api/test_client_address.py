# SPDX-License-Identifier: Apache-2.0
"""Of what X-Forwarded-For says, only what trusted proxies have added is believed."""

import pytest

from vllm_gateway.api.client_address import ClientAddresses

TRUSTED = ("127.0.0.1", "10.0.0.0/8", "fd00::/8")
CASES = {
    "nobody forwarded": ("127.0.0.1", (), "127.0.0.1"),
    "one proxy": ("127.0.0.1", (b"1.1.1.1",), "1.1.1.1"),
    "what the client says itself": ("127.0.0.1", (b"9.9.9.9, 1.1.1.1",), "1.1.1.1"),
    "and in a header of its own": ("127.0.0.1", (b"9.9.9.9", b"1.1.1.1"), "1.1.1.1"),
    "two proxies": ("127.0.0.1", (b"9.9.9.9, 1.1.1.1, 10.1.2.3",), "1.1.1.1"),
    "a stranger": ("1.2.3.4", (b"9.9.9.9",), "1.2.3.4"),
    "a stranger who names a proxy": ("1.2.3.4", (b"10.0.0.1",), "1.2.3.4"),
    "all are proxies": ("127.0.0.1", (b"10.0.0.2, 10.0.0.1",), "10.0.0.2"),
    "a port": ("127.0.0.1", (b"1.1.1.1:50000",), "1.1.1.1"),
    "IPv6": ("127.0.0.1", (b"2001:DB8::1",), "2001:db8::1"),
    "IPv6 in brackets": ("127.0.0.1", (b"[2001:db8::1]",), "2001:db8::1"),
    "IPv6 with a port": ("127.0.0.1", (b"[2001:db8::1]:443",), "2001:db8::1"),
    "IPv6 of a proxy": ("fd00::1", (b"1.1.1.1, fd12::9",), "1.1.1.1"),
    "IPv4 written as IPv6": ("::ffff:127.0.0.1", (b"::ffff:1.1.1.1",), "1.1.1.1"),
    "a zone": ("127.0.0.1", (b"fe80::1%eth0",), "fe80::1"),
    "white space": ("127.0.0.1", (b" \t1.1.1.1 \t",), "1.1.1.1"),
    "empty": ("127.0.0.1", (b"",), "127.0.0.1"),
    "an empty part": ("127.0.0.1", (b"1.1.1.1, , 10.0.0.1",), "10.0.0.1"),
    "garbage": ("127.0.0.1", (b"1.1.1.1, unknown",), "127.0.0.1"),
    "garbage before a proxy": ("127.0.0.1", (b"1.1.1.1, _hidden, 10.0.0.1",), "10.0.0.1"),
    "garbage that is no text": ("127.0.0.1", (b"\xff\xfe\x00",), "127.0.0.1"),
    "a number": ("127.0.0.1", (b"16843009",), "127.0.0.1"),
    "a name": ("127.0.0.1", (b"localhost",), "127.0.0.1"),
    "too many": ("127.0.0.1", (b"9.9.9.9," * 1000 + b"1.1.1.1",), "1.1.1.1"),
    "too many proxies": ("127.0.0.1", (b"9.9.9.9," + b"10.0.0.1," * 1000 + b"10.0.0.2",), "10.0.0.1"),
    "a Unix socket": ("", (b"1.1.1.1",), ""),
}


@pytest.mark.parametrize(("peer", "forwarded", "client"), CASES.values(), ids=CASES)
def test_client(peer: str, forwarded: tuple[bytes, ...], client: str) -> None:
    assert ClientAddresses(TRUSTED).client_of(peer, forwarded) == client


@pytest.mark.parametrize(("peer", "forwarded", "client"), CASES.values(), ids=CASES)
def test_nobody_is_trusted_unless_it_was_said(peer: str, forwarded: tuple[bytes, ...], client: str) -> None:
    assert ClientAddresses(()).client_of(peer, forwarded) == peer


def test_a_proxy_on_a_unix_socket() -> None:
    behind = ClientAddresses(("unix",))
    assert behind.client_of("", [b"9.9.9.9, 1.1.1.1"]) == "1.1.1.1"
    assert behind.client_of("", []) == ""
    assert behind.client_of("127.0.0.1", [b"1.1.1.1"]) == "127.0.0.1"
