# SPDX-License-Identifier: Apache-2.0
"""Takes connections from the listening sockets, and no more of them than leave descriptors for everything else.

Those beyond wait in the kernel's backlog. The longest idle ones are closed to make room; those in work never are.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence

from vllm_gateway.api.front_door import FrontDoor
from vllm_gateway.telemetry import events
from vllm_gateway.telemetry.shortage import is_shortage

BACKLOG = 1024
_AT_ONCE = 64  # then others have their turn
_FULL_S = 0.05  # so often it is looked again whether there is room
_SAY_S = 60.0
_ARRIVING_S = 1.0


class Accepting:
    """Use `start` and `stop`; the sockets stay open, for others may listen on them too."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        door: FrontDoor,
        let_in: Callable[[socket.socket], Awaitable[None]],
        *,
        most: int,
        emit: Callable[..., None],
    ) -> None:
        """`let_in` brings a connection to the door, and raises OSError or TimeoutError; `most` connections at once."""
        self.most = most
        self._sockets = sockets
        self._door = door
        self._bring = let_in
        self._emit: Callable[..., None] = emit
        self._loop = asyncio.get_running_loop()
        self._arriving: set[asyncio.Task[None]] = set()
        self._started = self._listens = False
        self._again: asyncio.TimerHandle | None = None
        self._said_at = -_SAY_S

    def start(self) -> None:
        self._started = True
        for one in self._sockets:
            one.setblocking(False)
            one.listen(BACKLOG)
        self._listen()

    async def stop(self) -> None:
        self._started = False
        self._pause()
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._arriving:
            await asyncio.wait(self._arriving, timeout=_ARRIVING_S)
        for task in self._arriving:  # they have not said a word, or take long to agree on TLS
            task.cancel()
        if self._arriving:
            await asyncio.wait(self._arriving)

    def _listen(self) -> None:
        self._again = None
        self._listens = True
        for one in self._sockets:
            self._loop.add_reader(one, self._accept, one)

    def _pause(self) -> None:
        if self._listens:
            self._listens = False
            for one in self._sockets:
                self._loop.remove_reader(one)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            if self._door.count + len(self._arriving) >= self.most:
                self._door.close_longest_idle(1 + self.most // 16)
                self._wait(f"{self.most} connections are open")
                return
            try:
                connection, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if not is_shortage(error):
                    raise
                self._door.close_longest_idle(1 + self.most // 16)
                self._wait(str(error))
                return
            task = self._loop.create_task(self._let_in(connection))
            self._arriving.add(task)
            task.add_done_callback(self._arriving.discard)

    async def _let_in(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        try:
            await self._bring(connection)
        except (OSError, asyncio.CancelledError):
            connection.close()  # it is gone already, or no request came of it

    def _wait(self, why: str) -> None:
        self._pause()
        if self._again is None and self._started:
            self._again = self._loop.call_later(_FULL_S, self._listen)
        now = self._loop.time()
        if now - self._said_at >= _SAY_S:
            self._said_at = now
            self._emit(events.CONNECTIONS_FULL, most=self.most, reason=why)
