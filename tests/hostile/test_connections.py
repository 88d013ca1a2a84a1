# SPDX-License-Identifier: Apache-2.0
"""Connections that send slowly, say nothing, take nothing or come in crowds: each is bounded in time, all in memory."""

import asyncio

import orjson
import pytest

from tests.hostile.heads import HEAD
from tests.integration.front.house import LANES, House, a_request, house
from tests.integration.relay.wire import OK, Peer, answering, instance
from tests.waiting import until
from vllm_gateway.api.guests import MAX_AHEAD_BYTES, Bounds
from vllm_gateway.api.visitor import Visitor

EXACT = pytest.mark.parametrize("lane", LANES)
QUICK = Bounds(head_s=0.3)
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
UPGRADE = HEALTH[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"

BEGUN = {
    "a plain head": b"POST /v1/x HTTP/1.1\r\nHost",
    "another": b"GET /health HT",
    "a method": b"PU",
    "a letter": b"P",
    "a large head": HEAD + b"X: " + b"y" * 50_000,
}
BEFORE = {
    "first": b"",
    "in the fast lane": a_request(),
    "in aiohttp's lane": a_request(lane="aiohttp"),
    "after a page": HEALTH,
    "after an upgrade request": UPGRADE,
}


@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE.keys())
async def test_a_head_that_does_not_come_is_refused(before: bytes) -> None:
    async with instance(answering(OK)) as engine, house(engine.port, bounds=QUICK) as gateway:
        clients = []
        for sent in BEGUN.values():
            client = await gateway.connect()
            await client.send(before + sent)
            clients.append(client)
        for client in clients:
            if before:
                assert (await client.message()).status == 200
            reply = await client.message()
            assert (reply.status, reply.header("connection")) == (408, [b"close"])
            assert orjson.loads(reply.body)["error"]["code"] == "head_timeout"
            client.writer.close()
        outcomes = [str(line["outcome"]) for line in gateway.lines]
        assert sorted(outcomes) == ["head_timeout"] * len(BEGUN) + ["ok"] * (len(BEGUN) if before else 0)
        await until(lambda: len(gateway.connections) == 0)


@EXACT
async def test_a_head_that_drips_is_refused(lane: str) -> None:
    async with instance(answering(OK)) as engine, house(engine.port, bounds=QUICK) as gateway:
        client = await gateway.connect()
        assert (await client.ask(a_request(lane=lane))).status == 200
        told = asyncio.create_task(client.message())
        for byte in a_request(headers=b"X: %b\r\n" % (b"y" * 500)):
            await client.send(bytes([byte]))
            if (await asyncio.wait([told], timeout=0.03))[0]:
                break
        assert (await told).status == 408


async def test_line_ends_alone_are_no_head_and_keep_no_connection_open() -> None:
    async with house(bounds=Bounds(idle_s=0.3)) as gateway:
        for before in (b"", HEALTH):
            client = await gateway.connect()
            if before:
                assert (await client.ask(before)).status == 200
            ended = asyncio.create_task(client.ended())
            while not ended.done():
                client.writer.write(b"\r\n")
                await asyncio.wait([ended], timeout=0.03)
            assert await ended == b""
        assert len(gateway.lines) == 1


@EXACT
async def test_line_ends_alone_are_bounded(lane: str) -> None:
    async with instance(answering(OK)) as engine, house(engine.port) as gateway:
        client = await gateway.connect()
        for _ in range(50):  # one behind each body is what some clients send
            assert (await client.ask(a_request(lane=lane) + b"\r\n")).status == 200
        for _ in range(40):
            client.writer.write(b"\r\n")
            await asyncio.sleep(0)
        assert (await client.message()).status == 400


@EXACT
async def test_an_idle_connection_ends_after_its_time(lane: str) -> None:
    async with instance(answering(OK)) as engine, house(engine.port, bounds=Bounds(idle_s=0.2)) as gateway:
        silent = await gateway.connect()
        client = await gateway.connect()
        assert (await client.ask(a_request(lane=lane))).status == 200
        assert await client.ended() == b""
        assert await silent.ended() == b""
        assert [line["outcome"] for line in gateway.lines] == ["ok"]


async def test_of_too_many_idle_connections_the_longest_idle_ones_end_and_no_busy_one() -> None:
    answer = asyncio.Event()

    async def slow(peer: Peer) -> None:
        await peer.message()
        await answer.wait()
        await peer.send(OK)

    async with instance(slow) as engine, house(engine.port, bounds=Bounds(max_idle=10, head_s=0.2)) as gateway:
        busy = [await gateway.connect() for _ in range(2)]
        for client, lane in zip(busy, LANES, strict=True):
            await client.send(a_request(lane=lane))
        await until(lambda: engine.open == 2)
        kept = []
        for _ in range(15):
            fast, over = await gateway.connect(), await gateway.connect()
            assert (await over.ask(HEALTH)).status == 200
            kept += [fast, over]
        await until(lambda: len(gateway.connections) == 12)
        for client in kept[:16]:  # times are told in milliseconds: of those between, some are as old as others
            assert await client.ended() == b""
        for client in kept[24:]:
            assert (await client.ask(HEALTH)).status == 200
        answer.set()
        for client in busy:
            assert (await client.message()).status == 200


@EXACT
async def test_what_is_sent_ahead_is_bounded(lane: str) -> None:
    """Also if it is heads without end."""
    answer = asyncio.Event()

    async def slow(peer: Peer) -> None:
        await peer.message()
        await answer.wait()
        await peer.send(OK)

    async with instance(slow) as engine, house(engine.port) as gateway:
        client = await gateway.connect()
        sending = asyncio.create_task(client.send(a_request(lane=lane) + HEAD + b"X: " + b"y" * 30_000_000))
        await until(lambda: engine.open == 1)
        await until(lambda: ahead(gateway) > MAX_AHEAD_BYTES)
        await asyncio.sleep(0.1)  # for more to be read, if more were
        assert ahead(gateway) <= MAX_AHEAD_BYTES + (256 << 10)
        answer.set()
        assert (await client.message()).status == 200
        assert (await client.message()).status == 431
        client.reset()
        await asyncio.gather(sending, return_exceptions=True)


def ahead(gateway: House) -> int:
    return max(len(one.ahead if isinstance(one, Visitor) else one._ahead) for one in gateway.connections)


async def test_a_page_that_is_not_read_is_not_kept_for_ever() -> None:
    async with house(bounds=Bounds(client_s=0.3, head_s=0.2)) as gateway:
        gateway.api._problems = lambda: ["x" * 1000] * 5000
        client = await gateway.connect(receive_buffer=4096)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(HEALTH * 3)
        await until(lambda: len(gateway.connections) == 1)
        await until(lambda: len(gateway.connections) == 0)


async def test_after_the_end_is_asked_for_a_refused_client_does_not_hold_it_up() -> None:
    async with house(drain_s=0.2) as gateway:
        client = await gateway.connect()
        await client.send(b"hello\r\n\r\n")
        assert (await client.message()).status == 400
        await asyncio.wait_for(gateway.runner.cleanup(), 3)
