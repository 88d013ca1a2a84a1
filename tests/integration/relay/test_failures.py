# SPDX-License-Identifier: Apache-2.0
"""An instance that fails before its reply begins is reported; a reply that is cut is never taken for a whole one."""

import asyncio

import pytest

from tests.integration.relay.wire import OK, Peer, a_request, answering, gateway, instance
from tests.waiting import until
from vllm_gateway.relay import Limits
from vllm_gateway.routing import Address

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
SHORT = Limits(first_byte_s=0.1, idle_s=0.1)


# --- Before the reply begins


async def test_nobody_listens() -> None:
    async with instance(answering(OK)) as engine:
        port = engine.port
    async with gateway(port) as between:
        client = await between.connect()
        for _ in range(2):
            reply = await client.ask()
            assert (reply.status, reply.body) == (502, b"connect_refused True")


async def test_an_address_that_does_not_answer() -> None:
    listening = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, backlog=1)
    listening.sockets[0].setblocking(False)
    port = listening.sockets[0].getsockname()[1]
    async with gateway(port, Limits(connect_s=0.0)) as between:
        assert (await (await between.connect()).ask()).body == b"connect_timeout True"
    listening.close()
    await listening.wait_closed()


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nContent-Le"])
@pytest.mark.parametrize("reset", [True, False])
async def test_closed_before_the_head_is_complete(sent: bytes, reset: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.message()
        await peer.send(sent)
        if reset:
            peer.reset()

    async with instance(script) as engine, gateway(engine.port) as between:
        client = await between.connect()
        for count in (1, 2):
            reply = await client.ask()
            assert reply.status == 502
            assert reply.body in ((b"reset True", b"closed True") if reset else (b"closed True",))
            assert engine.accepted == count


@pytest.mark.parametrize(
    "reply",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\n\n",
        b"HTTP/1.1 200 OK\r\nA: b\nC: d",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
        b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\rSet-Cookie: c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 70_000,
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 70_000 + b"\r\n\r\n",
        CHUNKED + b"hello\r\n",
    ],
    ids=range(12),
)
async def test_a_bad_reply_does_not_reach_the_client(reply: bytes) -> None:
    async with instance(answering(reply)) as engine, gateway(engine.port) as between:
        client = await between.connect()
        for count in (1, 2):
            assert (await client.ask()).body == b"bad_reply True"
            assert engine.accepted == count
        await until(lambda: engine.open == 0)


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_no_head_in_time(sent: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.message()
        await peer.send(sent)
        await peer.ended()

    async with instance(script) as engine, gateway(engine.port, SHORT) as between:
        assert (await (await between.connect()).ask()).body == b"first_byte_timeout True"
        await until(lambda: engine.open == 0)


async def test_who_has_nothing_from_a_silent_instance_is_sent_away_and_who_has_something_is_not() -> None:
    goes_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        if (await peer.message()).body == b"begun":
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok")
            await goes_on.wait()
            await peer.send(b"ay")
        await peer.ended()

    async with instance(script) as engine, gateway(engine.port) as between:
        asked = [asyncio.create_task((await between.connect()).ask(a_request(body))) for body in (b"begun", b"waits")]
        there = Address("127.0.0.1", engine.port)
        await until(lambda: between.relay.heard_at(there) is not None)
        await until(lambda: engine.open == 2)
        between.relay.abandon(Address("127.0.0.1", 1))
        between.relay.abandon(there)
        assert (await asked[1]).body == b"instance_silent True"
        goes_on.set()
        assert (await asked[0]).body == b"okay"
        between.relay.forget(there)
        assert between.relay.heard_at(there) is None


async def test_who_can_be_served_nowhere_else_waits_on_until_the_instance_is_ended() -> None:
    async def script(peer: Peer) -> None:
        await peer.ended()

    async with instance(script) as engine, gateway(engine.port) as between:
        asked = asyncio.create_task((await between.connect()).ask())
        await until(lambda: between.relay._active)
        (exchange,) = between.relay._active
        exchange._instructions.only_here = True
        there = Address("127.0.0.1", engine.port)
        between.relay.abandon(there)
        assert between.relay._active
        between.relay.abandon(there, ended=True)
        assert (await asked).body == b"instance_silent True"


async def test_who_waits_for_one_that_hangs_is_told_apart() -> None:
    async def script(peer: Peer) -> None:
        await peer.ended()

    async with instance(script) as engine, gateway(engine.port) as between:
        asked = asyncio.create_task((await between.connect()).ask())
        await until(lambda: engine.open == 1)
        await until(lambda: between.relay._active)
        between.relay.abandon(Address("127.0.0.1", engine.port), hung=True)
        assert (await asked).body == b"instance_hung True"


async def test_a_request_that_cannot_be_written_is_not_sent() -> None:
    async with (
        instance(answering(OK)) as engine,
        gateway(engine.port, own=[("X", "a\r\nb")]) as between,
    ):
        assert (await (await between.connect()).ask()).status == 500
        assert engine.accepted == 0


# --- Connections that were closed while idle


@pytest.mark.parametrize("reset", [True, False])
async def test_a_stale_connection_is_replaced_by_a_fresh_one(reset: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.message()
        await peer.send(OK)
        await peer.message()  # the second request on this connection: never answered
        if reset:
            peer.reset()

    async with instance(script) as engine, gateway(engine.port) as between:
        client = await between.connect()
        for count in range(1, 4):
            assert (await client.ask()).body == b"ok"
            assert engine.accepted == count


async def test_stale_and_then_refused_is_a_failure() -> None:
    calls = 0

    async def script(peer: Peer) -> None:
        nonlocal calls
        await peer.message()
        calls += 1
        if calls == 1:
            await peer.send(OK)
            await peer.message()

    async with instance(script) as engine, gateway(engine.port) as between:
        client = await between.connect()
        assert (await client.ask()).body == b"ok"
        assert (await client.ask()).body == b"closed True"
        assert engine.accepted == 2, "one retry, on a fresh connection"


async def test_half_a_head_on_a_used_connection_is_not_stale() -> None:
    async def script(peer: Peer) -> None:
        await peer.message()
        await peer.send(OK)
        await peer.message()
        await peer.send(b"HTTP/1.1 2")

    async with instance(script) as engine, gateway(engine.port) as between:
        client = await between.connect()
        assert (await client.ask()).body == b"ok"
        assert (await client.ask()).body == b"closed True"
        assert engine.accepted == 1


async def test_bytes_on_an_idle_connection_close_it() -> None:
    speak = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.message()
        await peer.send(OK)
        await speak.wait()
        await peer.send(OK)
        await peer.ended()

    async with instance(script) as engine, gateway(engine.port) as between:
        client = await between.connect()
        assert (await client.ask()).body == b"ok"
        speak.set()
        await until(lambda: engine.open == 0)
        speak.clear()
        assert (await client.ask()).body == b"ok"
        assert engine.accepted == 2


async def test_idle_connections_grow_old() -> None:
    async with instance(answering(OK)) as engine, gateway(engine.port, Limits(pool_idle_s=0.05)) as between:
        assert (await (await between.connect()).ask()).body == b"ok"
        await until(lambda: engine.open == 0)


async def test_an_instance_that_is_forgotten_has_no_connections() -> None:
    async with instance(answering(OK)) as engine, gateway(engine.port) as between:
        assert (await (await between.connect()).ask()).body == b"ok"
        between.relay.forget(Address("127.0.0.1", engine.port))
        await until(lambda: engine.open == 0)


async def test_no_more_idle_connections_than_allowed() -> None:
    together = asyncio.Barrier(5)

    async def script(peer: Peer) -> None:
        await peer.message()
        await together.wait()
        await peer.send(OK)
        await peer.ended()

    async with instance(script) as engine, gateway(engine.port, Limits(pool_max_idle=2)) as between:
        clients = [await between.connect() for _ in range(5)]
        await asyncio.gather(*(client.ask() for client in clients))
        await until(lambda: engine.open == 2)


# --- After the reply has begun

CUT = [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", b"12345"),
    (CHUNKED, b"5\r\n12345\r\n"),
    (CHUNKED, b"5\r\n12345\r\n0\r\n"),
]


@pytest.mark.parametrize(("head", "part"), CUT)
@pytest.mark.parametrize("reset", [True, False])
async def test_closed_in_the_body(head: bytes, part: bytes, reset: bool) -> None:
    passed = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.message()
        await peer.send(head + part)
        await passed.wait()
        if reset:
            peer.reset()

    async with instance(script) as engine, gateway(engine.port) as between:
        client = await between.connect()
        await client.send(a_request())
        await until(lambda: between.entered == 1)
        assert await client.reader.readexactly(len(head + part)) == head + part
        passed.set()
        assert await client.ended() == b""
        carried = await between.carried()
        assert carried.broken == ("upstream_reset" if reset else "upstream_closed")
        assert not carried.complete
        assert carried.bytes_sent == len(head + part)


@pytest.mark.parametrize(("head", "part"), CUT)
async def test_silent_in_the_body(head: bytes, part: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.message()
        await peer.send(head + part)
        await peer.ended()

    async with instance(script) as engine, gateway(engine.port, SHORT) as between:
        client = await between.connect()
        await client.send(a_request())
        assert await client.ended() == head + part
        assert (await between.carried()).broken == "idle_timeout"
        await until(lambda: engine.open == 0)


async def test_a_slow_stream_is_not_a_silent_one() -> None:
    async def script(peer: Peer) -> None:
        await peer.message()
        await peer.send(CHUNKED)
        for _ in range(12):
            await asyncio.sleep(0.05)  # the time that an engine takes
            await peer.send(b"1\r\nx\r\n")
        await peer.send(b"0\r\n\r\n")

    async with instance(script) as engine, gateway(engine.port, Limits(idle_s=0.5)) as between:
        assert (await (await between.connect()).ask()).body == b"1\r\nx\r\n" * 12 + b"0\r\n\r\n"
        assert (await between.carried()).complete


async def test_a_cut_reply_that_only_the_end_delimits_resets_the_client() -> None:
    async def script(peer: Peer) -> None:
        await peer.message()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nhalf of it")
        await peer.ended()

    async with instance(script) as engine, gateway(engine.port, SHORT) as between:
        client = await between.connect()
        with pytest.raises(ConnectionResetError):
            await client.ask()
        assert (await between.carried()).broken == "idle_timeout"


async def test_a_malformed_chunk_in_the_stream_cuts_it() -> None:
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.message()
        await peer.send(CHUNKED + b"1\r\nx\r\n")
        await go_on.wait()
        await peer.send(b"oops\r\n0\r\n\r\n")
        await peer.ended()

    async with instance(script) as engine, gateway(engine.port) as between:
        client = await between.connect()
        await client.send(a_request())
        whole = CHUNKED + b"1\r\nx\r\n"
        assert await client.reader.readexactly(len(whole)) == whole
        go_on.set()
        assert await client.ended() == b""
        assert (await between.carried()).broken == "bad_reply"


async def test_closing_the_relay_ends_what_is_under_way() -> None:
    async def script(peer: Peer) -> None:
        await peer.message()
        await peer.send(CHUNKED + b"1\r\nx\r\n")
        await peer.ended()

    async with instance(script) as engine, gateway(engine.port) as between:
        client = await between.connect()
        await client.send(a_request())
        await client.reader.readuntil(b"x\r\n")
        await between.relay.close()
        assert await client.ended() == b""
        assert (await between.carried()).broken == "relay_closed"
        assert (await (await between.connect()).ask()).body == b"relay_closed False"
