# SPDX-License-Identifier: Apache-2.0
"""Wherever the reads happen to split, the same requests are read, and the same bytes go over to aiohttp."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_gateway.api.buffers import Buffers
from vllm_gateway.api.cors import NO_CORS, Cors
from vllm_gateway.api.errors import ApiError
from vllm_gateway.api.front_door import FrontDoor
from vllm_gateway.api.guests import Bounds
from vllm_gateway.api.journal import Journal, Progress
from vllm_gateway.api.request_head import RequestHead
from vllm_gateway.api.visitor import Visitor
from vllm_gateway.relay import Carried, Client

BODY = b'{"model":"m"}'
PLAIN = b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 13\r\n\r\n" + BODY
LARGE = b"POST /v1/y HTTP/1.1\r\nHost: x\r\nX-A: b\r\nContent-Length: 4000\r\n\r\n" + b"\r\n\r\n" * 1000
TRICKY = b"POST /v1/z HTTP/1.1\r\nHost: x\r\nX: POST /v1/x\r\nContent-Length: 2\r\n\r\n\r\n"
OTHERS = [
    b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /v1/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 13\r\nExpect: 100-continue\r\n\r\n",
    b"POST /v1/x HTTP/1.1\r\nHost: x\r\nX: %b\r\nContent-Length: 13\r\n\r\n" % (b"y" * 20_000),
]
REFUSED = [b"POST /v2\n", b"hello", b"POST /v1/x HTTP/1.1\r\nX: " + b"y" * 70_000]


class Wire:
    """Both sides of a visitor: a transport that keeps nothing, a door that writes down who came with what."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, list[tuple[bytes, bytes]], bytes]] = []
        self.handed_over = b""
        self.refused = 0
        self.bounds = Bounds()
        self.loop = asyncio.get_running_loop()
        self.closing = False
        self.inference = self
        self.buffers = Buffers(1 << 30, self.loop.time)
        self.journal = Journal(self.nothing, self.nothing)
        self.protocol: Any = Visitor(cast(FrontDoor, self))
        self.protocol.connection_made(cast(asyncio.Transport, self))

    async def serve(self, client: Client, body: bytes, caller: str, progress: Progress) -> Carried:
        await asyncio.sleep(0)
        self.requests.append((client.target, list(client.raw_headers), body))
        return Carried(200, 1, 0.0, True, None, True, True)

    def admit(self, head: RequestHead, length: int, peer: str) -> tuple[str, str, Cors]:
        return peer, peer, NO_CORS

    def aiohttp_protocol(self) -> Any:
        return SimpleNamespace(connection_made=lambda transport: None, data_received=self._take_over)

    def _take_over(self, data: bytes) -> None:
        self.handed_over += data

    def refuse(self, transport: asyncio.Transport, error: ApiError, seen: bytes) -> None:
        self.refused += 1
        self.protocol = SimpleNamespace(data_received=lambda data: None)

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_extra_info(self, name: str) -> None:
        return None

    def is_closing(self) -> bool:
        return False

    def nothing(self, *_: object) -> None: ...

    enter = leave = pause_reading = resume_reading = close = nothing


async def read(parts: list[bytes]) -> tuple[list[tuple[str, list[tuple[bytes, bytes]], bytes]], bytes, int]:
    wire = Wire()
    for part in parts:
        wire.protocol.data_received(part)
        await asyncio.sleep(0)
    for _ in range(50):  # each request takes a few turns of the loop
        await asyncio.sleep(0)
    return wire.requests, wire.handed_over, wire.refused


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from([PLAIN, LARGE, TRICKY]), max_size=4),
    st.sampled_from([b"", *OTHERS, *REFUSED]),
    st.lists(st.integers(0, 10_000), max_size=12),
)
def test_any_split_reads_the_same(requests: list[bytes], last: bytes, cuts: list[int]) -> None:
    whole = b"".join(requests) + last
    places = sorted({cut % (len(whole) + 1) for cut in cuts})
    parts = [whole[a:b] for a, b in zip([0, *places], [*places, len(whole)], strict=True)]
    expected = [(request.split(b" ")[1].decode(), request.partition(b"\r\n\r\n")[2]) for request in requests]
    for found, handed_over, refused in (asyncio.run(read(parts)), asyncio.run(read([whole]))):
        assert [(target, body) for target, _, body in found] == expected
        assert (handed_over, refused) == ((b"", 1) if last in REFUSED else (last, 0))


def test_every_split_of_one_request() -> None:
    whole = asyncio.run(read([TRICKY]))
    assert len(whole[0]) == 1
    for cut in range(1, len(TRICKY)):
        assert asyncio.run(read([TRICKY[:cut], TRICKY[cut:]])) == whole
