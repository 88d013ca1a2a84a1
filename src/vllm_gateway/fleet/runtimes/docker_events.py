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

from vllm_gateway.fleet.runtimes.docker_spec import OWNER_LABEL

_FIRST_RETRY_S = 0.1
_LONGEST_RETRY_S = 5.0
_CLOCK_TOLERANCE_S = 60


class Watch:
    """One who waits for news of one container."""

    def __init__(self) -> None:
        self.exit_code: int | None = None  # as the event told it, in case the container is gone by then
        self.news = asyncio.Event()


class DockerEvents:
    """Follows the deaths among the owner's containers, across restarts of the Docker engine."""

    def __init__(self, owner: str, log: Any) -> None:
        self._filters = json.dumps(
            {"type": ["container"], "event": ["die", "oom", "destroy"], "label": [f"{OWNER_LABEL}={owner}"]}
        )
        self._log = log
        self._watches: dict[str, set[Watch]] = {}
        self._since = int(time.time()) - _CLOCK_TOLERANCE_S

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

    async def follow(self) -> None:
        """Runs until it is cancelled."""
        retry_s = _FIRST_RETRY_S
        while True:
            started = time.monotonic()
            error = await self._follow_one_stream()
            if time.monotonic() - started > _LONGEST_RETRY_S:
                retry_s = _FIRST_RETRY_S
            self._log.warning("docker_events_lost", error=error, retry_s=retry_s)
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, _LONGEST_RETRY_S)

    async def _follow_one_stream(self) -> str:
        """Returns why the stream ended. Each has its own client: a second subscription on one stays silent."""
        async with aiodocker.Docker(timeout=aiohttp.ClientTimeout(sock_connect=5)) as client:
            events = client.events.subscribe(create_task=False)  # type: ignore[no-untyped-call]
            stream = asyncio.create_task(client.events.run(filters=self._filters, since=str(self._since)))
            try:
                self._nudge_everybody()
                while (event := await events.get()) is not None:
                    self._take(event)
            finally:
                stream.cancel()
                await asyncio.wait({stream})
            failure = None if stream.cancelled() else stream.exception()
            return str(failure or "the stream ended")

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
