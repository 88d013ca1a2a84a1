# SPDX-License-Identifier: Apache-2.0
"""Clients that never rest, and what became of their requests."""

import asyncio
from collections.abc import Sequence

import aiohttp

from tests.gateway import CHAT
from tests.waiting import until


class Load:
    """Clients that never rest. One half (if it `keep`s) keeps its connections, the other opens one for each request."""

    def __init__(
        self, url: str, models: Sequence[str] = ("a",), count: int = 4, *, keep: bool = True, stream: bool = False
    ) -> None:
        """`stream`: each reply is one."""
        self.failures: list[str] = []
        self.served = 0
        self._url = url
        self._stream = stream
        self._over = asyncio.Event()
        self._clients = [
            asyncio.create_task(self._client(models[number // 2 % len(models)], keeps=keep and number % 2 == 0))
            for number in range(count)
        ]

    async def _client(self, model: str, *, keeps: bool) -> None:
        connector = aiohttp.TCPConnector(force_close=not keeps)
        async with aiohttp.ClientSession(self._url, connector=connector) as http:
            while not self._over.is_set():
                body = {
                    "model": model,
                    "messages": [{"role": "user", "content": "Hello"}],
                    "max_tokens": 4,
                    "stream": self._stream,
                }
                try:
                    async with http.post(CHAT, json=body) as reply:
                        text = await reply.text()
                        whole = not self._stream or text.rstrip().endswith("data: [DONE]")
                        if reply.status != 200 or not whole:
                            self.failures.append(text)
                except aiohttp.ClientError as error:
                    self.failures.append(repr(error))
                self.served += 1

    async def more(self, count: int) -> None:
        goal = self.served + count
        await until(lambda: self.served >= goal, 30)

    async def end(self) -> None:
        self._over.set()
        await asyncio.gather(*self._clients)
