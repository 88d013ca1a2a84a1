# SPDX-License-Identifier: Apache-2.0
"""A small HTTP/1.1 server that looks like uvicorn from outside: bodies, keep-alive, streams, clients that leave.

One `Connection` reads one request at a time and hands it, with a `Reply`, to the handler in a task of its own. When
the client closes the connection, that task is cancelled at once: this is how the engine learns that nobody listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
import traceback
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote

MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 256 * 1024 * 1024
KEEP_ALIVE_S = 5.0
"""uvicorn's: an idle connection is closed after this time."""

PHRASES = {
    200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed",
    413: "Content Too Large", 431: "Request Header Fields Too Large", 500: "Internal Server Error",
    501: "Not Implemented", 503: "Service Unavailable",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    """Names in lower case; of a name that came twice, the last value."""
    body: bytes


Header = tuple[str, str]
Handler = Callable[[Request, "Reply"], Awaitable[None]]


class BadRequestError(Exception):
    """What came is not HTTP, or too large; the connection ends with this status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Reply:
    """What goes back for one request: either `send()`, or `start_stream()`, `write()`... and `end()`."""

    def __init__(self, connection: Connection, *, close: bool, extra_headers: Iterable[Header] = ()) -> None:
        self._connection = connection
        self._close = close
        self.extra_headers: list[Header] = list(extra_headers)
        self.started = False
        self.ended = False
        self.streaming = False

    def send(self, status: int, body: bytes = b"", headers: Iterable[Header] = ()) -> None:
        self.started = True
        self._head(status, [("content-length", str(len(body))), *headers], tail=body)
        self.ended = True

    def start_stream(self, headers: Iterable[Header]) -> None:
        self.started = self.streaming = True
        self._head(200, [*headers, ("transfer-encoding", "chunked")])

    def write(self, data: bytes) -> None:
        if data and not self.ended:
            self._connection.write(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        if self.streaming and not self.ended:
            self._connection.write(b"0\r\n\r\n")
        self.ended = True

    def break_off(self, data: bytes) -> None:
        """Sends these bytes, whatever they are, and closes the connection."""
        self.started = True
        self._connection.write(data)
        self.cut()

    def cut(self, *, reset: bool = False) -> None:
        """Ends the connection in the middle of the reply; `reset` with a TCP reset instead of an orderly close."""
        self.ended = True
        self._connection.cut(reset=reset)

    @property
    def keeps_connection(self) -> bool:
        return self.ended and not self._close

    def _head(self, status: int, headers: list[Header], tail: bytes = b"") -> None:
        lines = [f"HTTP/1.1 {status} {PHRASES.get(status, 'Unknown')}", f"date: {http_date()}", "server: uvicorn"]
        lines += [f"{name}: {value}" for name, value in [*headers, *self.extra_headers]]
        if self._close:
            lines.append("connection: close")
        self._connection.write("\r\n".join([*lines, "\r\n"]).encode("latin-1", "replace") + tail)


class Connection(asyncio.Protocol):
    """One client: bytes in, one request after the other, bytes out."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._said_continue = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        raw: socket.socket = transport.get_extra_info("socket")
        if raw.family != socket.AF_UNIX:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._server.connections.add(self)
        self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._transport = None
        self._stop_idle_timer()
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._stop_idle_timer()  # a request has begun: as long as it takes, as with uvicorn
        self._received += data
        if self._task is None:
            self._next_request()

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def cut(self, *, reset: bool = False) -> None:
        if self._transport is None:
            return
        if reset:
            raw: socket.socket = self._transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()
        else:
            self._transport.close()

    def close_if_idle(self) -> None:
        if self._task is None:
            self.cut()

    def _next_request(self) -> None:
        try:
            parsed = self._parse()
        except (BadRequestError, ValueError, UnicodeDecodeError) as error:
            status = error.status if isinstance(error, BadRequestError) else 400
            Reply(self, close=True).send(status, b"Invalid HTTP request received.", [("content-type", "text/plain")])
            self.cut()
            return
        if parsed is None:
            return
        self._said_continue = False
        request, close = parsed
        self._task = asyncio.get_running_loop().create_task(self._answer(request, close))

    async def _answer(self, request: Request, close: bool) -> None:
        reply = Reply(self, close=close)
        try:
            await self._server.handler(request, reply)
        except asyncio.CancelledError:
            if self._transport is not None:  # not the client's leaving: the server itself stops
                raise
            return
        except Exception:
            traceback.print_exc()
            if not reply.started:
                reply.send(500, b"Internal Server Error", [("content-type", "text/plain; charset=utf-8")])
            self.cut()
            return
        self._task = None
        if not reply.keeps_connection or self._server.stopping:
            self.cut()
        elif self._transport is not None:
            if self._received:
                self._next_request()
            else:
                self._wait_for_request()

    def _parse(self) -> tuple[Request, bool] | None:
        """The next whole request and whether the connection ends after it; None until all of it is here."""
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            if len(self._received) > MAX_HEAD_BYTES:
                raise BadRequestError(431, "head too large")
            return None
        first, *lines = bytes(self._received[:end]).decode("latin-1").split("\r\n")
        method, target, version = first.split(" ")
        pairs = (line.split(":", 1) for line in lines)
        headers = {name.strip().lower(): value.strip() for name, value in pairs}
        found = self._parse_body(headers, end + 4)
        if found is None:
            if headers.get("expect", "").lower() == "100-continue" and not self._said_continue:
                self._said_continue = True
                self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return None
        body, used = found
        del self._received[:used]
        path, _, query = target.partition("?")
        wishes = headers.get("connection", "").lower()
        close = wishes == "close" or (version == "HTTP/1.0" and wishes != "keep-alive")
        return Request(method, unquote(path), dict(parse_qsl(query)), headers, body), close

    def _parse_body(self, headers: dict[str, str], start: int) -> tuple[bytes, int] | None:
        """(body, bytes of the buffer used so far), or None until the body is complete."""
        if "chunked" in headers.get("transfer-encoding", "").lower():
            return self._parse_chunks(start)
        length = int(headers.get("content-length", "0"))
        if not 0 <= length <= MAX_BODY_BYTES:
            raise BadRequestError(413, "body too large")
        if len(self._received) < start + length:
            return None
        return bytes(self._received[start : start + length]), start + length

    def _parse_chunks(self, start: int) -> tuple[bytes, int] | None:
        body = bytearray()
        while True:
            line_end = self._received.find(b"\r\n", start)
            if line_end < 0:
                return None
            size = int(self._received[start:line_end].split(b";")[0], 16)
            start = line_end + 2
            if size == 0:  # trailers, if any, end with an empty line
                end = self._received.find(b"\r\n", start) if self._received[start : start + 2] == b"\r\n" else -1
                if end < 0:
                    end = self._received.find(b"\r\n\r\n", start)
                    return None if end < 0 else (bytes(body), end + 4)
                return bytes(body), start + 2
            if len(body) + size > MAX_BODY_BYTES:
                raise BadRequestError(413, "body too large")
            if len(self._received) < start + size + 2:
                return None
            body += self._received[start : start + size]
            start += size + 2

    def _wait_for_request(self) -> None:
        self._stop_idle_timer()
        self._idle = asyncio.get_running_loop().call_later(KEEP_ALIVE_S, self.close_if_idle)

    def _stop_idle_timer(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None


class HttpServer:
    """Listens on one address; can stop listening and begin again, as the faults need it."""

    def __init__(self, host: str, port: int, handler: Handler, *, uds: str | None = None) -> None:
        """`uds`: the path of a Unix socket, instead of host and port."""
        self.host = host
        self.port = port
        self._uds = uds
        self._was_open = False
        self.handler = handler
        self.connections: set[Connection] = set()
        self.stopping = False
        self._listener: asyncio.Server | None = None
        self._jam = contextlib.ExitStack()

    async def listen(self) -> None:
        """Opens the port (the same one each time) or the socket; does nothing if it is open. Raises OSError."""
        if self._listener is not None or self.stopping:
            return
        self._jam.close()
        loop = asyncio.get_running_loop()
        if self._uds is not None:
            bound = self._bind(self._uds)
            self._listener = await loop.create_unix_server(lambda: Connection(self), sock=bound, backlog=2048)
        else:
            self._listener = await loop.create_server(lambda: Connection(self), self.host, self.port, backlog=2048)
            self.port = self._listener.sockets[0].getsockname()[1]
        self._was_open = True

    def _bind(self, path: str) -> socket.socket:
        """As vLLM does it, what stands there before its start is in the way. Raises OSError."""
        if self._was_open and os.path.exists(path):
            os.unlink(path)
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        bound.bind(path)
        return bound

    def refuse(self) -> None:
        """New connections are refused from now on; those that are open stay."""
        self._jam.close()
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def jam(self) -> None:
        """New connections wait from now on, before a full backlog; those that are open stay."""
        self.refuse()
        if self._uds is not None:
            self._jam.enter_context(self._bind(self._uds)).listen(0)
        else:
            self._jam.enter_context(socket.create_server((self.host, self.port), backlog=0))
        first = self._jam.enter_context(socket.socket(socket.AF_INET if self._uds is None else socket.AF_UNIX))
        first.setblocking(False)
        first.connect_ex((self.host, self.port) if self._uds is None else self._uds)  # there is room for one

    def close(self) -> None:
        """Stops listening and closes what is idle; what is being answered goes on."""
        self.stopping = True
        self.refuse()
        for connection in list(self.connections):
            connection.close_if_idle()


_date = (0, "")


def http_date() -> str:
    """Now, as a date header wants it; made once a second."""
    global _date  # noqa: PLW0603 - a cache of one
    second = int(time.time())
    if _date[0] != second:
        _date = (second, time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(second)))
    return _date[1]
