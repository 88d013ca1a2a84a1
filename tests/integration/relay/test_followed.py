# SPDX-License-Identifier: Apache-2.0
"""A followed stream: the client's head and framing hold, whatever becomes of the instances that its parts come from."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.integration.relay.wire import (
    Gateway,
    Message,
    Peer,
    a_request,
    answering,
    gateway,
    instance,
)
from tests.waiting import LIMIT_S, until
from vllm_gateway.bodies.payload import Payload
from vllm_gateway.relay import Carried, Client, ClientStream, Instructions, Limits, NoStream
from vllm_gateway.relay.framing import Chunked
from vllm_gateway.routing import Address

HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nX-Engine: 1\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
END = b"0\r\n\r\n"


def chunk(event: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(event), event)


def events(message: Message) -> bytes:
    """The body's data, if it was a whole one in chunks."""
    parts: list[bytes] = []
    framing = Chunked()
    assert framing.feed(message.body, parts) == len(message.body)
    assert framing.done and not message.cut
    return b"".join(parts)


class Loud:
    """Passes all on in capitals; the stream is whole with `end`, and has failed with `bad`."""

    def __init__(self) -> None:
        self.done = False
        self.failed: str | None = None

    def feed(self, payload: bytes) -> bytes:
        if b"bad" in payload:
            self.failed = "engine_error"
            return b""
        self.done = self.done or b"end" in payload
        return payload.upper()

    is_between_events = True

    def feed_chunk(self, chunk: bytes) -> bytes | None:
        """Takes one chunk of one event as a whole, and no other."""
        whole = chunk.startswith(b"9\r\n") and chunk.endswith(b"\n\n\r\n")
        return chunk.upper() if whole else None


@contextlib.asynccontextmanager
async def following(port: int, limits: Limits | None = None, *, begun: bool = False) -> AsyncIterator[Gateway]:
    """A gateway that asks the same instance again when a stream is cut, once, and then says so."""
    async with gateway(port, limits) as between:

        async def carry(client: Client, address: Address, body: Payload, instructions: Instructions) -> Carried:
            stream = ClientStream(client, Loud(), instructions.own)
            if begun:
                stream.begin()
                stream.write(b": patience\n\n")
            for attempt in range(2):
                stream.follower = Loud()
                try:
                    carried = await between.relay.carry_on(stream, address, f"/part/{attempt}", body, instructions)
                except NoStream as failure:
                    stream.write(b"data: %d %b\n\n" % (failure.status, failure.body))
                    break
                if carried.broken is None or not stream.begun or stream.transport.is_closing():
                    return carried
            else:
                stream.write(b"data: cut\n\n")
            stream.end()
            return stream.carried("cut")

        between.relay.carry = carry  # type: ignore[method-assign]
        yield between


async def test_a_whole_stream_keeps_both_connections() -> None:
    reply = HEAD + chunk(b"data: a\n\n") + chunk(b"data: end\n\n") + END
    async with instance(answering(reply, reply)) as engine, following(engine.port) as between:
        client = await between.connect()
        for _ in range(2):
            message = await client.ask()
            assert (message.status, events(message)) == (200, b"DATA: A\n\nDATA: END\n\n")
            assert message.header("x-engine") == [b"1"]
        assert engine.accepted == 1


@pytest.mark.parametrize(
    "cut",
    [
        chunk(b"data: a\n\n"),  # and the connection closes
        chunk(b"data: a\n\n") + b"ff\r\n",  # within a chunk
        chunk(b"data: a\n\n") + END,  # ended properly, and yet not whole
        chunk(b"data: a\n\n") + chunk(b"bad"),
        chunk(b"data: a\n\n") + b"no chunk\r\n",
    ],
)
async def test_a_cut_stream_goes_on_under_the_same_head(cut: bytes) -> None:
    seen: list[bytes] = []

    async def script(peer: Peer) -> None:
        seen.append((await peer.message()).head.split(b" ")[1])
        if len(seen) == 1:
            await peer.send(HEAD + cut)
            peer.writer.close()
        else:
            await peer.send(HEAD + chunk(b"data: end\n\n") + END)

    async with instance(script) as engine, following(engine.port) as between:
        client = await between.connect()
        message = await client.ask()
        assert events(message) in (b"DATA: A\n\nDATA: END\n\n", b"DATA: END\n\n")
        assert message.header("transfer-encoding") == [b"chunked"]
        assert seen == [b"/part/0", b"/part/1"]
        assert (await between.carried()).keeps_client


async def test_chunks_taken_as_a_whole_count_and_keep_their_order() -> None:
    split = (b"9\r\ndata:", b" c\n\n\r\n")

    async def script(peer: Peer) -> None:
        await peer.message()
        await peer.send(HEAD + chunk(b"data: a\n\n"), chunk(b"data: b\n\n"), *split, chunk(b"data: d\n\n"))
        await peer.send(chunk(b"data: end\n\n") + END)

    async with instance(script) as engine, following(engine.port) as between:
        client = await between.connect()
        message = await client.ask()
        assert events(message) == b"DATA: A\n\nDATA: B\n\nDATA: C\n\nDATA: D\n\nDATA: END\n\n"
        carried = await between.carried()
        assert carried.bytes_sent == len(message.head) + len(message.body)


async def test_a_stream_that_nobody_can_go_on_with_is_ended_by_its_owner() -> None:
    async def script(peer: Peer) -> None:
        await peer.message()
        await peer.send(HEAD + chunk(b"data: a\n\n"))
        peer.writer.close()

    async with instance(script) as engine, following(engine.port) as between:
        message = await (await between.connect()).ask()
        assert events(message) == b"DATA: A\n\nDATA: A\n\ndata: cut\n\n"


async def test_a_whole_stream_needs_no_last_chunk() -> None:
    async def script(peer: Peer) -> None:
        await peer.message()
        await peer.send(HEAD + chunk(b"data: end\n\n"))
        peer.writer.close()

    async with instance(script) as engine, following(engine.port) as between:
        message = await (await between.connect()).ask()
        assert events(message) == b"DATA: END\n\n"


async def test_what_is_no_stream_passes_unchanged_while_the_client_has_nothing() -> None:
    refusal = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 3\r\n\r\nbad"
    async with instance(answering(refusal)) as engine, following(engine.port) as between:
        message = await (await between.connect()).ask()
        assert (message.status, message.body) == (400, b"bad")


async def test_what_is_no_stream_is_told_apart_once_the_client_has_a_head() -> None:
    refusal = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 3\r\n\r\nbad"
    async with instance(answering(refusal)) as engine, following(engine.port, begun=True) as between:
        message = await (await between.connect()).ask()
        assert (message.status, events(message)) == (200, b": patience\n\ndata: 400 bad\n\n")


async def test_an_old_client_gets_events_without_chunks() -> None:
    reply = HEAD + chunk(b"data: a\n\n") + chunk(b"data: end\n\n") + END
    async with instance(answering(reply)) as engine, following(engine.port) as between:
        client = await between.connect()
        await client.send(b"POST / HTTP/1.0\r\nContent-Length: 0\r\n\r\n")
        head, _, body = (await client.reader.read()).partition(b"\r\n\r\n")
        assert b"chunked" not in head
        assert body == b"DATA: A\n\nDATA: END\n\n"


async def test_a_client_that_leaves_a_followed_stream_frees_the_instance() -> None:
    async def script(peer: Peer) -> None:
        await peer.message()
        await peer.send(HEAD + chunk(b"data: a\n\n"))
        await peer.ended()

    async with instance(script) as engine, following(engine.port) as between:
        client = await between.connect()
        await client.send(a_request())
        await client.reader.readuntil(b"DATA: A")
        client.writer.close()
        assert (await between.carried()).broken == "client_gone"
        await until(lambda: engine.open == 0)


async def test_a_slow_client_of_a_followed_stream_holds_the_instance_back_and_gets_everything() -> None:
    event = b"data: " + b"x" * 65536 + b"\n\n"

    async def script(peer: Peer) -> None:
        await peer.message()
        await peer.send(HEAD)
        for _ in range(200):
            await peer.send(chunk(event))
        await peer.send(chunk(b"data: end\n\n") + END)

    async with instance(script) as engine, following(engine.port, Limits(idle_s=0.1)) as between:
        client = await between.connect(receive_buffer=64 * 1024)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(a_request())
        await until(lambda: any(connection.writing_paused for connection in between.server.connections))
        await asyncio.sleep(0.2)  # longer than the idle limit, which does not count while it is the client who is slow
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        await client.reader.readuntil(b"\r\n\r\n")
        body = b""
        async with asyncio.timeout(LIMIT_S):
            while not body.endswith(END):
                body += await client.reader.read(1 << 20)
        assert len(events(Message(b"", body))) == 200 * len(event) + len(b"data: end\n\n")


async def test_a_client_that_stopped_reading_a_followed_stream_is_given_up() -> None:
    event = b"data: " + b"x" * 65536 + b"\n\n"

    async def script(peer: Peer) -> None:
        await peer.message()
        await peer.send(HEAD)
        for _ in range(500):
            await peer.send(chunk(event))
        await peer.ended()

    async with instance(script) as engine, following(engine.port, Limits(client_stall_s=0.1)) as between:
        client = await between.connect(receive_buffer=64 * 1024)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(a_request())
        assert (await between.carried()).broken == "client_stalled"
        await until(lambda: engine.open == 0)


async def test_the_wait_for_the_first_event_has_the_limit_of_the_first_byte() -> None:
    """Engines send the head at once, and read the prompt then."""

    async def script(peer: Peer) -> None:
        await peer.message()
        await peer.send(HEAD)
        await asyncio.sleep(0.3)  # it reads the prompt
        await peer.send(chunk(b"data: end\n\n") + END)

    async with instance(script) as engine:
        async with following(engine.port, Limits(first_byte_s=5, idle_s=0.05)) as between:
            assert events(await (await between.connect()).ask()) == b"DATA: END\n\n"
        async with following(engine.port, Limits(first_byte_s=0.05, idle_s=5)) as between:
            assert events(await (await between.connect()).ask()) == b"data: cut\n\n"


async def test_a_stream_without_its_first_event_is_sent_away_from_a_silent_instance() -> None:
    async def script(peer: Peer) -> None:
        first = b"/part/0" in (await peer.message()).head
        await peer.send(HEAD)
        if not first:
            await peer.send(chunk(b"data: end\n\n") + END)
        await peer.ended()

    async with instance(script) as engine, following(engine.port) as between:
        client = await between.connect()
        asked = asyncio.create_task(client.ask())
        await until(lambda: any(one.status for one in between.relay._active))
        between.relay.abandon(Address("127.0.0.1", engine.port))
        assert events(await asked) == b"DATA: END\n\n"
        assert engine.accepted == 2
