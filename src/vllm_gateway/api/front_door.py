# SPDX-License-Identifier: Apache-2.0
"""The server that clients connect to: aiohttp's low-level server with a fast lane before it for plain inference.

Each connection begins in the fast lane (`visitor.py`). A request that is not plain, or that is refused before its body
is read, takes its connection over to aiohttp for good, with every byte received so far: aiohttp answers it and whatever
follows on that connection. So the fast lane holds no route, no refusal and no guess of its own.
"""

import asyncio
from typing import Any

from vllm_gateway.api.cors import Cors
from vllm_gateway.api.errors import ApiError
from vllm_gateway.api.request_head import RequestHead
from vllm_gateway.api.server import Api
from vllm_gateway.api.unreadable import AiohttpServer
from vllm_gateway.api.visitor import Visitor

IDLE_S = 3600.0
"""Longer than any proxy in front keeps its connections: the side that sends requests should be the one to close."""
_SWEEP_S = 5.0


class FrontDoor(AiohttpServer):
    """Takes connections; ends them gracefully on shutdown, in both lanes."""

    def __init__(self, api: Api) -> None:
        super().__init__(api.handle, api.journal)
        self._opened = api.opened
        self.inference = api.inference
        self.loop = asyncio.get_running_loop()
        self.visitors: set[Visitor] = set()
        self.closing = False
        self.leaving = False
        """Each reply is the last of its connection, but no connection is closed before that."""
        self._api = api
        self._max_body = api.max_body
        self._stall_s = api.stall_s
        self._sweeper: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()

    def __call__(self) -> Any:
        """A protocol for a new connection."""
        return Visitor(self)

    def aiohttp_protocol(self) -> asyncio.Protocol:
        return super().__call__()

    def admit(self, head: RequestHead, length: int, peer: str) -> tuple[str, str, Cors] | None:
        """Who asks, from where, and what its browser is told.

        None if the request is to be refused, or has to wait, before its body is read.
        """
        if length > self._max_body or self.inference.stopping or not self._opened.is_set():
            return None
        if head.path not in self._api.paths.posts:
            return None
        gate = self._api.gate
        judged = gate.judge(head.host, head.origin)
        if judged.refusal is not None:
            return None
        client = gate.addresses.client_of(peer, head.forwarded)
        try:
            return gate.caller(head.keys, client), client, judged.cors
        except ApiError:
            return None

    # --- The connections in the fast lane

    def enter(self, visitor: Visitor) -> None:
        self.visitors.add(visitor)
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(min(_SWEEP_S, self._stall_s / 4), self._sweep)

    def leave(self, visitor: Visitor) -> None:
        self.visitors.discard(visitor)
        if not self.visitors:
            self._empty.set()

    def _sweep(self) -> None:
        """One timer for all: nothing is set or cancelled per request or per read."""
        self._sweeper = None
        now = self.loop.time()
        for visitor in list(self.visitors):
            visitor.check_time(now, idle_s=IDLE_S, stall_s=self._stall_s)
        if self.visitors:
            self._sweeper = self.loop.call_later(min(_SWEEP_S, self._stall_s / 4), self._sweep)

    # --- The end

    def pre_shutdown(self) -> None:
        """No request is expected any more: closes idle connections, and busy ones after their reply."""
        self.closing = True
        for visitor in list(self.visitors):
            visitor.close_if_idle()
        super().pre_shutdown()

    async def shutdown(self, timeout: float | None = None) -> None:
        self.closing = True
        await asyncio.gather(super().shutdown(timeout), self._end_visits(timeout))
        await super().shutdown(1.0)  # what came over from the fast lane meanwhile
        if self._sweeper is not None:
            self._sweeper.cancel()

    async def _end_visits(self, limit_s: float | None) -> None:
        try:
            async with asyncio.timeout(limit_s):
                await self._until_empty()
        except TimeoutError:
            for visitor in list(self.visitors):
                visitor.abort()
            await self._until_empty()

    async def _until_empty(self) -> None:
        while self.visitors:
            self._empty.clear()
            await self._empty.wait()
