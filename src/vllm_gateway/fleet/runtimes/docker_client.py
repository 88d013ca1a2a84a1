# SPDX-License-Identifier: Apache-2.0
"""Docker's API with limits: what it has not answered in time is known, and an answer without sense is an error."""

import asyncio
import itertools
import math
import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import aiodocker
import aiohttp
from aiodocker.types import SENTINEL

from vllm_gateway.telemetry import events
from vllm_gateway.telemetry.log import EventLogger

ASK_S = 30.0  # a question
DO_S = 60.0  # a container that is made, started, or removed; stopped: beyond its grace
_CONNECT_S = 5.0
_LATE_S = 4.0  # beyond what a call may well take: then it is told
_DOING_S = 5.0
_SHOWN = 5
_LONG = ("events", "images/create")  # these have limits of their own
NO_DOCKER = 900  # aiodocker's, in place of a status
_LONG_ID = re.compile("[0-9a-f]{64}")
_NONSENSE = (KeyError, TypeError, ValueError)  # what aiodocker raises where it did not expect the answer


class Calls:
    """Those under way that take longer than they should. Each is logged once."""

    def __init__(self, log: EventLogger) -> None:
        self._log = log
        self._serial = itertools.count()
        self._late: dict[int, tuple[str, float]] = {}

    @contextmanager
    def under_way(self, what: str, expected_s: float) -> Iterator[None]:
        loop, key = asyncio.get_running_loop(), next(self._serial)
        began, late_s = loop.time(), expected_s + _LATE_S

        def tell() -> None:
            self._late[key] = (what, began)
            self._log.emit(events.RUNTIME_SLOW, runtime="docker", call=what, seconds=late_s)

        timer = loop.call_later(late_s, tell)
        try:
            yield
        finally:
            timer.cancel()
            self._late.pop(key, None)

    def unanswered(self) -> list[str]:
        now = asyncio.get_running_loop().time()
        shown = list(self._late.values())[:_SHOWN]
        told = [f"Docker has not answered {what} for {now - began:.0f} s" for what, began in shown]
        more = len(self._late) - len(shown)
        return [*told, f"nor {more} other calls"] if more else told


class DockerClient(aiodocker.Docker):
    """Raises DockerError, aiohttp.ClientError and TimeoutError."""

    def __init__(self, calls: Calls) -> None:
        super().__init__(timeout=aiohttp.ClientTimeout(total=ASK_S, sock_connect=_CONNECT_S))
        self._calls = calls

    @asynccontextmanager
    async def _query(self, path: Any, method: str = "GET", **more: Any) -> AsyncGenerator[aiohttp.ClientResponse]:
        what = f"{method} {_LONG_ID.sub(_shown, str(path))}"
        expected_s = 0.0 if method == "GET" else _DOING_S
        if method != "GET" and more.get("timeout", SENTINEL) is SENTINEL:
            more["timeout"] = up_to(DO_S)
        if (grace_s := (more.get("params") or {}).get("t")) is not None:
            expected_s = float(grace_s)
        if path in _LONG:
            expected_s = math.inf
        async with AsyncExitStack() as stack:
            try:
                if more.get("versioned_api", True):
                    await self._check_version()  # a call of its own
                with self._calls.under_way(what, expected_s):
                    reply = await stack.enter_async_context(super()._query(path, method, **more))
            except _NONSENSE as error:
                raise aiodocker.DockerError(NO_DOCKER, f"the answer to {what} makes no sense: {error!r}") from error
            yield reply


def _shown(found: re.Match[str]) -> str:
    return found[0][:12]


def up_to(seconds: float | None) -> aiohttp.ClientTimeout:
    """A limit for a whole call; None: it has its own."""
    return aiohttp.ClientTimeout(total=seconds, sock_connect=_CONNECT_S)
