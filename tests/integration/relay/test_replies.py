# SPDX-License-Identifier: Apache-2.0
"""Every form of reply goes through, and the connections on both sides live as long as they may."""

import asyncio

import aiohttp
import pytest

from tests.integration.relay.wire import OK, Peer, a_request, answering, gateway, instance
from tests.waiting import LIMIT_S, until
from vllm_gateway.relay import Limits
from vllm_gateway.relay.loops import via

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
BODY = b"5;x=y\r\nhello\r\n6\r\n world\r\n0\r\nX-Check: sum\r\n\r\n"
PASSED_ON = b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"


async def test_request_and_reply_go_through_and_connections_are_kept() -> None:
    requests = []

    async def script(peer: Peer) -> None:
        while True:
            requests.append(await peer.message())
            await peer.send(
                b"HTTP/1.1 201 Made\r\ndate: D\r\nserver: S\r\ncontent-length: 2\r\nX-Request-Id: e\r\n\r\nok"
            )

    headers = [("X-Request-Id", "r1")]
    async with (
        instance(script) as engine,
        gateway(engine.port, own=headers) as between,
    ):
        client = await between.connect()
        for _ in range(3):
            reply = await client.ask(
                a_request(b'{"a":1}', headers=b"Authorization: Bearer k\r\nConnection: x-hop\r\nX-Hop: 1\r\nX-A: b\r\n")
            )
            assert reply.head == (b"HTTP/1.1 201 Made\r\ndate: D\r\ncontent-length: 2\r\nX-Request-Id: r1\r\n\r\n")
            assert reply.body == b"ok"
        assert (
            requests[0].head
            == (
                f"POST /v1/x HTTP/1.1\r\nHost: 127.0.0.1:{engine.port}\r\n{via().decode()}"
                "X-A: b\r\nX-Request-Id: r1\r\nContent-Length: 7\r\n\r\n"
            ).encode()
        )
        assert requests[0].body == b'{"a":1}'
        assert engine.accepted == 1
        carried = await between.carried()
        assert (carried.status, carried.complete, carried.broken) == (201, True, None)
        assert carried.bytes_sent == len(reply.head) + 2
        assert 0 <= carried.first_byte_s < LIMIT_S


@pytest.mark.parametrize("step", [1, 2, 7])
async def test_a_reply_in_the_smallest_pieces(step: int) -> None:
    whole = CHUNKED + BODY

    async def script(peer: Peer) -> None:
        while True:
            await peer.message()
            await peer.send(*(whole[start : start + step] for start in range(0, len(whole), step)))

    async with instance(script) as engine, gateway(engine.port) as between:
        client = await between.connect()
        for _ in range(2):
            reply = await client.ask()
            assert reply.head + reply.body == CHUNKED + PASSED_ON
        assert engine.accepted == 1


async def test_pipelined_requests_are_answered_in_order() -> None:
    replies = [b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number for number in range(5)]
    async with instance(answering(*replies)) as engine, gateway(engine.port) as between:
        client = await between.connect()
        await client.send(a_request() * 5)
        assert [(await client.message()).body for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
        assert engine.accepted == 1


@pytest.mark.parametrize(
    ("method", "reply"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 200 OK\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\n\r\n"),
        ("POST", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ],
)
async def test_replies_without_a_body(method: str, reply: bytes) -> None:
    async with instance(answering(reply)) as engine, gateway(engine.port) as between:
        client = await between.connect()
        for _ in range(2):
            assert (await client.ask(a_request(method=method))).head == reply
        assert engine.accepted == 1


async def test_interim_replies_stay_here() -> None:
    early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    async with instance(answering(early + OK)) as engine, gateway(engine.port) as between:
        client = await between.connect()
        for _ in range(2):
            reply = await client.ask()
            assert reply.head + reply.body == OK
        assert engine.accepted == 1


async def test_an_http_1_0_client_gets_the_body_without_chunks() -> None:
    async with instance(answering(CHUNKED + BODY)) as engine, gateway(engine.port) as between:
        client = await between.connect()
        reply = await client.ask(a_request(version="1.0", headers=b"Connection: keep-alive\r\n"))
        assert reply.head == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
        assert reply.body == b"hello world"
        assert (await between.carried()).complete


async def test_an_http_1_0_client_may_keep_its_connection() -> None:
    async with instance(answering(OK)) as engine, gateway(engine.port) as between:
        client = await between.connect()
        for _ in range(2):
            reply = await client.ask(a_request(version="1.0", headers=b"Connection: keep-alive\r\n"))
            assert reply.header("connection") == [b"keep-alive"]


async def test_a_client_that_asks_for_the_close_gets_it() -> None:
    async with instance(answering(OK)) as engine, gateway(engine.port) as between:
        client = await between.connect()
        reply = await client.ask(a_request(headers=b"Connection: close\r\n"))
        assert reply.header("connection") == [b"close"]
        assert await client.ended() == b""


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_a_reply_without_a_length_ends_with_the_connection(version: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.message()
        await peer.send(b"HTTP/" + version + b" 200 OK\r\n\r\nfirst", b" second")

    async with instance(script) as engine, gateway(engine.port) as between:
        client = await between.connect()
        reply = await client.ask()
        assert reply.header("connection") == [b"close"]
        assert reply.body == b"first second"
        assert (await between.carried()).complete


async def test_a_reply_that_closes_the_instances_connection_keeps_the_clients() -> None:
    closing = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
    async with instance(answering(closing)) as engine, gateway(engine.port) as between:
        client = await between.connect()
        for _ in range(3):
            assert (await client.ask()).header("connection") == []
        assert engine.accepted == 3


async def test_bytes_after_the_reply_are_not_taken_for_the_next_one() -> None:
    stray = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
    async with instance(answering(OK + stray)) as engine, gateway(engine.port) as between:
        client = await between.connect()
        for _ in range(3):
            assert (await client.ask()).body == b"ok"
        assert engine.accepted == 3


async def test_a_head_up_to_the_limit_goes_through() -> None:
    filler = b"X-Long: " + b"x" * 60_000 + b"\r\n"
    reply = OK.replace(b"Content", filler + b"Content")
    async with instance(answering(reply)) as engine, gateway(engine.port) as between:
        got = await (await between.connect()).ask()
        assert got.head + got.body == reply


async def test_an_early_reply_is_passed_on_and_the_connection_not_used_again() -> None:
    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await peer.ended()

    async with instance(script) as engine, gateway(engine.port) as between:
        client = await between.connect()
        body = b"x" * 20_000_000  # more than the sockets on the way can hold
        for count in (1, 2):
            reply = await client.ask(a_request(body))
            assert (reply.status, reply.body) == (413, b"big")
            assert engine.accepted == count


async def test_a_large_body_arrives_whole() -> None:
    bodies = []

    async def script(peer: Peer) -> None:
        while True:
            bodies.append((await peer.message()).body)
            await peer.send(OK)

    async with instance(script) as engine, gateway(engine.port) as between:
        client = await between.connect()
        body = bytes(range(256)) * 4000
        for _ in range(2):
            assert (await client.ask(a_request(body))).body == b"ok"
        assert bodies == [body, body]
        assert engine.accepted == 1


async def test_an_ordinary_client_streams() -> None:
    async def script(peer: Peer) -> None:
        while True:
            await peer.message()
            await peer.send(CHUNKED, *(b"8\r\ndata: %d\n\r\n" % number for number in range(10)), b"0\r\n\r\n")

    async with instance(script) as engine, gateway(engine.port) as between, aiohttp.ClientSession() as session:
        for _ in range(2):
            async with session.post(f"http://127.0.0.1:{between.port}/v1/x", json={}) as reply:
                lines = [line async for line in reply.content]
                assert lines == [b"data: %d\n" % number for number in range(10)]


async def test_many_requests_reuse_few_connections_and_leak_none() -> None:
    async with instance(answering(OK)) as engine, gateway(engine.port, Limits(pool_idle_s=0.6)) as between:
        client = await between.connect()
        for _ in range(500):
            assert (await client.ask()).body == b"ok"
        assert engine.accepted == 1

        clients = [await between.connect() for _ in range(100)]
        replies = await asyncio.gather(*(one.ask() for one in clients))
        assert [reply.body for reply in replies] == [b"ok"] * 100
        assert engine.accepted <= 101
        await asyncio.gather(*(one.close() for one in (client, *clients)))
        await until(lambda: not engine.open and not between.server.connections)
