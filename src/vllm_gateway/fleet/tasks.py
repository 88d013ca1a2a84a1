# SPDX-License-Identifier: Apache-2.0
"""Owns the fleet's tasks: each is kept until it ends, and a failure in one is told, not lost."""

import asyncio
import traceback
from collections.abc import Callable, Coroutine
from typing import Any

from vllm_gateway.telemetry import events


class Tasks:
    def __init__(self, emit: Callable[..., None]) -> None:
        self._emit: Callable[..., None] = emit
        self._running: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    async def end(self) -> None:
        """Cancels all and waits for them."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()):
            where, lines = str(task.get_coro()), traceback.format_exception(error)
            self._emit(events.UNHANDLED_ERROR, error=repr(error), where=where, traceback="".join(lines))
