# SPDX-License-Identifier: Apache-2.0
"""The relay's client where aiohttp read the request: how to see it, and what to return to aiohttp afterwards."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.abc import AbstractStreamWriter

from vllm_gateway.relay.heads import header_lines
from vllm_gateway.relay.types import Carried


class AiohttpClient:
    """A `Client` over a request of aiohttp's low-level server."""

    __slots__ = ("_protocol", "_request", "content_type", "http_1_1", "keep_alive", "method", "raw_headers", "target")

    def __init__(self, request: web.BaseRequest, target: str) -> None:
        """`target`: as it goes on, in origin form."""
        self._request = request
        self._protocol = request.protocol
        self.method = request.method
        self.target = target
        self.raw_headers: Sequence[tuple[bytes, bytes]] = request.raw_headers
        self.content_type = request.headers.get(hdrs.CONTENT_TYPE, "")
        self.http_1_1 = request.version >= HttpVersion11
        self.keep_alive = request.keep_alive

    def header_lines(self, dropped: frozenset[bytes]) -> bytes:
        return header_lines(self.raw_headers, dropped)

    @property
    def transport(self) -> asyncio.Transport | None:
        return self._request.transport

    @property
    def writing_paused(self) -> bool:
        return self._protocol.writing_paused

    async def drain(self) -> None:
        await self._request.writer.drain()


class CarriedResponse(web.StreamResponse):
    """What the handler returns to aiohttp after the relay has written the reply: there is nothing left to send.

    aiohttp asks it whether the connection stays open (`keep_alive`), and closes it gracefully if not. `settle` is
    awaited before the connection's next request is looked at.
    """

    def __init__(self, request: web.BaseRequest, carried: Carried, settle: Callable[[], Awaitable[None]]) -> None:
        super().__init__(status=carried.status)
        self._carried = carried
        self._keep_alive = carried.keeps_client
        self._settle = settle
        # aiohttp looks at it before it writes an error of its own over a reply that has begun.
        request.writer.output_size = carried.bytes_sent

    @property
    def prepared(self) -> bool:
        return True

    @property
    def body_length(self) -> int:
        return self._carried.bytes_sent

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        assert not data, "the reply is complete"
        await self._settle()
