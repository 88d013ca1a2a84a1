# SPDX-License-Identifier: Apache-2.0
"""A runtime that fails as it is told to, with errors that no real one can be made to raise."""

import asyncio
from collections.abc import Callable

from vllm_gateway.configuration.settings import Settings
from vllm_gateway.fleet.runtimes import Exit, Found, Launch, Progress, Running
from vllm_gateway.routing import Address

NOBODY = Running("handle", Address("127.0.0.1", 9))  # nothing listens there


class BrokenRuntime:
    """`errors`: by call, what its next ones raise; `holds`: what they wait for. The rest succeeds, and is in `done`."""

    def __init__(self) -> None:
        self.errors: dict[str, list[Exception]] = {}
        self.holds: dict[str, asyncio.Event] = {}
        self.problem: str | None = None
        self.unanswered: list[str] = []
        self.done: list[str] = []
        self.processes = frozenset({7})

    async def _do(self, what: str) -> None:
        if hold := self.holds.get(what):
            await hold.wait()
        if errors := self.errors.get(what):
            raise errors.pop(0)
        self.done.append(what)

    async def open(self) -> None: ...
    async def close(self) -> None: ...
    async def returned(self) -> None: ...
    def reconfigure(self, settings: Settings) -> None: ...

    async def find(self) -> list[Found]:
        return []

    async def fetch(self, image: str, told: Callable[[Progress], None]) -> None:
        await self._do("fetch")

    async def start(self, launch: Launch) -> Running:
        await self._do("start")
        return NOBODY

    async def open_way(self, running: Running) -> None: ...

    async def wait(self, handle: str) -> Exit:
        await self._do("wait")
        await asyncio.Event().wait()
        raise AssertionError

    async def stop(self, handle: str, grace_s: float) -> None:
        await self._do("stop")

    async def remove(self, handle: str) -> None:
        await self._do("remove")

    async def pids(self, handle: str) -> frozenset[int]:
        await self._do("pids")
        return self.processes
