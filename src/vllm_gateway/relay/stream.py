# SPDX-License-Identifier: Apache-2.0
"""The client's side of one stream of events, which may outlive the instance that began it."""

import asyncio
from typing import Protocol

from vllm_gateway.relay.client import Client
from vllm_gateway.relay.framing import LAST_CHUNK, chunk
from vllm_gateway.relay.heads import NO_HEADERS, UNBUFFERED, UNCACHED, OwnHeaders
from vllm_gateway.relay.renaming import Rename, Renaming
from vllm_gateway.relay.types import Carried, ClientGone

_OUR_OWN = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n" + UNBUFFERED + UNCACHED


class Follower(Protocol):
    """Who decides what of an instance's events goes on to the client."""

    @property
    def done(self) -> bool:
        """The client has the last event."""

    @property
    def failed(self) -> str | None:
        """Why the instance's events lead nowhere; nothing of it is with the client."""

    @property
    def is_between_events(self) -> bool:
        """Whether `feed_chunk` may be asked."""

    def feed(self, payload: bytes) -> bytes:
        """Events, or parts of them, as they come; what is to be sent now."""

    def feed_chunk(self, chunk: bytes) -> bytes | None:
        """The same for what is perhaps one chunk with one event, framing included; None if it has to be taken apart."""


class ClientStream:
    """One reply of server-sent events, written in parts: head, events from anywhere, end."""

    __slots__ = (
        "_chunked",
        "_head",
        "_keep_alive",
        "_renaming",
        "begun",
        "bytes_sent",
        "client",
        "ended",
        "follower",
        "own",
        "transport",
    )

    def __init__(
        self, client: Client, follower: Follower, own: OwnHeaders = NO_HEADERS, rename: Rename | None = None
    ) -> None:
        """Raises ClientGone. `follower` may be replaced between two instances."""
        transport = client.transport
        if transport is None or transport.is_closing():
            raise ClientGone
        self.client = client
        self._chunked = client.http_1_1
        self._head = b""  # goes out with the first events
        self._keep_alive = client.keep_alive and client.http_1_1
        self._renaming = None if rename is None else Renaming.of(rename)
        self.own = own
        self.transport: asyncio.Transport = transport
        self.follower = follower
        self.begun = False
        self.ended = False
        self.bytes_sent = 0

    @property
    def takes_chunks(self) -> bool:
        """Whether a chunk can be written as it is: the head is out, the client knows chunks, nothing is renamed."""
        return self._chunked and self.begun and not self._head and self._renaming is None

    @property
    def is_slow(self) -> bool:
        return self.client.writing_paused

    def begin(self, lines: bytes = _OUR_OWN) -> None:
        """The head: the status line, the headers of whoever replies, and ours. It is sent by the next `write`."""
        assert not self.begun
        self.begun = True
        framing = b"Transfer-Encoding: chunked\r\n" if self._chunked else b""
        persistence = b"" if self._keep_alive else b"Connection: close\r\n"
        self._head = b"".join((lines, self.own.lines, self.own.for_client, framing, persistence, b"\r\n"))

    def write(self, events: bytes) -> None:
        assert self.begun and not self.ended
        out, self._head = self._head, b""
        if events and self._renaming is not None:
            events = self._renaming.feed(events)
        if events:
            out += chunk(events) if self._chunked else events
        self._send(out)

    def end(self) -> None:
        """After the last event."""
        assert self.begun and not self.ended
        if self._renaming is not None and (rest := self._renaming.rest()):
            self._send(chunk(rest) if self._chunked else rest)
        self.ended = True
        self._send(LAST_CHUNK if self._chunked else b"")

    def carried(self, broken: str | None, first_byte_s: float = 0.0) -> Carried:
        """What became of it. One that was not ended is of no more use to the client than its connection."""
        keeps_client = self.ended and self._keep_alive
        delimited = self._chunked or self.ended
        return Carried(200, self.bytes_sent, first_byte_s, broken is None, broken, keeps_client, delimited)

    def _send(self, data: bytes) -> None:
        if data and not self.transport.is_closing():
            self.transport.write(data)
            self.bytes_sent += len(data)
