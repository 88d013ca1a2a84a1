# SPDX-License-Identifier: Apache-2.0
"""aiohttp's low-level server behind a gate: it gets one request at a time, its head whole and within bounds.

The gate finds the end of a head, and follows the framing that aiohttp has read from it to the end of the body; chunks
are framed anew. Where the two do not agree, nothing more is read. What cannot be read is refused as any other request
is: in the form of all errors, with its line in the log.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any, cast

from aiohttp import hdrs, web
from aiohttp.http import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from vllm_gateway.api import aiohttp_inside
from vllm_gateway.api.answers import name_server
from vllm_gateway.api.begun_head import (
    END,
    MAX_FIELDS,
    BegunHead,
    Blanks,
    Fate,
    request_line_of,
    too_large,
    too_slow,
    unreadable,
)
from vllm_gateway.api.buffers import Pace
from vllm_gateway.api.errors import ApiError
from vllm_gateway.api.guests import MAX_AHEAD_BYTES, Door
from vllm_gateway.api.journal import Progress, request_id_of
from vllm_gateway.relay import CarriedResponse
from vllm_gateway.relay.framing import LAST_CHUNK, BadFraming, Chunked, Framing, Length, chunk
from vllm_gateway.telemetry.cut import cut

aiohttp_inside.check()

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_REQUEST_LINE = re.compile(rb"[A-Z]+ [^\x00-\x20\x7f]++ HTTP/1\.[01]\r\n")
_MISLEADING = (
    (re.compile(rb"\r\nHost:[ \t]*+\r\n", re.IGNORECASE), "its Host is empty"),
    (
        re.compile(rb"\r\nTransfer-Encoding:(?![ \t]*+chunked[ \t]*+\r\n)", re.IGNORECASE),
        "Transfer-Encoding is not chunked",
    ),
)
"""What aiohttp takes, and another one may take in another way."""
_NEVER_S = 1e9
"""aiohttp's own timer of idle connections: the door has one for both lanes."""


class _Connection(web.RequestHandler):
    def __init__(self, server: web.Server, door: Door, **options: Any) -> None:
        super().__init__(server, **options)
        self._door = door
        self._begun: BegunHead | None = None
        self._body: Framing | None = None  # of the request at hand, as long as some of it is to come
        self._payload: StreamReader = EMPTY_PAYLOAD  # where aiohttp puts it
        self._in_work = False  # the request at hand, its body perhaps still to come
        self._unread = b""  # a head that aiohttp could not read
        self._blanks = Blanks()
        self._last = False  # no request is read after the one at hand
        self._ahead = bytearray()  # what has come of the requests after it
        self.pace: Pace | None = None  # of what has come of a head, or of the requests after it
        self._holds = False  # reads no more: the requests ahead are more than are kept
        self._wire: asyncio.Transport | None = None  # until the connection is lost
        self._quiet_since = door.loop.time()
        self._sends_page = False
        self._unsent, self._unsent_since = 0, 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = cast(asyncio.Transport, transport)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._wire = None
        self._begun = None
        self._door.buffers.keep(self, 0)
        super().connection_lost(exc)

    # --- What comes

    def data_received(self, data: bytes) -> None:
        if not data:
            super().data_received(data)  # aiohttp goes on with what it has put aside
        elif self._body is not None and not self._ahead:
            self._ahead += self._take_body(self._body, data)
            self._go_on()
        else:
            self._ahead += data
            self._go_on()

    def _go_on(self) -> None:
        """Takes what has come as far as it can be taken now."""
        while self._ahead and not self._takes_no_more:
            data = bytes(self._ahead)
            if self._body is not None:
                self._ahead = bytearray(self._take_body(self._body, data))
            elif not self._in_work:
                self._ahead.clear()
                self._take_head(data)
            else:
                break
        if self._takes_no_more:
            self._ahead.clear()
        self._hold(len(self._ahead) > MAX_AHEAD_BYTES)
        self._door.buffers.keep(self, len(self._ahead) + (self._begun.size if self._begun is not None else 0))

    def make_way(self, error: ApiError) -> None:
        if self._begun is not None:
            self._refuse(error, self._begun.data)
        else:  # the client finds its connection closed before they are answered, and asks again
            self._last = True
            self._ahead.clear()

    @property
    def _takes_no_more(self) -> bool:
        return self._last or self._close or self._force_close

    def _hold(self, holds: bool) -> None:
        """Reads no more, or again, unless aiohttp has reasons of its own not to."""
        if self.transport is not None and (holds or (self._holds and not self._reading_paused)):
            self._holds = holds
            self.transport.pause_reading() if holds else self.transport.resume_reading()

    def _take_head(self, data: bytes) -> None:
        if self._begun is None:
            data, blanks = data.lstrip(b"\r\n"), data  # what some clients send after a body
            if not data:
                if self._blanks.are_too_many(len(blanks), self._quiet_since):
                    self._refuse(unreadable("line ends and no head"), b"")
                return
            self._begun = BegunHead(self._door.bounds.head_bytes, self._door.loop.time())
        fate = self._begun.add(data)
        if fate is Fate.MORE:
            return
        seen, self._begun = self._begun.data, None
        if fate is Fate.TOO_LARGE:
            self._refuse(too_large(self._door.bounds.head_bytes), seen)
        elif fate is Fate.NO_HEAD:
            self._refuse(unreadable(), seen)
        else:
            end = seen.index(END) + len(END)
            self._ahead += seen[end:]
            self._give_head(seen[:end])

    def _give_head(self, head: bytes) -> None:
        if _REQUEST_LINE.match(head) is None:  # aiohttp takes others
            self._refuse(unreadable(), head)
            return
        for pattern, why in _MISLEADING:
            if pattern.search(head) is not None:
                self._refuse(unreadable(why), head)
                return
        before = len(self._messages)
        super().data_received(head)
        if len(self._messages) == before:
            self._refuse(unreadable(), head)
            return
        self._in_work = True
        message, payload = self._messages[-1]
        if not isinstance(message, RawRequestMessage):  # aiohttp could not read it, and says so
            self._last = True
            self._unread = head
            return
        self._payload = payload
        if payload is EMPTY_PAYLOAD:
            return
        if message.chunked:
            self._body = Chunked()
        elif (length := message.headers.get(hdrs.CONTENT_LENGTH)) is not None:
            self._body = Length(int(length))
        else:
            self._last = True  # CONNECT: it would have no end

    def _take_body(self, body: Framing, data: bytes) -> bytes:
        """What comes after it."""
        chunks: list[bytes] = []
        try:
            size = body.feed(data, chunks) if isinstance(body, Chunked) else body.feed(data)
        except BadFraming as error:
            self._spoil(str(error))
            return b""
        before = len(self._messages)
        super().data_received(_chunked_anew(chunks, body) if isinstance(body, Chunked) else data[:size])
        if len(self._messages) > before:
            self._messages.pop()
            self._spoil("its body is malformed")
            return b""
        if body.done:
            self._body = None
            if not (self._payload.is_eof() or self._reading_paused):
                self._spoil("its body has no end")
        elif self._payload.is_eof():
            self._spoil("its body ends before its end")
        return data[size:]

    def _spoil(self, why: str) -> None:
        """The body at hand cannot be read to its end: whoever reads it is told, and it was the last one."""
        self._last = True
        self._body = None
        if self._in_work and self._payload.exception() is None:
            self._payload.set_exception(unreadable(why))
        else:
            self.force_close()

    def _refuse(self, error: ApiError, seen: bytes) -> None:
        """Nothing is in work."""
        if (transport := self._part()) is not None:
            self._door.refuse(transport, error, seen)

    def _say_farewell(self) -> None:
        """The last reply has been written, and more may come than it answers. aiohttp finds nothing to close."""
        transport, self.transport = self.transport, None
        self._last = True
        if transport is not None:
            self._door.loop.call_soon(self._leave, transport)

    def _leave(self, transport: asyncio.Transport) -> None:
        if self._wire is not None:
            self.connection_lost(None)
            self._door.say_farewell(transport)

    def _part(self) -> asyncio.Transport | None:
        """The connection is not aiohttp's any more."""
        transport, self.transport = self.transport, None
        self._last = True
        if transport is not None:
            self.connection_lost(None)
        return transport

    # --- What is answered

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if self._has_much_to_come:
            self._last = True  # aiohttp would read it all
        if self._last:
            resp.force_close()
        self._sends_page = not isinstance(resp, CarriedResponse)
        if self._sends_page:
            name_server(resp)
        try:
            finished = await super().finish_response(request, resp, start_time)
        finally:
            self._sends_page = self._in_work = False
            self._quiet_since = self._door.loop.time()
        if self._last or (self._ahead and not resp.keep_alive):
            self._say_farewell()
        elif resp.keep_alive:
            self._door.loop.call_soon(self._go_on)
        else:
            self._last = True
        return finished

    @property
    def _has_much_to_come(self) -> bool:
        """Of the body of the request that is answered."""
        body = self._body
        return body is not None and not (isinstance(body, Length) and body.left <= MAX_AHEAD_BYTES)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 400,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Always the last reply of its connection: where the next request begins is not known.

        `request` only stands for what came: it has neither method nor path.
        """
        if request.writer.output_size > 0:
            raise ConnectionError("a reply has begun; nothing can be said after it")
        said = (message or "").partition("\n")[0].rstrip(": ")
        error = unreadable(cut(said)) if said else unreadable()
        now, client = self._door.loop.time(), request.remote or ""
        progress = Progress(request_id_of(None), *request_line_of(self._unread), now, client)
        progress.outcome, progress.status = error.code, error.status
        self._door.journal.finished(progress)
        response = error.response(progress)
        response.force_close()
        return response

    # --- The ends

    @property
    def idle_since(self) -> float | None:
        return None if self._in_work or self._begun or self._body or self._last else self._quiet_since

    def check_time(self, now: float) -> None:
        bounds = self._door.bounds
        if self._wire is None:
            return
        if not self._in_work or self._sends_page:
            self._check_client(self._wire, now)
        if self._begun is not None and now - self._begun.since > bounds.head_s:
            self._refuse(too_slow(bounds.head_s), self._begun.data)
        elif self.idle_since is not None and now - self._quiet_since > bounds.idle_s:
            self.force_close()

    def _check_client(self, wire: asyncio.Transport, now: float) -> None:
        """Whether it takes a reply of the gateway's own, be it the last one; with engines' replies the relay does."""
        unsent = wire.get_write_buffer_size()
        if not unsent or unsent != self._unsent:
            self._unsent, self._unsent_since = unsent, now
        elif self._door.bounds.client_s is not None and now - self._unsent_since > self._door.bounds.client_s:
            wire.abort()

    def close_if_idle(self) -> None:
        if self.idle_since is not None:
            self.force_close()

    def abort(self) -> None:
        if self._wire is not None:
            self._wire.abort()


def _chunked_anew(chunks: list[bytes], body: Chunked) -> bytes:
    """Without extensions, and without trailers: aiohttp would take the last one for a header of the next request."""
    data = b"".join(chunks)
    return (chunk(data) if data else b"") + (LAST_CHUNK if body.done else b"")


class AiohttpServer(web.Server):
    def __init__(self, handler: Handler) -> None:
        super().__init__(
            handler,
            access_log=None,
            handler_cancellation=True,
            auto_decompress=False,
            keepalive_timeout=_NEVER_S,
        )

    def connection(self, door: Door) -> web.RequestHandler:
        """A protocol for a connection of this lane."""
        size = door.bounds.head_bytes
        limits = {"max_line_size": size, "max_field_size": size, "max_headers": MAX_FIELDS}
        return _Connection(self, door, loop=self._loop, **limits, **self._kwargs)
