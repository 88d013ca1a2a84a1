# SPDX-License-Identifier: Apache-2.0
"""Connections to instances: one protocol object each, kept alive in a pool while it is idle and clean."""

import asyncio
import socket
from typing import Protocol, cast

from vllm_gateway.routing import Address

_FULL_PAUSE_S = 0.05


class Receiver(Protocol):
    """Who gets what comes over a connection while it is in use."""

    def received(self, data: bytes) -> None: ...

    def lost(self, error: Exception | None) -> None:
        """The instance closed the connection (None) or it broke."""


class Connection(asyncio.Protocol):
    """One connection to an instance: in use by one receiver, or idle in the pool, or closed."""

    __slots__ = ("_pool", "_receiver", "address", "idle_since", "transport")

    transport: asyncio.Transport

    def __init__(self, pool: "Pool", address: Address) -> None:
        self.address = address
        self.idle_since = 0.0
        self._pool = pool
        self._receiver: Receiver | None = None

    def use(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def release(self, *, clean: bool) -> None:
        """Ends the use: back to the pool if nothing of the exchange is left on the wire, else closed at once."""
        self._receiver = None
        if clean and not self.transport.is_closing() and self.transport.get_write_buffer_size() == 0:
            self._pool.put(self)
        else:
            self.transport.abort()

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        if self._receiver is not None:
            self._receiver.received(data)
        else:
            self._close_idle()  # nobody asked: whatever it is, the next request must not take it for its reply

    def eof_received(self) -> None:
        # Closed at once even with a request's body unsent, which the instance would not read any more.
        self._ended(None)
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended(exc)

    def _ended(self, error: Exception | None) -> None:
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.lost(error)
        else:
            self._pool.discard(self)

    def _close_idle(self) -> None:
        self._pool.discard(self)
        self.transport.abort()


class Pool:
    """Idle connections by address, the last used first: those beyond what the load needs grow old and are closed."""

    __slots__ = ("_closed", "_idle", "_loop", "_max_idle", "_max_idle_s")

    def __init__(self, loop: asyncio.AbstractEventLoop, *, max_idle: int, max_idle_s: float) -> None:
        self._loop = loop
        self._max_idle = max_idle
        self._max_idle_s = max_idle_s
        self._idle: dict[Address, list[Connection]] = {}
        self._closed = False

    def __len__(self) -> int:
        return sum(map(len, self._idle.values()))

    async def open(self, address: Address) -> Connection:
        """A new connection. Raises OSError."""
        _check_guard(address)
        if address.path:
            sock = await _connected_unix(address.path)
            _, connection = await self._loop.create_unix_connection(lambda: Connection(self, address), sock=sock)
        else:
            _, connection = await self._loop.create_connection(
                lambda: Connection(self, address), address.host, address.port
            )
        try:
            _check_guard(address)  # who listens now has listened all the while, or was not let in between
        except OSError:
            connection.transport.abort()
            raise
        return connection

    def take(self, address: Address) -> Connection | None:
        """An idle connection that looks alive; the caller must still expect it to be stale."""
        idle = self._idle.get(address)
        if not idle:
            return None
        oldest_good = self._loop.time() - self._max_idle_s
        while idle:
            connection = idle.pop()
            if connection.idle_since >= oldest_good and not connection.transport.is_closing():
                return connection
            connection.transport.abort()
        return None

    def put(self, connection: Connection) -> None:
        idle = self._idle.setdefault(connection.address, [])
        if self._closed or len(idle) >= self._max_idle:
            connection.transport.abort()
            return
        connection.idle_since = self._loop.time()
        idle.append(connection)

    def discard(self, connection: Connection) -> None:
        idle = self._idle.get(connection.address)
        if idle and connection in idle:
            idle.remove(connection)

    def sweep(self) -> None:
        """Closes what has been idle for too long."""
        oldest_good = self._loop.time() - self._max_idle_s
        for address, idle in list(self._idle.items()):
            while idle and idle[0].idle_since < oldest_good:
                idle.pop(0).transport.abort()
            if not idle:
                del self._idle[address]

    def forget(self, address: Address) -> None:
        for connection in self._idle.pop(address, ()):
            connection.transport.abort()

    def close(self) -> None:
        self._closed = True
        for address in list(self._idle):
            self.forget(address)


def _check_guard(address: Address) -> None:
    if address.guard is not None and not address.guard.holds():
        raise ConnectionRefusedError(f"it is not the instance that listens at {address}")


async def _connected_unix(path: str) -> socket.socket:
    """A Unix socket connects at once or not at all: event loops take a full backlog for a connection, or for an error.

    Raises OSError.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        while True:
            try:
                sock.connect(path)
            except BlockingIOError:
                await asyncio.sleep(_FULL_PAUSE_S)
            else:
                return sock
    except BaseException:
        sock.close()
        raise
