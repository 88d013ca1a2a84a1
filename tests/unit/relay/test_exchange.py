# SPDX-License-Identifier: Apache-2.0
"""When two things end at once: whose end it is."""

import asyncio
from typing import cast

import pytest

from vllm_gateway.relay import Client, ClientStream, Instructions, Limits
from vllm_gateway.relay.exchange import TURN_BYTES, Exchange
from vllm_gateway.relay.followed import FollowedExchange
from vllm_gateway.relay.upstream import Connection

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Wire:
    def __init__(self) -> None:
        self.written = b""
        self.closing = False
        self.reads: object = True  # an object: mypy takes a bool for what it was last seen to be

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True


class Upstream:
    def __init__(self) -> None:
        self.transport = Wire()
        self.clean: bool | None = None

    def release(self, *, clean: bool) -> None:
        self.clean = clean


class Asking:
    method = "POST"
    http_1_1 = True
    keep_alive = True
    writing_paused = False

    def __init__(self) -> None:
        self.transport = Wire()


class Follows:
    """The stream is whole with `end`."""

    done = False
    failed: str | None = None
    is_between_events = False

    def feed(self, payload: bytes) -> bytes:
        self.done = self.done or b"end" in payload
        return payload

    def feed_chunk(self, chunk: bytes) -> bytes | None:
        return None


def exchange(followed: bool) -> tuple[Exchange, Asking, Upstream]:
    client, upstream, loop = Asking(), Upstream(), asyncio.get_running_loop()
    instructions, connection = Instructions(Limits()), cast(Connection, upstream)
    if followed:
        stream = ClientStream(cast(Client, client), Follows())
        return FollowedExchange(stream, instructions, loop, connection), client, upstream
    wire = cast(asyncio.Transport, client.transport)
    return Exchange(cast(Client, client), wire, instructions, loop, connection), client, upstream


@pytest.mark.parametrize("followed", [False, True])
@pytest.mark.parametrize("last", [b"3\r\nend\r\n0\r\n\r\n", b"nonsense", None])
async def test_a_client_that_is_gone_is_the_reason(followed: bool, last: bytes | None) -> None:
    made, client, _ = exchange(followed)
    made.received(HEAD + b"2\r\nhi\r\n")
    client.transport.closing = True
    if last is None:
        made.lost(None)
    else:
        made.received(last)
    assert made.carried.broken == "client_gone"


@pytest.mark.parametrize("data", [b"nonsense\r\n\r\n", None])
async def test_so_it_is_before_the_reply(data: bytes | None) -> None:
    made, client, _ = exchange(followed=False)
    client.transport.closing = True
    if data is None:
        made.lost(ConnectionResetError())
    else:
        made.received(data)
    assert made.failure is not None and made.failure.reason == "client_gone"


@pytest.mark.parametrize("followed", [False, True])
async def test_a_long_read_is_taken_in_turns_and_nothing_else_is_read_meanwhile(followed: bool) -> None:
    made, client, upstream = exchange(followed)
    made.received(HEAD)
    made.received(b"1\r\nx\r\n" * TURN_BYTES)
    assert not upstream.transport.reads
    first = len(client.transport.written)
    assert first < 2 * TURN_BYTES
    while not upstream.transport.reads:
        await asyncio.sleep(0)
    assert len(client.transport.written) > 3 * first
    made.received(b"3\r\nend\r\n0\r\n\r\n")
    assert made.carried.complete and upstream.clean


async def test_one_chunk_however_long_is_taken_at_once() -> None:
    made, client, upstream = exchange(followed=False)
    made.received(HEAD + b"%x\r\n" % (8 * TURN_BYTES))
    made.received(b"x" * 8 * TURN_BYTES)
    assert upstream.transport.reads
    assert len(client.transport.written) > 8 * TURN_BYTES


async def test_what_came_before_the_connection_broke_goes_on_first() -> None:
    made, client, _ = exchange(followed=False)
    made.received(HEAD)
    made.received(b"1\r\nx\r\n" * TURN_BYTES)
    made.lost(ConnectionResetError())
    assert client.transport.written.count(b"1\r\nx\r\n") == TURN_BYTES
    assert made.carried.broken == "upstream_reset"


async def test_bytes_after_the_reply_spoil_its_connection_however_many_they_are() -> None:
    made, _, upstream = exchange(followed=False)
    made.received(HEAD + b"0\r\n\r\n" + b"x" * 4 * TURN_BYTES)
    assert made.carried.complete
    assert upstream.clean is False
