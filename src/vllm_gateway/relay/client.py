# SPDX-License-Identifier: Apache-2.0
"""The client's side: waiting for a slow reader, and the response that tells aiohttp that all has been sent."""

import asyncio
import contextlib
import socket
import struct

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from vllm_gateway.relay.types import Carried

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class ClientStalled(Exception):
    """The client has not taken a byte for longer than the limit; its connection is closed."""


def is_gone(request: web.BaseRequest) -> bool:
    transport = request.transport
    return transport is None or transport.is_closing()


async def drain(request: web.BaseRequest, transport: asyncio.Transport, stall_s: float | None) -> None:
    """Waits until the client has read enough, as long as it reads at all. Returns too when it is gone."""
    protocol = request.protocol
    while protocol.writing_paused and not transport.is_closing():
        left = transport.get_write_buffer_size()
        try:
            async with asyncio.timeout(stall_s):
                with contextlib.suppress(ConnectionError):
                    await request.writer.drain()
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


class CarriedResponse(web.StreamResponse):
    """What the handler returns to aiohttp after the relay has written the reply: there is nothing left to send.

    aiohttp asks it whether the connection stays open (`keep_alive`), and closes it gracefully if not.
    """

    def __init__(
        self,
        request: web.BaseRequest,
        transport: asyncio.Transport,
        outcome: Carried,
        *,
        keep_alive: bool,
        self_delimiting: bool,
        stall_s: float | None,
    ) -> None:
        super().__init__(status=outcome.status)
        self.outcome = outcome
        self._keep_alive = keep_alive
        self._request = request
        self._transport = transport
        self._self_delimiting = self_delimiting
        self._stall_s = stall_s
        # aiohttp looks at it before it writes an error of its own over a reply that has begun.
        request.writer.output_size = outcome.bytes_sent

    @property
    def prepared(self) -> bool:
        return True

    @property
    def body_length(self) -> int:
        return self.outcome.bytes_sent

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Lets the next request of this connection wait until the client has read this reply, within bounds."""
        assert not data, "the reply is complete"
        if self.outcome.broken is not None and not self._self_delimiting:
            reset(self._transport)
        elif self._request.protocol.writing_paused:
            with contextlib.suppress(ClientStalled):
                await drain(self._request, self._transport, self._stall_s)
