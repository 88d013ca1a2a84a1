# SPDX-License-Identifier: Apache-2.0
"""A reply to a request by an alias, in which the model is called as the client calls it."""

import asyncio

from vllm_gateway.relay.client import Client
from vllm_gateway.relay.exchange import Exchange
from vllm_gateway.relay.framing import LAST_CHUNK, chunk
from vllm_gateway.relay.heads import ReplyHead, reply_head
from vllm_gateway.relay.renaming import Renaming
from vllm_gateway.relay.types import Instructions
from vllm_gateway.relay.upstream import Connection

_LENGTH = frozenset({b"content-length"})


class RenamedExchange(Exchange):
    """As `Exchange`, but a reply that may name the model goes on in chunks of ours: its length may change."""

    __slots__ = ("_chunked", "_renaming")

    def __init__(
        self,
        client: Client,
        client_transport: asyncio.Transport,
        instructions: Instructions,
        loop: asyncio.AbstractEventLoop,
        connection: Connection,
    ) -> None:
        super().__init__(client, client_transport, instructions, loop, connection)
        self._renaming: Renaming | None = None
        self._chunked = False

    @property
    def self_delimiting(self) -> bool:
        return super().self_delimiting if self._renaming is None else self._chunked

    def _begin(self, head: ReplyHead, body: bytes) -> None:
        client, rename = self._client, self._instructions.rename
        framing = head.framing(client.method)
        if rename is None or framing.done or not head.may_name_model:
            super()._begin(head, body)
            return
        self._renaming = Renaming.of(rename)
        self._framing = framing
        self._unframe = True
        self._chunked = framing.self_delimiting and client.http_1_1
        self._reusable = head.keep_alive and framing.self_delimiting
        self.keeps_client = client.keep_alive and self._chunked
        self._start_body(head, body)
        own = self._instructions.own
        lines = own._replace(names=own.names | _LENGTH)
        persistence = b"" if self.keeps_client else b"close"
        self._pass_on(body, reply_head(head, own=lines, chunked=self._chunked, connection=persistence))

    def _unframed(self, data: bytes) -> tuple[bytes, int]:
        payload, used = super()._unframed(data)
        renaming = self._renaming
        if renaming is None:
            return payload, used
        payload = renaming.feed(payload)
        is_over = self._framing.done
        if is_over:
            payload += renaming.rest()
        if not self._chunked:
            return payload, used
        return (chunk(payload) if payload else b"") + (LAST_CHUNK if is_over else b""), used

    def _end(self, broken: str | None) -> None:
        if broken is None and self._renaming is not None and (rest := self._renaming.rest()):
            self._client_transport.write(rest)  # the connection's end was the reply's
            self.bytes_sent += len(rest)
        super()._end(broken)
