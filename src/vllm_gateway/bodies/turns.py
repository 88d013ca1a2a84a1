# SPDX-License-Identifier: Apache-2.0
"""Long work in short turns: one turn in each round of the event loop, whoever has how much to do."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")
TURN_S = 0.002


@dataclass(slots=True, eq=False)
class _Work(Generic[T]):
    steps: Generator[Any, None, T]
    done: "asyncio.Future[T]"


class Turns:
    """Those who have work to do take turns of about TURN_S. Everything else on the loop runs between two turns."""

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._line: deque[_Work[Any]] = deque()
        self._next: asyncio.Handle | None = None

    async def run(self, steps: Generator[Any, None, T]) -> T:
        """What `steps` returns, or raises. Given up if the caller is cancelled."""
        loop = asyncio.get_running_loop()
        work = _Work(steps, loop.create_future())
        self._line.append(work)
        if self._next is None:
            self._next = loop.call_soon(self._turn, loop)
        try:
            result: T = await work.done
            return result
        finally:
            steps.close()

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        self._next = None
        while self._line:
            work = self._line.popleft()
            if not work.done.done():
                self._do(work)
                break
        if self._line:
            self._next = loop.call_soon(self._turn, loop)

    def _do(self, work: _Work[Any]) -> None:
        until = self._clock() + TURN_S
        try:
            while self._clock() < until:
                next(work.steps)
        except StopIteration as end:
            work.done.set_result(end.value)
        except Exception as error:
            work.done.set_exception(error)
        else:
            self._line.append(work)


def at_once(steps: Generator[Any, None, T]) -> T:
    """For what is small."""
    try:
        while True:
            next(steps)
    except StopIteration as end:
        result: T = end.value
        return result
