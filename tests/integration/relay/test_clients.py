# SPDX-License-Identifier: Apache-2.0
"""Clients that leave free the instance at once; clients that read slowly cost little and harm nobody."""

import asyncio
import contextlib
import hashlib

import pytest

from tests.integration.relay.wire import OK, Gateway, Peer, a_request, answering, gateway, instance
from tests.waiting import LIMIT_S, until
from vllm_gateway.relay import Limits

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
BLOCK = bytes(range(256)) * 256
BLOCKS = 500  # 32 MB: more than the sockets and buffers on the way can hold


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("sent", [b"", CHUNKED + b"1\r\nx\r\n"])
async def test_a_client_that_leaves_closes_the_instances_connection(sent: bytes, reset: bool) -> None:
    loop = asyncio.get_running_loop()
    noticed = loop.create_future()

    async def script(peer: Peer) -> None:
        await peer.message()
        await peer.send(sent)
        await peer.ended()
        noticed.set_result(loop.time())

    async with instance(script) as engine, gateway(engine.port) as between:
        client = await between.connect()
        await client.send(a_request())
        await until(lambda: engine.open == 1)
        if sent:
            assert await client.reader.readexactly(len(sent)) == sent
        left = loop.time()
        if reset:
            client.reset()
        else:
            client.writer.close()
        async with asyncio.timeout(LIMIT_S):
            assert await noticed - left < 0.2, "well below the sweep: it is an event, not a check"
        if sent:
            carried = await between.carried()
            assert (carried.broken, carried.complete) == ("client_gone", False)
        else:
            assert await between.outcome() == "client_gone"


async def test_without_cancellation_the_sweep_notices() -> None:
    async def script(peer: Peer) -> None:
        await peer.message()
        await peer.ended()

    limits = Limits(pool_idle_s=0.1)
    async with instance(script) as engine, gateway(engine.port, limits, handler_cancellation=False) as between:
        client = await between.connect()
        await client.send(a_request())
        await until(lambda: engine.open == 1)
        await client.close()
        assert await between.outcome() == "client_gone"
        await until(lambda: engine.open == 0)


async def test_a_handler_that_is_cancelled_for_another_reason_says_so() -> None:
    async def script(peer: Peer) -> None:
        await peer.message()
        await peer.ended()

    cancelled = asyncio.Event()
    async with instance(script) as engine, gateway(engine.port) as between:
        carry = between.relay.carry

        async def impatient(*args: object, **kwargs: object) -> object:
            try:
                async with asyncio.timeout(0.05):
                    return await carry(*args, **kwargs)  # type: ignore[arg-type]
            except TimeoutError:
                cancelled.set()
                raise

        between.relay.carry = impatient  # type: ignore[method-assign, assignment]
        reply = await (await between.connect()).ask()
        assert cancelled.is_set()
        assert reply.status == 504
        await until(lambda: engine.open == 0)


async def flood(peer: Peer) -> None:
    await peer.message()
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(BLOCK) * BLOCKS))
    for _ in range(BLOCKS):
        await peer.send(BLOCK)
    await peer.ended()


def held_for_client(between: Gateway) -> int:
    transports = [connection.transport for connection in between.server.connections]
    return sum(transport.get_write_buffer_size() for transport in transports if transport is not None)


def is_paused(between: Gateway) -> bool:
    return any(connection.writing_paused for connection in between.server.connections)


async def test_a_slow_client_costs_bounded_memory_and_gets_everything() -> None:
    async with instance(flood) as engine, gateway(engine.port, Limits(idle_s=0.1)) as between:
        client = await between.connect(receive_buffer=64 * 1024)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(a_request())
        await until(lambda: is_paused(between))
        largest = 0
        for _ in range(100):  # longer than the idle limit, which does not count while it is the client who is slow
            await asyncio.sleep(0.002)
            largest = max(largest, held_for_client(between))
        assert is_paused(between)
        assert 0 < largest <= 64 * 1024 + 256 * 1024 + 1024
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        reply = await client.message()
        assert not reply.cut
        assert hashlib.sha256(reply.body).digest() == hashlib.sha256(BLOCK * BLOCKS).digest()
        assert (await between.carried()).complete


async def test_two_hundred_slow_clients_cost_bounded_memory_each() -> None:
    async def endless(peer: Peer) -> None:
        await peer.message()
        with contextlib.suppress(ConnectionError):
            await peer.send(CHUNKED)
            while True:
                await peer.send(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")

    count = 200
    async with instance(endless) as engine, gateway(engine.port) as between:
        clients = [await between.connect(receive_buffer=16 * 1024) for _ in range(count)]
        for client in clients:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await client.send(a_request())
        await until(lambda: sum(one.writing_paused for one in between.server.connections) == count, limit_s=30)
        assert held_for_client(between) <= count * (64 * 1024 + 256 * 1024 + 1024)
        for client in clients:
            client.reset()
        await until(lambda: engine.open == 0 and not between.server.connections)


async def test_a_client_that_stopped_reading_is_given_up() -> None:
    async with instance(flood) as engine, gateway(engine.port, Limits(client_stall_s=0.1)) as between:
        client = await between.connect(receive_buffer=64 * 1024)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(a_request())
        assert (await between.carried()).broken == "client_stalled"
        await until(lambda: engine.open == 0 and not between.server.connections)


async def test_a_paused_client_that_leaves() -> None:
    async with instance(flood) as engine, gateway(engine.port) as between:
        client = await between.connect(receive_buffer=64 * 1024)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(a_request())
        await until(lambda: is_paused(between))
        client.reset()
        assert (await between.carried()).broken == "client_gone"
        await until(lambda: engine.open == 0 and not between.server.connections)


async def test_a_complete_reply_frees_the_instance_before_the_client_has_read_it() -> None:
    big = b"x" * 6_000_000
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(big), big)
    limits = Limits(client_buffer_bytes=32 * 2**20)
    async with instance(answering(reply, OK)) as engine, gateway(engine.port, limits) as between:
        slow = await between.connect(receive_buffer=64 * 1024)
        slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await slow.send(a_request())
        assert (await between.carried()).complete
        assert (await (await between.connect()).ask()).body == b"ok"
        assert engine.accepted == 1
        slow.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert (await slow.message()).body == big
