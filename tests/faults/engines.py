# SPDX-License-Identifier: Apache-2.0
"""The engines of a gateway under test as processes: found by their port, made to fail, and set right again."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp


def engine_pids(gateway_pid: int) -> dict[int, int]:
    """port -> pid of every simulated engine that is a child of the gateway."""
    return {port: pid for pid in children(gateway_pid) if (port := _port(pid))}


def children(pid: int) -> Iterator[int]:
    try:
        yield from map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    except FileNotFoundError:
        return


def _port(pid: int) -> int | None:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except FileNotFoundError:
        return None
    return int(words[words.index(b"--port") + 1]) if b"vllm_gateway.simulator" in words else None


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
        async with self.http.post(f"http://{self.address}/sim/faults", json=self.faults) as reply:
            assert reply.status == 200, await reply.text()
