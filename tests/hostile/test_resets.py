# SPDX-License-Identifier: Apache-2.0
"""A client that resets its connection with the last bytes: whatever is seen first, the instance is not to blame."""

import asyncio
import socket
import struct

import pytest

from tests.hostile.replies import LAST, STREAM, chunk
from tests.integration.front.house import LANES, a_request, house
from tests.integration.relay.wire import Peer, instance
from tests.waiting import until

STREAMING = b'{"model":"m","stream":true,"messages":[]}'
OF = b'data: {"id":"1","object":"o","created":1,"model":"m","choices":'
EVENT = chunk(OF + b'[{"index":0,"delta":{"content":"hi"},"finish_reason":null}]}\n\n')
END = chunk(OF + b'[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n')
DONE = chunk(b"data: [DONE]\n\n") + LAST
ROUNDS = 20


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("last", [END + DONE, END, b"nonsense"], ids=["the last bytes", "nearly the last", "nonsense"])
async def test_the_client_left(lane: str, last: bytes) -> None:
    """Its reset and the bytes arrive together: some writes to it fail before its end has been read."""
    engines: asyncio.Queue[Peer] = asyncio.Queue()

    async def engine(peer: Peer) -> None:
        while await peer.message():
            await peer.send(STREAM + EVENT)
            engines.put_nowait(peer)

    loop = asyncio.get_running_loop()
    async with instance(engine) as there, instance(engine) as other, house(there.port, other.port) as gateway:
        for count in range(ROUNDS):
            with socket.socket() as client:
                client.setblocking(False)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                await loop.sock_connect(client, ("127.0.0.1", gateway.port))
                await loop.sock_sendall(client, a_request(STREAMING, lane=lane))
                seen = b""
                while b"hi" not in seen:
                    seen += await loop.sock_recv(client, 4096)
                peer = await engines.get()
            peer.writer.write(last)  # in the same turn of the loop
            await until(lambda: len(gateway.lines) > count)  # noqa: B023
        assert {line["outcome"] for line in gateway.lines} == {"client_gone"}
        assert not [what for what in gateway.fleet.heard if what.startswith("suspect")]
        assert not gateway.queues.of("m")._health.troubled
