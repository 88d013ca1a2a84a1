# SPDX-License-Identifier: Apache-2.0
"""Asks engines for their health. Its HTTP client serves other calls that control an engine, too."""

import aiohttp

from vllm_gateway.fleet.runtimes import Running

POLL_S = 0.05
_LIMIT_S = 2.0


class Health:
    async def open(self) -> None:
        self.http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_LIMIT_S))

    async def close(self) -> None:
        await self.http.close()

    async def passes(self, running: Running) -> bool:
        try:
            async with self.http.get(f"http://{running.address}/health") as reply:
                return reply.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False
