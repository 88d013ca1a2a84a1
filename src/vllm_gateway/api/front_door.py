# SPDX-License-Identifier: Apache-2.0
"""The server that clients connect to: aiohttp's low-level server with a fast lane before it for plain inference.

Each connection begins in the fast lane (`visitor.py`). A request that is not plain, or that is refused before its body
is read, takes its connection over to aiohttp for good, with every byte received so far: aiohttp answers it and whatever
follows on that connection. So the fast lane holds no route, no refusal and no guess of its own.
"""

import asyncio
import heapq
from collections.abc import Iterator
from itertools import chain
from operator import itemgetter
from typing import Any, cast

from vllm_gateway.api.aiohttp_lane import AiohttpServer
from vllm_gateway.api.begun_head import request_line_of
from vllm_gateway.api.cors import Cors
from vllm_gateway.api.errors import ApiError
from vllm_gateway.api.farewell import Farewell
from vllm_gateway.api.guests import Bounds, Guest
from vllm_gateway.api.journal import Progress, request_id_of
from vllm_gateway.api.request_head import RequestHead
from vllm_gateway.api.server import Api
from vllm_gateway.api.visitor import Visitor

_ABOUT_TO_ASK_S = 1.0
_TRIM_S = 0.2  # so often at most, beside the sweep, idle connections are counted


class FrontDoor(AiohttpServer):
    """Takes connections; ends them gracefully on shutdown, in both lanes."""

    def __init__(self, api: Api) -> None:
        super().__init__(api.handle)
        self.journal = api.journal
        self.journal.metrics.connections = lambda: self.count
        self.inference = api.inference
        self.loop = asyncio.get_running_loop()
        self.visitors: set[Guest] = set()  # all but those in aiohttp's lane
        self.closing = False
        self.leaving = False
        """Each reply is the last of its connection, but no connection is closed before that."""
        self._api = api
        self._opened = api.opened
        self._max_body = api.max_body
        self.buffers = api.buffers
        self._sweeper: asyncio.TimerHandle | None = None
        self._trimmed_at = 0.0
        self._empty = asyncio.Event()

    @property
    def bounds(self) -> Bounds:
        return self._api.bounds

    def __call__(self) -> Any:
        """A protocol for a new connection."""
        return Visitor(self)

    def aiohttp_protocol(self) -> asyncio.Protocol:
        return self.connection(self)

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
        client = gate.addresses.client_of(peer, head.forwarded) if head.forwarded else peer
        if not gate.asks_for_keys:
            return client, client, judged.cors
        try:
            return gate.caller(head.keys, client, "infer"), client, judged.cors
        except ApiError:
            return None

    # --- The connections

    @property
    def guests(self) -> Iterator[Guest]:
        """All of them."""
        return chain(list(self.visitors), cast(list[Guest], self.connections))

    @property
    def count(self) -> int:
        return len(self.visitors) + len(self._connections)

    def enter(self, guest: Guest) -> None:
        self.visitors.add(guest)
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(self.bounds.sweep_s, self._sweep)
        if self.loop.time() - self._trimmed_at > _TRIM_S:
            self._trim()

    def leave(self, guest: Guest) -> None:
        self.visitors.discard(guest)
        if not self.visitors:
            self._empty.set()

    def refuse(self, transport: asyncio.Transport, error: ApiError, seen: bytes) -> None:
        peer = transport.get_extra_info("peername")
        client = peer[0] if isinstance(peer, tuple) else ""
        progress = Progress(request_id_of(None), *request_line_of(seen), self.loop.time(), client)
        progress.outcome, progress.status = error.code, error.status
        self.journal.finished(progress)
        transport.write(error.reply(progress, keep_alive=False))
        self.say_farewell(transport)

    def say_farewell(self, transport: asyncio.Transport) -> None:
        farewell = Farewell(self)
        transport.set_protocol(farewell)
        farewell.connection_made(transport)

    def close_longest_idle(self, count: int) -> None:
        """To make room; not those whose client may be about to send its request."""
        now = self.loop.time()
        self._close_first(count, [(since, one) for since, one in self._idle() if now - since > _ABOUT_TO_ASK_S])

    def _trim(self) -> None:
        self._trimmed_at = self.loop.time()
        if self.count > self.bounds.max_idle:
            idle = self._idle()
            self._close_first(len(idle) - self.bounds.max_idle, idle)

    def _idle(self) -> list[tuple[float, Guest]]:
        """Those that wait for a request, and since when."""
        return [(since, guest) for guest in self.guests if (since := guest.idle_since) is not None]

    @staticmethod
    def _close_first(count: int, idle: list[tuple[float, Guest]]) -> None:
        for _, guest in heapq.nsmallest(count, idle, key=itemgetter(0)):
            guest.close_if_idle()

    def _sweep(self) -> None:
        """One timer for all: nothing is set or cancelled per request or per read."""
        self._sweeper = None
        now = self.loop.time()
        for guest in self.guests:
            guest.check_time(now)
        self._trim()
        if self.count:
            self._sweeper = self.loop.call_later(self.bounds.sweep_s, self._sweep)

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
