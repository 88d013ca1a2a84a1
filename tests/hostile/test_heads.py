# SPDX-License-Identifier: Apache-2.0
"""Each head of the corpus has its outcome in both lanes: first on its connection, later, pipelined, in small pieces."""

import contextlib
from collections.abc import Mapping

import orjson
import pytest

from tests.hostile.heads import BODY, CARRIED, HEAD, HIDDEN, LENGTH, ONLY_HERE, TOO_LARGE, UNREADABLE
from tests.integration.front.house import LANES, a_request, house
from tests.integration.relay.wire import OK, Message, Peer, Script, instance

BEFORE = {"first": b"", "in the fast lane": a_request(), "in aiohttp's lane": a_request(lane="aiohttp")}
PIECES = {"whole": 1 << 30, "in pieces": 7}
UPGRADE = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


def keeping(seen: list[Message]) -> Script:
    async def script(peer: Peer) -> None:
        while True:
            seen.append(await peer.message())
            await peer.send(OK)

    return script


async def send(client: Peer, sent: bytes, piece: int) -> None:
    """The first pieces each in a write of its own; the rest at once."""
    if len(sent) <= piece:
        await client.send(sent)
        return
    parts = [sent[start : start + piece] for start in range(0, 70 * piece, piece)]
    await client.send(*[part for part in parts if part], *([sent[70 * piece :]] if len(sent) > 70 * piece else []))


@pytest.mark.parametrize("piece", PIECES.values(), ids=PIECES.keys())
@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE.keys())
@pytest.mark.parametrize(
    ("corpus", "status", "code"),
    [(UNREADABLE, b"400", "bad_request"), (TOO_LARGE, b"431", "head_too_large")],
    ids=["unreadable", "too large"],
)
async def test_refused(corpus: Mapping[str, bytes], status: bytes, code: str, before: bytes, piece: int) -> None:
    seen: list[Message] = []
    wrong = {}
    async with instance(keeping(seen)) as engine, house(engine.port) as gateway:
        for name, sent in corpus.items():
            count = len(gateway.lines)
            client = await gateway.connect()
            if before:
                assert (await client.ask(before)).body == b"ok"
            with contextlib.suppress(ConnectionError, RuntimeError):  # nobody reads any more
                await send(client, sent + HIDDEN, piece)
            replies = await client.ended()
            head, _, said = replies.partition(b"\r\n\r\n")
            lines = gateway.lines[count + bool(before) :]
            try:
                assert head.startswith((b"HTTP/1.1 " + status, b"HTTP/1.0 " + status)), "the status"
                assert orjson.loads(said)["error"]["code"] == code, "one error, and nothing behind it"
                assert [(line["status"], line["outcome"]) for line in lines] == [(int(status), code)], "one line"
                assert f"\r\nX-Request-Id: {lines[0]['request_id']}\r\n".encode() in head
            except (AssertionError, ValueError) as error:
                wrong[name] = (str(error), replies[:300], lines)
        for name, what in wrong.items():
            print(name, what)
        assert list(wrong) == []
        assert len(seen) == (len(corpus) if before else 0)
        assert not any(b"x-hidden" in message.head.lower() for message in seen)


@pytest.mark.parametrize("piece", PIECES.values(), ids=PIECES.keys())
@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE.keys())
async def test_carried_exactly_and_the_next_request_is_the_next(before: bytes, piece: int) -> None:
    seen: list[Message] = []
    wrong = {}
    async with instance(keeping(seen)) as engine, house(engine.port) as gateway:
        for name, sent in CARRIED.items():
            seen.clear()
            client = await gateway.connect()
            await send(client, before + sent + a_request(target="/v1/embeddings"), piece)
            try:
                for _ in range(2 + bool(before)):
                    assert (await client.message()).body == b"ok"
                first, last = seen[-2:]
                expected = sent.partition(b"\r\n\r\n{")[2] if b"Content-Length: 99" in sent else BODY[1:]
                assert (first.body, last.body) == (b"{" + expected, BODY)
                assert first.head.lower().count(b"\ncontent-length: %d\r\n" % len(first.body)) == 1
                assert not [field for field in ONLY_HERE if b"\n" + field + b":" in first.head.lower()]
                assert last.head.startswith(b"POST /v1/embeddings HTTP/1.1\r\n")
                assert b"x-sum" not in last.head.lower(), "a trailer is no header of the next request"
            except (AssertionError, TimeoutError, EOFError, IndexError) as error:
                wrong[name] = (repr(error), [message.head[:200] for message in seen])
        for name, what in wrong.items():
            print(name, what)
        assert list(wrong) == []


async def test_expect_100_continue() -> None:
    seen: list[Message] = []
    async with instance(keeping(seen)) as engine, house(engine.port) as gateway:
        client = await gateway.connect()
        await client.send(HEAD + LENGTH + b"Expect: 100-continue\r\n\r\n")
        assert (await client.message(bodiless=True)).status == 100
        await client.send(BODY)
        assert (await client.message()).body == b"ok"
        assert b"expect" not in seen[0].head.lower()


@pytest.mark.parametrize("lane", LANES)
async def test_after_an_upgrade_request_the_next_head_is_a_head(lane: str) -> None:
    async with instance(keeping([])) as engine, house(engine.port) as gateway:
        client = await gateway.connect()
        await client.send(UPGRADE + a_request(lane=lane) + UPGRADE)
        assert [(await client.message()).status for _ in range(3)] == [200, 200, 200]
        await client.send(UPGRADE + HEAD + b"X: " + b"y" * 100_000)
        assert [(await client.message()).status for _ in range(2)] == [200, 431]


async def test_connect_is_no_way_out() -> None:
    async with house() as gateway:
        client = await gateway.connect()
        await client.send(b"CONNECT evil:80 HTTP/1.1\r\nHost: evil:80\r\n\r\n" + HIDDEN)
        reply = await client.ended()
        assert reply.startswith(b"HTTP/1.1 40")
        assert reply.count(b"HTTP/1.1 ") == 1


async def test_a_refused_client_reads_why_though_it_goes_on_sending() -> None:
    """A connection that is closed at once is reset by what is still on its way, and the reply with it."""
    async with house() as gateway:
        client = await gateway.connect()
        await client.send(HEAD + b"X: " + b"y" * 5_000_000)
        assert (await client.message()).status == 431
        await client.send(b"y" * 1000)
        client.writer.close()
