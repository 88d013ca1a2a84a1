# SPDX-License-Identifier: Apache-2.0
"""The client's side of one request: what the relay must know of it, whoever read its head, and how it is waited for."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Sequence
from typing import Protocol

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Client(Protocol):
    """One request whose body has been read, and the connection on which its client waits for the reply."""

    @property
    def method(self) -> str: ...

    @property
    def target(self) -> str:
        """Path and query, as received."""

    @property
    def raw_headers(self) -> Sequence[tuple[bytes, bytes]]:
        """As received and in order; where the body's length stands elsewhere, without it."""

    @property
    def content_type(self) -> str:
        """Empty if it is not given."""

    def header_lines(self, dropped: frozenset[bytes]) -> bytes:
        """The headers as lines to be passed on, less those of these lower-case names."""

    @property
    def http_1_1(self) -> bool: ...

    @property
    def keep_alive(self) -> bool:
        """Whether the client would send another request on this connection."""

    @property
    def transport(self) -> asyncio.Transport | None:
        """None once the connection is gone."""

    @property
    def writing_paused(self) -> bool:
        """Whether more is unsent than the transport's buffer should hold."""

    async def drain(self) -> None:
        """Returns when no longer paused. Raises ConnectionError when the client is gone."""


class ClientStalled(Exception):
    """The client has not taken a byte for longer than the limit; its connection is closed."""


def is_gone(client: Client) -> bool:
    transport = client.transport
    return transport is None or transport.is_closing()


async def drain(client: Client, transport: asyncio.Transport, stall_s: float | None) -> None:
    """Waits until the client has read enough, as long as it reads at all. Returns too when it is gone."""
    while client.writing_paused and not transport.is_closing():
        left = transport.get_write_buffer_size()
        try:
            async with asyncio.timeout(stall_s):
                with contextlib.suppress(ConnectionError):
                    await client.drain()
        except TimeoutError:
            if not transport.is_closing() and transport.get_write_buffer_size() >= left:
                transport.abort()
                raise ClientStalled from None


def reset(transport: asyncio.Transport) -> None:
    """Closes so that the client cannot take the end of the connection for the end of the reply."""
    sock = transport.get_extra_info("socket")
    if sock is not None and not transport.is_closing():
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()
