# SPDX-License-Identifier: Apache-2.0
"""Docker's event stream: tells at once that a container of ours may have ended.

An event is a nudge, not the truth: whoever watches a container looks at it again. So an event that comes twice does no
harm, and after a gap in the stream everybody is nudged once.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import aiodocker
import aiohttp

from vllm_gateway.fleet.runtimes.docker_client import Calls, DockerClient
from vllm_gateway.fleet.runtimes.docker_spec import OWNER_LABEL
from vllm_gateway.telemetry import events
from vllm_gateway.telemetry.log import EventLogger

_FIRST_RETRY_S = 0.1
_LONGEST_RETRY_S = 5.0
_CLOCK_TOLERANCE_S = 60
_LIMIT_S = 10.0  # for Docker to show that it is there; the stream itself has no limit
# The last two: no socket where Docker's usually is.
_DOWN = (aiodocker.DockerError, aiohttp.ClientError, TimeoutError, AssertionError, ValueError)


class Watch:
    """One who waits for news of one container."""

    def __init__(self) -> None:
        self.exit_code: int | None = None  # as the event told it, in case the container is gone by then
        self.news = asyncio.Event()


class DockerEvents:
    """Follows the deaths among the owner's containers, across restarts of the Docker engine."""

    def __init__(self, owner: str, log: EventLogger, calls: Calls) -> None:
        self._filters = json.dumps(
            {"type": ["container"], "event": ["die", "oom", "destroy"], "label": [f"{OWNER_LABEL}={owner}"]}
        )
        self._log = log
        self._calls = calls
        self._stream: asyncio.Task[None] | None = None
        self._watches: dict[str, set[Watch]] = {}
        self._since = int(time.time()) - _CLOCK_TOLERANCE_S
        self._away_since: float | None = None
        self.problem: str | None = None  # why Docker does not answer
        self.back = asyncio.Event()  # it answers again; cleared by who waits for it
        self.ends = 0  # of streams, so far
        self._end = asyncio.Event()

    @contextlib.contextmanager
    def watch(self, container: str) -> Iterator[Watch]:
        watch = Watch()
        self._watches.setdefault(container, set()).add(watch)
        try:
            yield watch
        finally:
            self._watches[container].discard(watch)
            if not self._watches[container]:
                del self._watches[container]

    async def has_ended(self, ends_before: int, limit_s: float) -> bool:
        """Whether a stream ends, and Docker with it, within `limit_s`, or has since `ends` was `ends_before`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self.ends == ends_before:
                    self._end.clear()
                    await self._end.wait()
        return self.ends != ends_before

    async def follow(self) -> None:
        """Runs until it is cancelled."""
        retry_s = _FIRST_RETRY_S
        while True:
            # Each stream has its own client: a second subscription on one stays silent.
            async with contextlib.AsyncExitStack() as stack:
                try:
                    client = await stack.enter_async_context(DockerClient(self._calls))
                    async with asyncio.timeout(_LIMIT_S):
                        await client.version()
                except _DOWN as error:
                    self._has_gone(str(error) or repr(error))
                else:
                    if self._away_since is not None:
                        seconds = round(time.monotonic() - self._away_since, 1)
                        self._log.emit(events.RUNTIME_BACK, runtime="docker", seconds=seconds)
                        self.back.set()
                    self._away_since, self.problem, retry_s = None, None, _FIRST_RETRY_S
                    await self._follow_one_stream(client)
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, _LONGEST_RETRY_S)

    def interrupt(self, problem: str) -> None:
        """Docker does not answer, though the stream goes on: that ends, and Docker is away until it answers."""
        if self._stream is not None:
            self._has_gone(problem)
            self._stream.cancel()

    def _has_gone(self, problem: str) -> None:
        if self._away_since is None:
            self._away_since, self.problem = time.monotonic(), problem
            self._log.emit(events.RUNTIME_DOWN, runtime="docker", problem=problem)

    async def _follow_one_stream(self, client: aiodocker.Docker) -> None:
        """Returns when the stream ends, for whatever reason."""
        subscription = client.events.subscribe(create_task=False)  # type: ignore[no-untyped-call]  # aiodocker's
        stream = self._stream = asyncio.create_task(client.events.run(filters=self._filters, since=str(self._since)))
        try:
            self._nudge_everybody()
            while (event := await subscription.get()) is not None:
                self._take(event)
        finally:
            self._stream = None
            self.ends += 1
            self._end.set()
            stream.cancel()
            await asyncio.wait({stream})
            if not stream.cancelled():
                stream.exception()  # that it ended is all that matters

    def _take(self, event: dict[str, Any]) -> None:
        self._since = max(self._since, event["timeNano"] // 1_000_000_000)
        code = event["Actor"]["Attributes"].get("exitCode")
        for watch in self._watches.get(event["Actor"]["ID"], ()):
            if code is not None:
                watch.exit_code = int(code)
            watch.news.set()

    def _nudge_everybody(self) -> None:
        for watches in self._watches.values():
            for watch in watches:
                watch.news.set()
