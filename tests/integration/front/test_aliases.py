# SPDX-License-Identifier: Apache-2.0
"""Who asks by an alias is answered by it, in both lanes, whatever the form of the reply."""

import json

import pytest

from tests.integration.front.house import LANES, a_request, house
from tests.integration.relay.wire import Message, Peer, answering, instance
from vllm_gateway.relay.framing import LAST_CHUNK, chunk

EXACT = pytest.mark.parametrize("lane", LANES)
ASKED = b'{"model":"alias"}'
TEXT = b'{"id":"1","model":"m","choices":[{"text":"\\"model\\":\\"m\\""}]}'
RENAMED = TEXT.replace(b'"model":"m",', b'"model":"alias",')
JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}\n\n'
END = b'data: {"model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"
STREAMS = {
    "/v1/chat/completions": [EVENT % b"a", EVENT % b"b", END, DONE],
    "/v1/messages": [
        b'event: message_start\ndata: {"type":"message_start","message":{"model":"m","content":[]}}\n\n',
        b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"}}\n\n',
        b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    ],
    "/v1/embeddings": [b'data: {"model":"m"}\n\n'],
}
REPLIES = {
    "length": JSON + b"Content-Length: %d\r\n\r\n" % len(TEXT) + TEXT,
    "chunks": JSON
    + b"Transfer-Encoding: chunked\r\n\r\n"
    + b"".join(chunk(TEXT[i : i + 1]) for i in range(len(TEXT)))
    + LAST_CHUNK,
    "until it closes": JSON + b"\r\n" + TEXT,
}


def text_of(reply: Message) -> bytes:
    """Free of framing."""
    if not reply.header("transfer-encoding"):
        return reply.body
    text, rest = b"", reply.body
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        text, rest = text + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return text


@EXACT
@pytest.mark.parametrize("form", REPLIES)
async def test_a_reply(lane: str, form: str) -> None:
    async def script(peer: Peer) -> None:
        assert json.loads((await peer.message()).body)["model"] == "m"
        await peer.send(REPLIES[form])
        peer.writer.close()

    async with instance(script) as engine, house(engine.port) as gateway:
        client = await gateway.connect()
        reply = await client.ask(a_request(ASKED, lane=lane))
        assert text_of(reply) == RENAMED
        assert not reply.header("content-length")
        if form == "until it closes":
            assert reply.header("connection") == [b"close"]


@EXACT
@pytest.mark.parametrize("path", STREAMS)
async def test_a_stream(lane: str, path: str) -> None:
    events = STREAMS[path]
    async with (
        instance(answering(EVENTS + b"".join(map(chunk, events)) + LAST_CHUNK)) as engine,
        house(engine.port) as gateway,
    ):
        client = await gateway.connect()
        for name in (b"alias", b"m"):
            body = b'{"model":"%b","stream":true}' % name
            reply = await client.ask(a_request(body, lane=lane, target=path))
            assert text_of(reply) == b"".join(events).replace(b'"model":"m"', b'"model":"%b"' % name)


@EXACT
async def test_a_response_that_is_asked_for_later(lane: str) -> None:
    kept = b'{"id":"resp_1","model":"m"}'
    reply = JSON + b"Content-Length: %d\r\n\r\n" % len(kept) + kept
    async with instance(answering(reply)) as engine, house(engine.port) as gateway:
        made = await gateway.ask(a_request(ASKED, lane=lane, target="/v1/responses"))
        got = await gateway.ask(b"GET /v1/responses/resp_1 HTTP/1.1\r\nHost: gateway\r\n\r\n")
        assert text_of(made) == text_of(got) == kept.replace(b'"m"', b'"alias"')


@EXACT
async def test_connections_are_kept(lane: str) -> None:
    async with instance(answering(REPLIES["length"])) as engine, house(engine.port) as gateway:
        client = await gateway.connect()
        assert [text_of(await client.ask(a_request(ASKED, lane=lane))) for _ in range(3)] == [RENAMED] * 3
        assert engine.accepted == 1


@EXACT
async def test_what_is_not_json_is_left_alone(lane: str) -> None:
    sound = b"HTTP/1.1 200 OK\r\nContent-Type: audio/wav\r\nContent-Length: 11\r\n\r\n" + b'"model":"m"'
    async with instance(answering(sound)) as engine, house(engine.port) as gateway:
        reply = await gateway.ask(a_request(ASKED, lane=lane))
        assert (reply.body, reply.header("content-length")) == (b'"model":"m"', [b"11"])


@EXACT
async def test_an_error_of_the_engine_too(lane: str) -> None:
    said = b'{"error":{"message":"no","model":"m"}}'
    error = (
        b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(said) + said
    )
    async with instance(answering(error)) as engine, house(engine.port) as gateway:
        reply = await gateway.ask(a_request(ASKED, lane=lane))
        assert (reply.status, text_of(reply)) == (400, said.replace(b'"m"', b'"alias"'))


@EXACT
async def test_a_cut_reply_is_not_whole(lane: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.message()
        await peer.send(REPLIES["length"][:-3])
        peer.writer.close()

    async with instance(script) as engine, house(engine.port) as gateway:
        client = await gateway.connect()
        await client.send(a_request(ASKED, lane=lane))
        assert (await client.message()).cut
        assert (await gateway.line())["outcome"] == "upstream_closed"


@EXACT
async def test_if_it_is_not_wanted_nothing_is_touched(lane: str) -> None:
    off = {"echo_aliases": False}
    async with instance(answering(REPLIES["length"])) as engine, house(engine.port, terms=off) as gateway:
        assert (await gateway.ask(a_request(ASKED, lane=lane))).body == TEXT
