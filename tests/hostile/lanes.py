# SPDX-License-Identifier: Apache-2.0
"""Three readers of what a client sends: the door with both lanes, aiohttp's lane alone, and h11 as the reference."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import h11
from aiohttp import web

from vllm_gateway.api.buffers import Buffers
from vllm_gateway.api.cors import NO_CORS
from vllm_gateway.api.errors import ApiError
from vllm_gateway.api.front_door import FrontDoor
from vllm_gateway.api.guests import Bounds
from vllm_gateway.api.journal import Journal, Progress
from vllm_gateway.api.request_head import RequestHead
from vllm_gateway.api.server import Api
from vllm_gateway.relay import Carried, Client

_TURNS = 40
"""Of the loop, that a request takes at most."""


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    headers: tuple[tuple[bytes, bytes], ...]
    """Lower-case names; without the body's length, which the fast lane keeps elsewhere; encodings as h11 gives them."""
    body: bytes


@dataclass
class Read:
    """What a reader has made of it."""

    requests: list[Request] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)
    """By the log."""
    refused: bool = False
    """It reads no more, because it did not understand."""


def _headers(given: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[bytes, bytes], ...]:
    lowered = [(name.lower(), value) for name, value in given if name.lower() != b"content-length"]
    return tuple((name, value.lower() if name == b"transfer-encoding" else value) for name, value in lowered)


class Wire(asyncio.Transport):
    """A connection whose client takes everything at once."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: Any = None
        self.written = b""
        self.closing = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        """More comes all the same: nobody may rely on its end."""

    resume_reading = pause_reading

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            asyncio.get_running_loop().call_soon(lambda: self.protocol.connection_lost(None))

    abort = close


class Door(FrontDoor):
    """Takes any path, and answers every request at once."""

    def __init__(self, read: Read, *, fast: bool) -> None:
        journal = Journal(lambda *_, **__: None, lambda line: None)
        api = SimpleNamespace(
            handle=self._handle,
            journal=journal,
            bounds=Bounds(),
            inference=self,
            opened=asyncio.Event(),
            max_body=1 << 20,
            buffers=Buffers(1 << 30, asyncio.get_running_loop().time),
        )
        super().__init__(cast(Api, api))
        self._read = read
        self._fast = fast
        self.stopping = False

    def admit(self, head: RequestHead, length: int, peer: str) -> Any:
        return (peer, peer, NO_CORS) if self._fast else None

    async def serve(self, client: Client, body: bytes, caller: str, progress: Progress) -> Carried:
        """As the fast lane's inference."""
        await asyncio.sleep(0)
        self._take(client.method, client.target, client.raw_headers, body)
        return Carried(200, 1, 0.0, True, None, client.keep_alive, True)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """As the API, for aiohttp's lane."""
        try:
            body = await request.content.read()
        except ApiError as error:
            self._read.refused = True
            return error.response(Progress("r", request.method, request.path, 0.0))
        self._take(request.method, request.raw_path, request.raw_headers, body)
        return web.Response()

    def _take(self, method: str, target: str, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        self._read.requests.append(Request(method, target, _headers(headers), bytes(body)))


async def _feed(parts: Sequence[bytes], *, fast: bool) -> Read:
    read = Read()
    door = Door(read, fast=fast)
    finished = door.journal.finished

    def note(progress: Progress) -> None:
        read.outcomes.append(progress.outcome)
        read.refused = read.refused or progress.outcome in {"bad_request", "head_too_large"}
        finished(progress)

    door.journal = door._api.journal = cast(Journal, SimpleNamespace(finished=note, metrics=door.journal.metrics))
    wire = Wire()
    wire.protocol = door()
    wire.protocol.connection_made(wire)
    for part in parts:
        if wire.closing:
            break
        wire.protocol.data_received(part)
        await asyncio.sleep(0)
    settled = 0
    while settled < _TURNS:
        before = len(read.requests)
        await asyncio.sleep(0)
        settled = settled + 1 if len(read.requests) == before else 0
    wire.close()
    await asyncio.sleep(0)
    await door.shutdown(0.1)
    return read


def both_lanes(parts: Sequence[bytes]) -> Read:
    return asyncio.run(_feed(parts, fast=True))


def aiohttp_lane(parts: Sequence[bytes]) -> Read:
    return asyncio.run(_feed(parts, fast=False))


def reference(sent: bytes) -> Read:
    """What h11 reads; like us, it is to skip line ends before a request."""
    read = Read()
    server = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    rest = sent
    while True:
        rest = rest.lstrip(b"\r\n")
        if not rest:
            return read
        server.receive_data(rest)
        try:
            request = _next_request(server)
        except h11.RemoteProtocolError:
            read.refused = True
            return read
        if request is None:
            return read
        read.requests.append(request)
        server.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
        server.send(h11.EndOfMessage())
        if server.our_state is h11.MUST_CLOSE or server.their_state is h11.MUST_CLOSE:
            return read
        rest = bytes(server.trailing_data[0])
        server = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)


def _next_request(server: h11.Connection) -> Request | None:
    """None: more would have to come."""
    head, body = None, b""
    while True:
        event = server.next_event()
        if isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None
            headers = _headers([(bytes(name), bytes(value)) for name, value in head.headers])
            return Request(head.method.decode(), head.target.decode(), headers, bytes(body))
        else:
            return None
