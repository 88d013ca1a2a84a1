# SPDX-License-Identifier: Apache-2.0
"""Asks engines for their health."""

import aiohttp

from vllm_gateway.fleet.runtimes import Running

POLL_S = 0.05
_LIMIT_S = 2.0


class Health:
    async def open(self) -> None:
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_LIMIT_S))

    async def close(self) -> None:
        await self._http.close()

    async def passes(self, running: Running) -> bool:
        try:
            async with self._http.get(f"http://{running.host}:{running.port}/health") as reply:
                return reply.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False
