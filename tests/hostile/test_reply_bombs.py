# SPDX-License-Identifier: Apache-2.0
"""Replies that make work: the loop is never busy with one for long, and memory stays bounded."""

import asyncio
import tracemalloc
from typing import TypeAlias

import pytest

from tests.hostile.replies import CHUNKED, HTTP, LAST, STREAM, chunk
from tests.hostile.turns import watched_turns
from tests.integration.front.house import a_request, house
from tests.integration.relay.wire import Peer, Script, instance

LONGEST_TURN_S = 0.05
MOST_BYTES = 40 << 20
"""An event at its limit, the copies that are made of it, and what goes with a connection."""
STREAMING = b'{"model":"m","stream":true,"messages":[]}'
PART = 128 << 10

_OF = b'data: {"id":"1","object":"o","created":1,"model":"m",'
_BEGUN = _OF + b'"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
_IDS = b",".join(b"%d" % (number % 150_000) for number in range(1_000_000))


def events(*parts: bytes) -> bytes:
    return STREAM + b"".join(chunk(part) for part in parts)


Bomb: TypeAlias = tuple[bytes, bytes, int]
"""How the reply begins, and what of it comes again and again until it is so many bytes."""

BOMBS: dict[str, Bomb] = {
    "an event without end": (events(_BEGUN), chunk(b"x" * PART), 62 << 20),
    "an event without end, in tiny chunks": (events(_BEGUN), b"1\r\nx\r\n" * (PART // 6), 2 << 20),
    "an event without end, of carriage returns": (events(_BEGUN), chunk(b"a\r" * (PART // 2)), 16 << 20),
    "an event of objects": (events(_BEGUN, _OF + b'"x":['), chunk(b"{}," * (PART // 3)), 7 << 20),
    "an event of choices": (
        events(_BEGUN, _OF + b'"choices":['),
        chunk(b'{"index":0,"finish_reason":"stop"},' * (PART // 35)),
        7 << 20,
    ),
    "an event of ids": (events(_BEGUN, _OF + b'"x":['), chunk(b'"token_ids":[1],' * (PART // 16)), 7 << 20),
    "an event of quotes": (events(_BEGUN, _OF + b'"x":['), chunk(b'"",' * (PART // 3)), 7 << 20),
    "an event of lines": (events(_BEGUN), chunk(b"a\n" * (PART // 2)), 7 << 20),
    "an event of fields": (events(_BEGUN), chunk(b"data: {}\n" * (PART // 9)), 7 << 20),
    "a prompt's ids": (events(_OF + b'"prompt_token_ids":['), chunk(_IDS[:PART]), 7 << 20),
    "empty events": (events(_BEGUN), chunk(b"\n\n" * (PART // 2)), 512 << 10),
    "events of nothing": (events(_BEGUN), chunk(b"data: \n\n" * (PART // 8)), 512 << 10),
    "events of objects": (events(_BEGUN), chunk(b'data: {"choices":[' + b"{}," * 20_000 + b"{}]}\n\n"), 2 << 20),
    "events of depth": (events(_BEGUN), chunk(b"data: " + b"[" * 60_000 + b"\n\n"), 2 << 20),
    "events of digits": (events(_BEGUN), chunk(b'data: {"x":' + b"9" * 60_000 + b"}\n\n"), 2 << 20),
    "tiny chunks": (CHUNKED, b"1\r\nx\r\n" * (PART // 6), 4 << 20),
    "tiny chunks with extensions": (CHUNKED, b"1;a=b\r\nx\r\n" * (PART // 10), 2 << 20),
    "interim replies": (b"", b"HTTP/1.1 100 \r\n\r\n" * (PART // 17), 1 << 20),
    "interim replies that differ": (
        b"",
        b"".join(b"HTTP/1.1 103 x\r\nA%d: %d\r\n\r\n" % (number, number) for number in range(PART // 30)),
        1 << 20,
    ),
    "lines of a head": (HTTP, b"".join(b"A%d: b\r\n" % number for number in range(PART // 10)), 1 << 20),
    "trailers": (CHUNKED + b"0\r\n", b"X: a\r\n" * (PART // 6), 1 << 20),
}


def evil(begin: bytes, part: bytes, total: int) -> Script:
    async def script(peer: Peer) -> None:
        await peer.message()
        peer.writer.write(begin)
        sent = 0
        while sent < total:
            peer.writer.write(part)
            await peer.writer.drain()
            sent += len(part)
        peer.writer.write(chunk(b"\n\n") + LAST if begin.startswith(STREAM) else b"")
        await peer.writer.drain()

    return script


async def carry(bomb: Bomb) -> bytes:
    """What reaches the client, or the last of it."""
    begin, part, total = bomb
    body = STREAMING if begin.startswith(STREAM) else b'{"model":"m"}'
    async with instance(evil(begin, part, total)) as engine, house(engine.port, same_after_s=0.0) as gateway:
        client = await gateway.connect()
        await client.send(a_request(body, headers=b"Connection: close\r\n"))
        seen = b""
        async with asyncio.timeout(60):
            while read := await client.reader.read(1 << 20):
                seen = (seen + read)[-4096:]
        if b"event_too_long" in seen:
            assert (await gateway.line())["attempts"] == 1
            assert not [what for what in gateway.fleet.heard if what.startswith("suspect")]
            assert gateway.events == ["stream_interrupted"]
        return seen


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
async def test_the_loop_is_busy_with_none_for_long(bomb: Bomb) -> None:
    with watched_turns() as turns:
        assert await carry(bomb)
    assert turns.longest_s < LONGEST_TURN_S


@pytest.mark.parametrize("name", ["an event without end", "an event of objects", "a prompt's ids"])
async def test_memory_is_bounded(name: str) -> None:
    tracemalloc.start()
    try:
        await carry(BOMBS[name])
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < MOST_BYTES


async def test_an_event_over_the_limit_ends_its_stream_with_an_error() -> None:
    seen = await carry(BOMBS["an event without end"])
    assert b'"code":"event_too_long"' in seen
    assert seen.endswith(b"\n\n\r\n" + LAST) and b"[DONE]" not in seen
