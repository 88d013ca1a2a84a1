# SPDX-License-Identifier: Apache-2.0
"""Requests that two parsers could read in two ways: refused, or carried exactly as the gateway itself read them."""

import orjson
import pytest

from tests.integration.front.house import BODY, a_request, house
from tests.integration.relay.wire import OK, Message, Peer, Script, instance

HIDDEN = b"POST /v1/hidden HTTP/1.1\r\nHost: x\r\nContent-Length: 13\r\n\r\n" + BODY
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
CHUNKS = b"d\r\n" + BODY + b"\r\n0\r\n\r\n"
LENGTH = b"Content-Length: 13\r\n"


REFUSED = {
    "CL.TE": HEAD + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS,
    "TE.CL": HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n" + CHUNKS,
    "TE twice": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n" + CHUNKS,
    "TE unknown": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKS,
    "TE not last": HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\n" + CHUNKS,
    "TE hidden by a space": HEAD + LENGTH + b"Transfer-Encoding : chunked\r\n\r\n" + CHUNKS,
    "TE hidden by a fold": HEAD + LENGTH + b"X: y\r\n Transfer-Encoding: chunked\r\n\r\n" + CHUNKS,
    "TE hidden by a control": HEAD + LENGTH + b"Transfer-Encoding\x0b: chunked\r\n\r\n" + CHUNKS,
    "two lengths": HEAD + LENGTH + b"Content-Length: 4\r\n\r\n" + BODY,
    "two lengths in one": HEAD + b"Content-Length: 13, 4\r\n\r\n" + BODY,
    "signed length": HEAD + b"Content-Length: +13\r\n\r\n" + BODY,
    "negative length": HEAD + b"Content-Length: -1\r\n\r\n" + BODY,
    "hexadecimal length": HEAD + b"Content-Length: 0xd\r\n\r\n" + BODY,
    "length with an underscore": HEAD + b"Content-Length: 1_3\r\n\r\n" + BODY,
    "length behind a space": HEAD + b"Content-Length : 13\r\n\r\n" + BODY,
    "length in a fold": HEAD + b"X: y\r\n\tContent-Length: 4\r\n" + LENGTH + b"\r\n" + BODY,
    "bare line feed": HEAD + b"X: y\nContent-Length: 4\r\n" + LENGTH + b"\r\n" + BODY,
    "bare carriage return": HEAD + b"X: y\rContent-Length: 4\r\n" + LENGTH + b"\r\n" + BODY,
    "zero byte": HEAD + b"X: y\0\r\n" + LENGTH + b"\r\n" + BODY,
    "line without a colon": HEAD + b"X\r\n" + LENGTH + b"\r\n" + BODY,
    "name that is none": HEAD + b"X Y: z\r\n" + LENGTH + b"\r\n" + BODY,
    "control in the target": b"POST /v1/x\x0bHTTP/1.1 HTTP/1.1\r\nHost: x\r\n" + LENGTH + b"\r\n" + BODY,
    "HTTP/2": b"POST /v1/x HTTP/2.0\r\nHost: x\r\n" + LENGTH + b"\r\n" + BODY,
    "chunk longer than it says": HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\n" + BODY + b"\r\n0\r\n\r\n",
    "chunk size of letters": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + BODY + b"\r\n0\r\n\r\n",
    "header of 64 KiB": HEAD + b"X: " + b"y" * 65_536 + b"\r\n" + LENGTH + b"\r\n" + BODY,
}


def script_that_keeps(seen: list[Message]) -> Script:
    async def script(peer: Peer) -> None:
        while True:
            seen.append(await peer.message())
            await peer.send(OK)

    return script


@pytest.mark.parametrize("request_bytes", REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("before", [b"", a_request()], ids=["first", "after another"])
async def test_refused(before: bytes, request_bytes: bytes) -> None:
    """With a request hidden behind it, which no instance must ever see."""
    seen: list[Message] = []
    async with instance(script_that_keeps(seen)) as engine, house(engine.port) as gateway:
        client = await gateway.connect()
        if before:
            assert (await client.ask(before)).body == b"ok"
        await client.send(request_bytes + HIDDEN)
        replies = await client.ended()
        assert replies.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 ")), replies[:200]
        head, _, said = replies.partition(b"\r\n\r\n")
        assert b"\r\nX-Request-Id: " in head
        assert orjson.loads(said)["error"]["code"] == "bad_request"
        assert len(seen) == bool(before)


CARRIED = {
    "chunked": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS,
    "chunked in capitals": HEAD + b"TRANSFER-ENCODING: Chunked\r\n\r\n" + CHUNKS,
    "chunks with extensions and trailers": HEAD
    + b"Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\nd;a=b\r\n"
    + BODY
    + b"\r\n0\r\nX-Sum: 1\r\n\r\n",
    "length in capitals": HEAD + b"CONTENT-LENGTH:13\r\n\r\n" + BODY,
    "length with zeros before it": HEAD + b"Content-Length: 0013\r\n\r\n" + BODY,
    "length named by Connection": HEAD + LENGTH + b"Connection: Content-Length\r\n\r\n" + BODY,
    "upgrade": HEAD
    + LENGTH
    + b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AA\r\n\r\n"
    + BODY,
    "request looks like a reply": HEAD + b"X: HTTP/1.1 200 OK\r\n" + LENGTH + b"\r\n" + BODY,
    "two spaces": b"POST  /v1/x HTTP/1.1\r\nHost: x\r\n" + LENGTH + b"\r\n" + BODY,
    "empty lines before it": b"\r\n\r\n" + HEAD + LENGTH + b"\r\n" + BODY,
    "absolute target": b"POST http://other/v1/chat/completions HTTP/1.1\r\nHost: x\r\n" + LENGTH + b"\r\n" + BODY,
}


@pytest.mark.parametrize("request_bytes", CARRIED.values(), ids=CARRIED.keys())
async def test_carried_exactly_and_the_next_request_is_the_next(request_bytes: bytes) -> None:
    seen: list[Message] = []
    async with instance(script_that_keeps(seen)) as engine, house(engine.port) as gateway:
        client = await gateway.connect()
        await client.send(request_bytes)
        assert (await client.message()).body == b"ok"
        await client.send(a_request(target="/v1/embeddings"))
        assert (await client.message()).body == b"ok"
        assert [message.body for message in seen] == [BODY, BODY]
        first = seen[0].head.lower()
        assert first.count(b"content-length: 13\r\n") == 1
        for name in (b"transfer-encoding", b"upgrade", b"http2-settings", b"trailer", b"connection", b"x-sum"):
            assert b"\n" + name + b":" not in first
        assert seen[1].head.startswith(b"POST /v1/embeddings HTTP/1.1\r\n")


async def test_expect_100_continue() -> None:
    seen: list[Message] = []
    async with instance(script_that_keeps(seen)) as engine, house(engine.port) as gateway:
        client = await gateway.connect()
        await client.send(HEAD + LENGTH + b"Expect: 100-continue\r\n\r\n")
        assert (await client.message(bodiless=True)).status == 100
        await client.send(BODY)
        assert (await client.message()).body == b"ok"
        assert b"expect" not in seen[0].head.lower()


@pytest.mark.parametrize("method", [b"HEAD", b"GET", b"OPTIONS", b"DELETE", b"CONNECT"])
async def test_other_methods_reach_no_instance(method: bytes) -> None:
    async with house() as gateway:
        client = await gateway.connect()
        await client.send(method + b" /v1/chat/completions HTTP/1.1\r\nHost: x\r\n\r\n")
        expected = 404 if method == b"CONNECT" else 405
        assert (await client.message(bodiless=method == b"HEAD")).status == expected


GARBAGE = (
    b"FOO / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # TLS
    b"hello\r\n\r\n",
    b"\0" * 100_000,
)


async def test_garbage_is_refused_and_told_of() -> None:
    async with house() as gateway:
        for count, garbage in enumerate(GARBAGE):
            client = await gateway.connect()
            await client.send(garbage)
            reply = await client.ended()
            assert reply.startswith((b"HTTP/1.0 400 ", b"HTTP/1.1 400 "))
            line = await gateway.line(count)
            assert (line["status"], line["outcome"], line["model"]) == (400, "bad_request", None)
            assert f"\r\nX-Request-Id: {line['request_id']}\r\n".encode() in reply
