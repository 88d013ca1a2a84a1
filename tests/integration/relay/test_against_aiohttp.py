# SPDX-License-Identifier: Apache-2.0
"""What a client reads through the relay is what it would read from the instance itself, wherever the reads split."""

import aiohttp
import pytest

from tests.integration.relay.wire import Instance, Peer, gateway, instance

REPLIES = {
    "length": b"HTTP/1.1 200 OK\r\nX-A: x\r\nContent-Length: 11\r\n\r\nhello world",
    "no body": b"HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5;x=y\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: 1\r\n\r\n",
    "interim first": b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 418 Teapot\r\nContent-Length: 2\r\n\r\nno",
    "events": b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    b"Cache-Control: no-cache\r\nX-Accel-Buffering: no\r\n\r\n"
    b'10\r\ndata: {"a": 1}\n\n\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n',
}


async def read(session: aiohttp.ClientSession, port: int) -> tuple[int, str | None, list[tuple[str, str]], bytes]:
    async with session.post(f"http://127.0.0.1:{port}/v1/x", data=b"{}") as reply:
        return reply.status, reply.reason, sorted(reply.headers.items()), await reply.read()


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES.keys())
async def test_every_split_reads_as_the_reply_itself(reply: bytes) -> None:
    cuts = iter([0, *range(1, len(reply))])

    async def script(peer: Peer) -> None:
        while True:
            await peer.message()
            cut = next(cuts)
            await peer.send(reply[:cut], reply[cut:]) if cut else await peer.send(reply)

    engine: Instance
    async with instance(script) as engine, gateway(engine.port) as between, aiohttp.ClientSession() as session:
        itself = await read(session, engine.port)
        for _ in range(1, len(reply)):
            assert await read(session, between.port) == itself
        assert engine.accepted == 2, "one connection of the client's own, and one of the relay's"
