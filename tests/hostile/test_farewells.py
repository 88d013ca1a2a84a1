# SPDX-License-Identifier: Apache-2.0
"""Who is refused while it still sends reads why: its connection is not reset under the reply."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.integration.front.house import LANES, House, a_request, house
from tests.integration.relay.wire import OK, answering, instance
from vllm_gateway.api import farewell

MIB = 1 << 20
EACH_LANE = pytest.mark.parametrize("lane", LANES)


@asynccontextmanager
async def client_of(gateway: House) -> AsyncIterator[socket.socket]:
    with socket.socket() as client:
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", gateway.port))
        yield client


async def goes_on_sending(client: socket.socket, data: bytes) -> None:
    """Raises ConnectionError if it is told to stop by a reset: then clients do not look for a reply."""
    for begin in range(0, len(data), 64 << 10):
        await asyncio.get_running_loop().sock_sendall(client, data[begin : begin + (64 << 10)])
        await asyncio.sleep(0.001)


async def reads(client: socket.socket) -> bytes:
    """All there is, to an orderly end."""
    seen = b""
    while data := await asyncio.get_running_loop().sock_recv(client, 65536):
        seen += data
    return seen


@EACH_LANE
async def test_a_body_that_came_too_slowly(lane: str) -> None:
    request = a_request(b'{"model":"m","x":"' + b"y" * MIB + b'"}', lane=lane)
    async with house(stall_s=0.2, max_body=2 * MIB) as gateway, client_of(gateway) as client:
        await goes_on_sending(client, request[:1000])
        assert (await gateway.line())["outcome"] == "body_timeout"
        await goes_on_sending(client, request[1000:])
        assert (await reads(client)).startswith(b"HTTP/1.1 408 ")


@EACH_LANE
async def test_a_body_for_which_there_is_no_room(lane: str) -> None:
    request = a_request(b'{"model":"m","x":"' + b"y" * MIB + b'"}', lane=lane)
    async with house(max_buffered=300 << 10, max_body=2 * MIB) as gateway, client_of(gateway) as client:
        await goes_on_sending(client, request)
        assert (await reads(client)).startswith(b"HTTP/1.1 503 ")
        assert (await gateway.line())["outcome"] == "buffers_full"
        assert gateway.api.buffers.held == 0


@EACH_LANE
@pytest.mark.parametrize(
    "head",
    [b"Content-Length: 100000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\nffffffff\r\n"],
    ids=["length", "chunked"],
)
async def test_what_comes_behind_a_refusal_is_not_read_for_long(
    lane: str, head: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(farewell, "MOST_BYTES", MIB)
    monkeypatch.setattr(farewell, "LINGER_S", 0.5)
    sent = 0
    async with house(max_body=MIB) as gateway, client_of(gateway) as client:
        await goes_on_sending(client, b"POST /v1/x HTTP/1.1\r\nHost: x\r\n" + LANES[lane] + head)
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(10):
                while True:
                    await asyncio.get_running_loop().sock_sendall(client, b"y" * MIB)
                    sent += 1
        assert sent < 24, "what the sockets hold, and a MiB"
        assert (await gateway.line())["outcome"] == "body_too_large"


@EACH_LANE
async def test_requests_after_the_one_that_was_to_be_the_last(lane: str) -> None:
    last = a_request(lane=lane, headers=b"Connection: close\r\n")
    async with instance(answering(OK)) as engine, house(engine.port) as gateway, client_of(gateway) as client:
        await goes_on_sending(client, last + a_request(lane=lane) * 5000)
        assert (await reads(client)).endswith(b"\r\n\r\nok")
