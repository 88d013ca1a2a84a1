# SPDX-License-Identifier: Apache-2.0
"""How long the loop was busy at a stretch: nobody else is served meanwhile."""

import asyncio
import contextlib
import gc
import time
from collections.abc import Iterator


class Turns:
    """CPU time of the loop's own thread, so that neither other processes nor helper threads count."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._handle: asyncio.Handle
        self._last = time.thread_time()

    def turn(self) -> None:
        now = time.thread_time()
        self.longest_s = max(self.longest_s, now - self._last)
        self._last = now
        self._handle = asyncio.get_running_loop().call_soon(self.turn)

    def end(self) -> None:
        self._handle.cancel()


@contextlib.contextmanager
def watched_turns() -> Iterator[Turns]:
    gc.collect()
    gc.freeze()  # what the tests before have left is not looked through at each collection of garbage
    turns = Turns()
    turns.turn()
    try:
        yield turns
    finally:
        turns.end()
        gc.unfreeze()
