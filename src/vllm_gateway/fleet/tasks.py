# SPDX-License-Identifier: Apache-2.0
"""Owns the fleet's tasks: each is kept until it ends, and a failure in one is told, not lost."""

import asyncio
import traceback
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from vllm_gateway.telemetry import events

TOLD_AGAIN_S = 60.0  # the same error, which a loop may meet at every round
_MOST_REMEMBERED = 100

Work = Callable[[], Coroutine[Any, Any, None]]


class Tasks:
    def __init__(self, emit: Callable[..., None]) -> None:
        self._emit: Callable[..., None] = emit
        self._running: set[asyncio.Task[None]] = set()
        self._told: dict[str, float] = {}

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def repeat(self, work: Work, every_s: float) -> asyncio.Task[None]:
        """`every_s` after the end of each round comes the next, also if it failed."""
        return self.spawn(self._repeat(work, every_s))

    @contextmanager
    def contain(self, where: str) -> Iterator[None]:
        """An error that nobody foresaw is told, and goes no further."""
        try:
            yield
        except Exception as error:
            self.tell(error, where)

    def tell(self, error: BaseException, where: str) -> None:
        now = asyncio.get_running_loop().time()
        what = f"{where}: {error!r}"
        if now < self._told.get(what, now):
            return
        if len(self._told) >= _MOST_REMEMBERED:
            self._told.clear()
        self._told[what] = now + TOLD_AGAIN_S
        lines = traceback.format_exception(error)
        self._emit(events.UNHANDLED_ERROR, error=repr(error), where=where, traceback="".join(lines))

    async def end(self) -> None:
        """Cancels all and waits for them."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _repeat(self, work: Work, every_s: float) -> None:
        where = getattr(work, "__qualname__", repr(work))
        while True:
            with self.contain(where):
                await work()
            await asyncio.sleep(every_s)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self.tell(error, str(task.get_coro()))
