# SPDX-License-Identifier: Apache-2.0
"""One request for a stream of events on one connection: when the instance fails, the client's stream stays open.

What goes on to the client is decided by the stream's follower; another instance can then go on with the stream.
"""

import asyncio
from collections.abc import Callable

from vllm_gateway.relay.exchange import TURN_BYTES, Exchange
from vllm_gateway.relay.framing import BadFraming, Chunked
from vllm_gateway.relay.heads import ReplyHead
from vllm_gateway.relay.stream import ClientStream
from vllm_gateway.relay.types import Carried, Instructions, NoStream
from vllm_gateway.relay.upstream import Connection

MAX_ERROR_BYTES = 64 * 1024


class FollowedExchange(Exchange):
    """As `Exchange`, but what is no stream passes unchanged only while the client has no head."""

    __slots__ = ("_error", "_feed_chunk", "_follows", "_stream")

    def __init__(
        self, stream: ClientStream, instructions: Instructions, loop: asyncio.AbstractEventLoop, connection: Connection
    ) -> None:
        super().__init__(stream.client, stream.transport, instructions, loop, connection)
        self._stream = stream
        self._follows = False
        self._feed_chunk: Callable[[bytes], bytes | None] | None = None  # if the next read may be one whole chunk
        self._error: bytearray | None = None  # the body of a reply that is no stream and comes too late to be passed on

    @property
    def owns_client(self) -> bool:
        return not self._follows

    @property
    def carried(self) -> Carried:
        return self._stream.carried(self.broken, self.first_byte_s) if self._follows else super().carried

    def _begin(self, head: ReplyHead, body: bytes) -> None:
        stream = self._stream
        self._follows = head.is_event_stream and (stream.begun or head.length is None)
        if not self._follows and not stream.begun:
            super()._begin(head, body)
            return
        self._framing = head.framing(self._client.method)
        self._reusable = head.keep_alive and self._framing.self_delimiting
        self._start_body(head, body)
        if not self._follows:
            self._error = bytearray()
        elif not stream.begun:
            stream.begin(head.without(stream.own.names))
        self._pass_on(body)

    def received(self, data: bytes) -> None:
        feed_chunk = self._feed_chunk
        if feed_chunk is None or (chunk := feed_chunk(data)) is None:
            super().received(data)
            return
        self._heard = True
        if self._client_transport.is_closing():
            self._end("client_gone")
            return
        self._client_transport.write(chunk)
        self.bytes_sent += len(chunk)
        if self._instructions.watch is not None:
            self._instructions.watch(chunk)
        if self._client.writing_paused and not self._paused:
            self._pause()

    def _pass_on(self, data: bytes, head: bytes = b"") -> None:
        if not self._follows and self._error is None:
            super()._pass_on(data, head)
            return
        try:
            payload = self._payload(data)
        except BadFraming:
            self._end("bad_reply")
            return
        if self._error is None:
            self._follow(payload)
            return
        self._error += payload[: MAX_ERROR_BYTES - len(self._error)]
        if self._framing.done or len(self._error) >= MAX_ERROR_BYTES:
            self._end(None)

    def _turn_bytes(self) -> int:
        return TURN_BYTES if self._follows else super()._turn_bytes()

    def _payload(self, data: bytes) -> bytes:
        """What has been read, free of framing. Raises BadFraming."""
        payload, used = self._unframed(data)
        self._reusable = self._reusable and used == len(data)
        return payload

    def _follow(self, payload: bytes) -> None:
        """Writes what the follower makes of it to the client."""
        if self._client_transport.is_closing():
            self._end("client_gone")
            return
        if payload and self._began is not None:
            self._tell_began()
        follower = self._stream.follower
        events = follower.feed(payload)
        self._stream.write(events)
        if self._instructions.watch is not None:
            self._instructions.watch(events)
        framing = self._framing
        whole = isinstance(framing, Chunked) and framing.is_between_chunks and follower.is_between_events
        self._feed_chunk = follower.feed_chunk if whole and self._stream.takes_chunks else None
        if follower.failed is not None:
            self._end(follower.failed)
        elif framing.done:
            self._end(None)
        elif self._client.writing_paused and not self._paused:
            self._pause()

    def _end(self, broken: str | None) -> None:
        self._reusable = self._reusable and self._framing.done
        if self._error is not None:
            self.failure = NoStream(self.status, bytes(self._error))
        elif self._follows:
            self._stream.bytes_sent += self.bytes_sent
            follower = self._stream.follower
            if follower.done and not self._client_transport.is_closing():
                broken = None
                self._stream.end()
            elif broken is None:
                broken = "stream_incomplete"
        super()._end(broken)
        if self._follows:
            self.keeps_client = broken is None
