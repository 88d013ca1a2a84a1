# SPDX-License-Identifier: Apache-2.0
"""What an engine takes passes, in both lanes, and is understood; what it would refuse starts none."""

import gzip

import pytest

from tests.integration.front.house import BODY, LANES, a_request, house
from tests.integration.relay.wire import OK, Message, Peer, answering, instance
from tests.waiting import until
from vllm_gateway.fleet.engines.vllm_paths import MEDIA_TYPES
from vllm_gateway.relay.framing import LAST_CHUNK, chunk

EXACT = pytest.mark.parametrize("lane", LANES)
JSON = b"Content-Type: application/json\r\n"
EVENTS = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    + chunk(b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n')
    + chunk(b"data: [DONE]\n\n")
    + LAST_CHUNK
)
KNOWN = {"media_types": MEDIA_TYPES}


@EXACT
@pytest.mark.parametrize("flag", [b"1", b"1.0", b'"true"', b'"Yes"', b'"on"'])
async def test_a_stream_is_one_however_it_is_asked_for(lane: str, flag: bytes) -> None:
    seen: list[Message] = []

    async def script(peer: Peer) -> None:
        seen.append(await peer.message())
        await peer.send(EVENTS)

    body = b'{"model":"m","stream":%b}' % flag
    async with instance(script) as engine, house(engine.port) as gateway:
        reply = await gateway.ask(a_request(body, lane=lane))
        assert b"data: [DONE]\n\n" in reply.body
        assert (await gateway.line())["stream"] is True
        assert seen[0].body == body[:-1] + b',"return_token_ids":true}', "it could be continued"


@EXACT
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings"], ids=["followed", "carried"])
async def test_a_stream_says_to_proxies_that_it_must_not_wait(lane: str, path: str) -> None:
    async with instance(answering(EVENTS)) as engine, house(engine.port) as gateway:
        reply = await gateway.ask(a_request(b'{"model":"m","stream":true}', lane=lane, target=path))
        assert reply.header("x-accel-buffering") == [b"no"]
        assert reply.header("cache-control") == [b"no-cache"]


@EXACT
@pytest.mark.parametrize("large", [False, True])
async def test_a_byte_order_mark_is_taken_away(lane: str, large: bool) -> None:
    bodies = []

    async def script(peer: Peer) -> None:
        bodies.append((await peer.message()).body)
        await peer.send(OK)

    body = b'{"model":"m","ids":[%b]}' % (b"1," * (200_000 if large else 1) + b"1")
    async with instance(script) as engine, house(engine.port) as gateway:
        assert (await gateway.ask(a_request(b"\xef\xbb\xbf" + body, lane=lane))).status == 200
        assert bodies == [b"   " + body]
        await until(lambda: gateway.api.buffers.held == 0)


@EXACT
async def test_other_encodings_arrive_as_utf_8(lane: str) -> None:
    bodies = []

    async def script(peer: Peer) -> None:
        bodies.append((await peer.message()).body)
        await peer.send(OK)

    text = '{"model":"m","prompt":"h\u00e9"}'
    async with instance(script) as engine, house(engine.port) as gateway:
        assert (await gateway.ask(a_request(text.encode("utf-16"), lane=lane))).status == 200
        assert bodies == [text.encode()]


@EXACT
async def test_large_bodies_pass_however_they_begin_or_are_told_why_not(lane: str) -> None:
    async with instance(answering(OK)) as engine, house(engine.port, max_body=16 << 20) as gateway:
        spaced = b" " * 3_000_000 + BODY + b"\r\n" * 100_000
        assert (await gateway.ask(a_request(spaced, lane=lane))).status == 200
        reply = await gateway.ask(a_request(('{"model":"m","x":"%s"}' % ("y" * 2_000_000)).encode("utf-16"), lane=lane))
        assert reply.status == 400
        assert b"UTF-16 or UTF-32 is taken up to 2 MiB" in reply.body


@EXACT
async def test_a_compressed_body_is_refused_in_words_and_before_it_comes(lane: str) -> None:
    async with house() as gateway:
        client = await gateway.connect()
        body = gzip.compress(b'{"model":"m"}')
        await client.send(a_request(body, lane=lane, headers=JSON + b"Content-Encoding: gzip\r\n")[: -len(body)])
        reply = await client.message()
        assert (reply.status, reply.header("accept-encoding")) == (415, [b"identity"])
        assert b'"code":"unsupported_media_type"' in reply.body
        assert b"compressed (Content-Encoding: gzip)" in reply.body


@EXACT
async def test_a_body_that_says_it_is_not_compressed_passes(lane: str) -> None:
    async with instance(answering(OK)) as engine, house(engine.port) as gateway:
        headers = JSON + b"Content-Encoding: identity\r\n"
        assert (await gateway.ask(a_request(lane=lane, headers=headers))).status == 200


@EXACT
@pytest.mark.parametrize(
    ("path", "given"),
    [
        ("/v1/chat/completions", b""),
        ("/v1/chat/completions", b"text/plain"),
        ("/v1/embeddings", b"application/x-www-form-urlencoded"),
        ("/v1/completions", b"application/jsonlines"),
        ("/v1/audio/transcriptions", b"application/json"),
    ],
)
async def test_a_type_that_engines_refuse_starts_none(lane: str, path: str, given: bytes) -> None:
    headers = b"Content-Type: %b\r\n" % given if given else b""
    async with house(terms=KNOWN) as gateway:
        reply = await gateway.ask(a_request(lane=lane, headers=headers, target=path))
        assert reply.status == 400
        assert b"Unsupported Media Type" in reply.body and MEDIA_TYPES[path].encode() in reply.body
        assert gateway.fleet.heard == []


@EXACT
@pytest.mark.parametrize(
    ("path", "given"),
    [
        ("/v1/chat/completions", b"application/json; charset=utf-8"),
        ("/v1/chat/completions", b"Application/JSON"),
        ("/v1/audio/speech", b"text/plain"),
        ("/v1/x", b"text/plain"),
    ],
)
async def test_a_type_that_some_engine_may_take_passes(lane: str, path: str, given: bytes) -> None:
    async with instance(answering(OK)) as engine, house(engine.port, terms=KNOWN) as gateway:
        reply = await gateway.ask(a_request(lane=lane, headers=b"Content-Type: %b\r\n" % given, target=path))
        assert reply.status == 200
