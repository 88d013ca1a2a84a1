# SPDX-License-Identifier: Apache-2.0
"""Reads the body of a request that aiohttp serves: bounded in size, in time, and in what all bodies take together."""

import asyncio

from aiohttp import hdrs, web

from vllm_gateway.api.buffers import Buffers, Pace
from vllm_gateway.api.errors import ApiError
from vllm_gateway.api.guests import Bounds
from vllm_gateway.bodies.payload import Body

_LEAST_BYTES_PER_S = 1024
"""So fast a small body must come on average, after `stall_s`: enough for a poor mobile network."""


def body_time_s(received: int, length: int, bounds: Bounds) -> float:
    """So long a body may have taken of which so many bytes have come: the longer it is, the faster it has to come.

    Where its length is not told, it is what has come.
    """
    return bounds.stall_s + received / max(_LEAST_BYTES_PER_S, length / bounds.body_s)


def body_timeout() -> ApiError:
    return ApiError("body_timeout", "The rest of the request's body did not come. Send it faster, or in smaller parts.")


class Receiving:
    """One body on its way in. Use `read`; what it returned is held until `give`."""

    def __init__(self, request: web.BaseRequest, buffers: Buffers, *, limit: int, bounds: Bounds) -> None:
        self._request = request
        self._buffers = buffers
        self._limit = limit
        self._bounds = bounds
        self._clock = asyncio.get_running_loop().time
        self._refused: ApiError | None = None
        self._scope: asyncio.Timeout
        self.pace: Pace | None = Pace(self._clock())

    async def read(self) -> Body:
        """Raises ApiError body_too_large, body_timeout or buffers_full."""
        try:
            body = await self._whole()
        except BaseException:
            self._buffers.left(self)
            raise
        self._buffers.whole(self)
        return body

    async def _whole(self) -> Body:
        request, limit, buffers = self._request, self._limit, self._buffers
        length = request.content_length
        if (length or 0) > limit:
            raise self._too_large()
        if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue" and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = bytearray()
        began = self._clock()
        try:
            async with asyncio.timeout(None) as self._scope:
                while self._refused is None:
                    allowed_s = body_time_s(len(body), length or len(body), self._bounds)
                    self._scope.reschedule(min(self._clock() + self._bounds.stall_s, began + allowed_s))
                    block = await request.content.readany()
                    if not block:
                        return body
                    if len(body) + len(block) > limit:
                        raise self._too_large()
                    body += block
                    buffers.came(self, len(block))
            raise self._refused
        except TimeoutError:
            raise self._refused or body_timeout() from None

    def give(self) -> None:
        """Its request has ended."""
        self._buffers.left(self)

    def make_way(self, error: ApiError) -> None:
        self._refused = error
        self._scope.reschedule(self._clock())

    def _too_large(self) -> ApiError:
        return ApiError("body_too_large", f"The request body is over {self._limit >> 20} MiB (server.max_body_mib).")
