# SPDX-License-Identifier: Apache-2.0
"""Bare ends of the wire: instances that follow a script, clients that see every byte, and the relay between them."""

import asyncio
import contextlib
import re
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.waiting import LIMIT_S, until
from vllm_gateway.relay import (
    AiohttpClient,
    Carried,
    CarriedResponse,
    ClientGone,
    HasGivenUp,
    Instructions,
    Limits,
    Relay,
    UpstreamFailed,
    own_headers,
)
from vllm_gateway.relay.heads import Headers
from vllm_gateway.routing import Address

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass(slots=True)
class Message:
    """A head and a body, as they came; `cut` if the connection ended before the body did."""

    head: bytes
    body: bytes
    cut: bool = False

    @property
    def status(self) -> int:
        return int(self.head.split(b" ", 2)[1])

    def header(self, name: str) -> list[bytes]:
        return re.findall(rb"(?im)^" + name.encode() + rb":[ ]*(.*)\r$", self.head)


class Peer:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, port: int, *, receive_buffer: int | None = None) -> "Peer":
        sock = socket.socket()
        sock.setblocking(False)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        return cls(*await asyncio.open_connection(sock=sock, limit=2**20))

    async def send(self, *parts: bytes) -> None:
        """Each part in a write of its own, so that reads on the other side are likely to be split there."""
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()
            if len(parts) > 1:
                await asyncio.sleep(0.001)

    async def message(self, *, bodiless: bool = False) -> Message:
        """Reads one; the body raw, framing included."""
        async with asyncio.timeout(LIMIT_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
            message = Message(head, b"")
            length, chunked = message.header("content-length"), message.header("transfer-encoding")
            is_request = not head.startswith(b"HTTP/")
            if bodiless or (not is_request and message.status in (204, 304)):
                return message
            try:
                if chunked:
                    while not re.search(rb"(?:^|\r\n)0\r\n(?:.+\r\n)*\r\n$", message.body):
                        message.body += await self.reader.readuntil(b"\r\n")
                elif length or is_request:
                    message.body = await self.reader.readexactly(int(length[0]) if length else 0)
                else:
                    message.body = await self.reader.read()
            except asyncio.IncompleteReadError as error:
                message.body += error.partial
                message.cut = True
            return message

    async def ask(self, request: bytes | None = None) -> Message:
        request = request or a_request()
        await self.send(request)
        return await self.message(bodiless=request.startswith(b"HEAD "))

    async def ended(self) -> bytes:
        """Waits for the other side to close; what came before that."""
        async with asyncio.timeout(LIMIT_S):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


def a_request(body: bytes = b"{}", *, method: str = "POST", version: str = "1.1", headers: bytes = b"") -> bytes:
    if method != "POST":
        body = b""
    length = b"Content-Length: %d\r\n" % len(body) if method == "POST" else b""
    return f"{method} /v1/x HTTP/{version}\r\nHost: gateway\r\n".encode() + headers + length + b"\r\n" + body


Script = Callable[[Peer], Awaitable[None]]


def answering(*replies: bytes) -> Script:
    """Answers each request with the next of these, and the last one from then on."""

    async def script(peer: Peer) -> None:
        count = 0
        while True:
            await peer.message()
            await peer.send(replies[min(count, len(replies) - 1)])
            count += 1

    return script


@dataclass
class Instance:
    """An instance that does as its script says, on each connection."""

    script: Script
    port: int = 0
    accepted: int = 0
    open: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self.open += 1
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            await self.script(Peer(reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the other side closed, or the test is over
        finally:
            self.open -= 1
            self.tasks.discard(task)
            writer.transport.abort() if writer.transport.is_closing() else writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def instance(script: Script) -> AsyncIterator[Instance]:
    serving = Instance(script)
    server = await asyncio.start_server(serving.serve, "127.0.0.1", 0)
    serving.port = server.sockets[0].getsockname()[1]
    try:
        yield serving
    finally:
        server.close()
        for task in list(serving.tasks):
            task.cancel()
        await asyncio.gather(*serving.tasks, return_exceptions=True)


@dataclass
class Gateway:
    """A server whose handler does nothing but carry to one instance, and keeps what became of it."""

    relay: Relay
    server: web.Server
    instance: Address
    limits: Limits
    own: Headers
    has_given_up: HasGivenUp | None
    port: int = 0
    peers: list[Peer] = field(default_factory=list)
    outcomes: list[Carried | str] = field(default_factory=list)
    entered: int = 0

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        self.entered += 1
        client = AiohttpClient(request, request.raw_path)
        instructions = Instructions(self.limits, own_headers(self.own), has_given_up=self.has_given_up)
        try:
            carried = await self.relay.carry(client, self.instance, body, instructions)
        except UpstreamFailed as failure:
            self.outcomes.append(failure.reason)
            return web.Response(status=502, text=f"{failure.reason} {failure.retryable}")
        except ClientGone:
            self.outcomes.append("client_gone")
            return web.Response(status=499)
        self.outcomes.append(carried)
        return CarriedResponse(request, carried, lambda: self.relay.settle(client, carried))

    async def connect(self, *, receive_buffer: int | None = None) -> Peer:
        peer = await Peer.connect(self.port, receive_buffer=receive_buffer)
        self.peers.append(peer)
        return peer

    async def outcome(self, index: int = -1) -> Carried | str:
        await until(lambda: len(self.outcomes) > max(index, 0))
        return self.outcomes[index]

    async def carried(self, index: int = -1) -> Carried:
        outcome = await self.outcome(index)
        assert isinstance(outcome, Carried), outcome
        return outcome


@contextlib.asynccontextmanager
async def gateway(
    instance: int | Address,
    limits: Limits | None = None,
    *,
    own: Headers = (),
    handler_cancellation: bool = True,
    has_given_up: HasGivenUp | None = None,
) -> AsyncIterator[Gateway]:
    """`instance`: its port on 127.0.0.1, or where else it is reached."""
    loop = asyncio.get_running_loop()
    reached = instance if isinstance(instance, Address) else Address("127.0.0.1", instance)

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        return await between.handle(request)

    def make(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=64 * 2**20)

    server = web.Server(
        handle, request_factory=make, handler_cancellation=handler_cancellation, auto_decompress=False, access_log=None
    )
    limits = limits or Limits()
    async with Relay(limits) as relay:
        between = Gateway(relay, server, reached, limits, own, has_given_up)
        listening = await loop.create_server(server, "127.0.0.1", 0)
        between.port = listening.sockets[0].getsockname()[1]
        try:
            yield between
        finally:
            listening.close()
            for peer in between.peers:
                await peer.close()
            await server.shutdown(1.0)
            await listening.wait_closed()
