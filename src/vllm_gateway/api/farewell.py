# SPDX-License-Identifier: Apache-2.0
"""The end of a connection whose client may still be sending what was refused: it is to read why before."""

import asyncio
from typing import cast

from vllm_gateway.api.guests import Door

LINGER_S = 5.0
"""For the client to read its reply and to close. To close at once would reset the connection, and the reply be lost."""
MOST_BYTES = 64 << 20
"""Beyond that nothing is read: a client that reads while it sends has read its reply long before."""


class Farewell(asyncio.Protocol):
    """Takes a connection on which the last reply has been written, and throws away what still comes."""

    __slots__ = ("_door", "_left", "_since", "_transport")

    idle_since = None

    def __init__(self, door: Door) -> None:
        self._door = door
        self._since = door.loop.time()
        self._left = MOST_BYTES

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._door.enter(self)
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left <= 0:
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._door.leave(self)

    def check_time(self, now: float) -> None:
        if now - self._since > LINGER_S:
            self.abort()

    def close_if_idle(self) -> None:
        """It ends soon by itself."""

    def abort(self) -> None:
        self._transport.abort()
