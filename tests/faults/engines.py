# SPDX-License-Identifier: Apache-2.0
"""The engines of a gateway under test: made to fail, and set right again."""

import os
import signal
from contextlib import suppress
from dataclasses import dataclass, field

import aiohttp


@dataclass(slots=True)
class Engine:
    """One instance. Its connection for faults stays open, so that they can be lifted from one that refuses others."""

    name: str
    address: str
    pid: int
    http: aiohttp.ClientSession
    faults: list[str] = field(default_factory=list)
    out_of_reach: bool = False
    """Dead or stopped: it can be told nothing."""
    stopped: bool = False

    async def set(self, *faults: str) -> None:
        self.faults += faults
        await self._tell()

    async def lift(self, *faults: str) -> None:
        self.faults = [fault for fault in self.faults if fault not in faults]
        await self._tell()

    def signal(self, number: signal.Signals) -> None:
        self.out_of_reach = number is not signal.SIGCONT
        self.stopped = number is signal.SIGSTOP
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    async def _tell(self) -> None:
        if self.out_of_reach:
            return
        try:
            await self._post()
        except aiohttp.ClientConnectionError:  # Docker has just come back: the kept connection is none any more
            await self._post()

    async def _post(self) -> None:
        async with self.http.post("/sim/faults", json=self.faults) as reply:
            assert reply.status == 200, await reply.text()
