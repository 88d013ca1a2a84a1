# SPDX-License-Identifier: Apache-2.0
"""What goes wrong during a soak: now and then, by chance, something happens to an engine or to the gateway."""

import asyncio
import os
import random
import signal
from collections import Counter
from contextlib import suppress

import aiohttp

from tests.engines import engine_pids, set_faults
from tests.gateway import GatewayProcess

_EVERY_S = (1.0, 4.0)
_ENGINE_FAULTS = (
    "status_503*3",
    "shutting_down_500*3",
    "garbage*2",
    "cut_head*2",
    "error_after_tokens=5*2",
    "done_after_tokens=5*2",
    "close_after_tokens=5*2",
    "reset_after_tokens=5*2",
    "silent_after_tokens=5*1",
    "out_of_memory_after_tokens=5*1",
    "refuse_connections=1",
)


class Trouble:
    """`happened` counts it by name."""

    def __init__(self, gateway: GatewayProcess, randomness: random.Random) -> None:
        self.happened: Counter[str] = Counter()
        self._gateway = gateway
        self._random = randomness
        self._stopped: set[int] = set()

    async def run(self) -> None:
        """Until it is cancelled; engines that stand still then go on."""
        try:
            while True:
                await asyncio.sleep(self._random.uniform(*_EVERY_S))
                await self._something()
        finally:
            for pid in self._stopped:
                _send(pid, signal.SIGCONT)

    async def _something(self) -> None:
        engines = sorted(engine_pids(self._gateway.process.pid).items())
        name = self._random.choice(("kill", "stop", "terminate", "reload", *_ENGINE_FAULTS))
        if name == "reload":
            self._gateway.process.send_signal(signal.SIGHUP)
        elif not engines:
            return
        else:
            address, pid = self._random.choice(engines)
            match name:
                case "kill":
                    _send(pid, signal.SIGKILL)
                case "terminate":
                    _send(pid, signal.SIGTERM)
                case "stop":
                    self._stopped.add(pid)
                    _send(pid, signal.SIGSTOP)
                case _:
                    with suppress(aiohttp.ClientError, TimeoutError):
                        async with asyncio.timeout(2):
                            await set_faults(address, name)
        self.happened[name] += 1


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
