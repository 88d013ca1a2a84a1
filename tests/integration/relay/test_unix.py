# SPDX-License-Identifier: Apache-2.0
"""Instances that listen on a Unix socket: as those on a port, with what is special about such sockets."""

import asyncio
import socket
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.relay.wire import gateway
from tests.waiting import until
from vllm_gateway.relay import Limits
from vllm_gateway.routing import Address

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass(slots=True)
class Instance:
    path: Path
    heard: bytes = b""
    connections: int = 0
    open: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        while head := await reader.read(65536):
            self.heard += head
            writer.write(OK)
        self.open -= 1
        writer.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


async def test_connections_are_kept_and_what_the_instance_sees_is_no_path(path: Path) -> None:
    instance = Instance(path)
    server = await asyncio.start_unix_server(instance.serve, path)
    address = Address(path=str(path), key="k1")
    async with server, gateway(address) as between:
        client = await between.connect()
        request = b"POST /v1/x HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer client\r\nContent-Length: 0\r\n\r\n"
        for _ in range(3):
            assert (await client.ask(request)).body == b"ok"
        assert instance.connections == 1
        assert instance.heard.count(b"Host: localhost\r\n") == 3
        assert instance.heard.count(b"Authorization: Bearer k1\r\n") == 3
        assert b"client" not in instance.heard
        between.relay.forget(address)
        await until(lambda: instance.open == 0)


async def test_no_socket_and_a_dead_one_are_refused(path: Path) -> None:
    async with gateway(Address(path=str(path))) as between:
        client = await between.connect()
        assert (await client.ask()).body == b"connect_refused True"
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
            assert (await client.ask()).body == b"connect_refused True"
        assert (await client.ask()).body == b"connect_refused True"


async def test_a_full_backlog_is_waited_for_and_no_longer_than_a_connection_may_take(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as jammed, socket.socket(socket.AF_UNIX) as first:
        jammed.bind(str(path))
        jammed.listen(0)
        first.connect(str(path))
        address = Address(path=str(path))
        async with gateway(address, Limits(connect_s=0.1)) as between:
            assert (await (await between.connect()).ask()).body == b"connect_timeout True"
        async with gateway(address, Limits(connect_s=20)) as between:
            asked = asyncio.create_task((await between.connect()).ask())
            await asyncio.wait({asked}, timeout=0.1)
            jammed.setblocking(False)
            instance = Instance(path)
            async with await asyncio.start_unix_server(instance.serve, sock=jammed):
                assert (await asked).body == b"ok"


class Turns:
    """A guard that holds as it is told."""

    def __init__(self, *holds: bool) -> None:
        self._holds = list(holds)

    def holds(self) -> bool:
        return self._holds.pop(0)


@pytest.mark.parametrize(("holds", "connections"), [([False], 0), ([True, False], 1)])
async def test_a_connection_to_somebody_else_is_given_nothing(holds: list[bool], connections: int) -> None:
    instance = Instance(Path())
    server = await asyncio.start_server(instance.serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        async with gateway(Address("127.0.0.1", port, key="k1", guard=Turns(*holds))) as between:
            assert (await (await between.connect()).ask()).body == b"connect_refused True"
            await until(lambda: instance.open == 0 and instance.connections == connections)
            assert instance.heard == b""
