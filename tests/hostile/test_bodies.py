# SPDX-License-Identifier: Apache-2.0
"""Whatever is in a body, it is carried or refused, nobody else waits for it, and it takes no more memory than it is."""

import asyncio
import contextlib
import gc
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import orjson
import pytest

from tests.hostile import bodies
from tests.hostile.bodies import Body
from tests.integration.front.house import LANES, House, a_request, house
from vllm_gateway.routing import Address, Route, RoutingTable
from vllm_gateway.scheduling import Scheduler
from vllm_gateway.strategies.least_tokens import LeastTokens
from vllm_gateway.strategies.prefix_aware import PrefixAware
from vllm_gateway.strategies.session_affinity import SessionAffinity
from vllm_gateway.telemetry.trace import TraceRecorder

LONGEST_STALL_S = 0.05
MIB = 1 << 20
OTHER_MEMORY = 24 * MIB
"""What comes and goes beside the body: reads, writes, and the test itself."""
_EVENTS = (
    b'data: {"id":"a","object":"o","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"x"},'
    b'"text":"x","finish_reason":"stop","token_ids":[1]}]}\n\ndata: [DONE]\n\n'
)


class Engine:
    """Takes whatever it is sent, and keeps nothing of it; in a thread of its own, so that it costs the loop nothing."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.last = b""
        """The end of the last body."""
        self.first = b""
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError):
            buffer = bytearray(MIB)
            head = b""
            while b"\r\n\r\n" not in head:
                if not (data := peer.recv(65_536)):
                    return
                head += data
            head, _, body = head.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            self.first, tail, come = body, body[-100:], len(body)
            while come < length:
                count = peer.recv_into(buffer)
                tail = (tail + bytes(buffer[:count][-100:]))[-100:]
                come += count
            self.last = tail
            kind = b"text/event-stream" if tail.endswith(b'"return_token_ids":true}') else b"application/json"
            reply = _EVENTS if kind.startswith(b"text") else b"{}"
            peer.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
                % (kind, len(reply))
                + reply
            )


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine()
    yield made
    made.close()


@contextlib.asynccontextmanager
async def stalls() -> AsyncIterator[list[float]]:
    """The processor time of each round of the loop that took more than a millisecond."""
    loop = asyncio.get_running_loop()
    found = [0.0]
    gc.collect()
    gc.freeze()  # all that the tests hold is not the gateway's to look through
    last = time.thread_time()
    handle: asyncio.Handle

    def tick() -> None:
        nonlocal last, handle
        now = time.thread_time()
        if now - last > 0.001:
            found.append(now - last)
        last = now
        handle = loop.call_soon(tick)

    handle = loop.call_soon(tick)
    try:
        yield found
    finally:
        handle.cancel()
        gc.unfreeze()


def _memory(name: str) -> int:
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise LookupError(name)


def _request(body: Body, size: int, lane: str) -> bytes:
    kind = b"Content-Type: %b\r\n" % body.content_type
    return a_request(body.make(size), lane=lane, headers=kind, target=body.path)


def _ask(port: int, request: bytes) -> bytes:
    """The whole reply; runs in a thread."""
    reply = b""
    with socket.create_connection(("127.0.0.1", port)) as connection, contextlib.suppress(ConnectionError):
        connection.settimeout(100)
        connection.sendall(request)
        while not _is_whole(reply) and (data := connection.recv(65_536)):
            reply += data
    return reply


def _is_whole(reply: bytes) -> bool:
    head, _, body = reply.partition(b"\r\n\r\n")
    return b"\r\ncontent-length: %d\r\n" % len(body) in head.lower() + b"\r\n" or body.endswith(b"0\r\n\r\n")


def _routes(port: int, count: int) -> RoutingTable:
    """As many instances, all at one address."""
    return RoutingTable(
        {"m": tuple(Route(f"i{n}", f"m-{n}", "m", Address("127.0.0.1", port), 100) for n in range(count))}
    )


@contextlib.asynccontextmanager
async def gateway_to(engine: Engine, tmp_path: Path, strategy: Scheduler | None = None) -> AsyncIterator[House]:
    """With all that reads bodies: streams that may be continued, a strategy that hashes prompts, a recorder of them."""
    clock = asyncio.get_running_loop().time
    recorder = TraceRecorder(tmp_path / "trace.jsonl", 0.0, pytest.fail)
    try:
        async with house(
            engine.port, max_body=128 * MIB, strategy=strategy or PrefixAware(clock=clock), recorder=recorder
        ) as gateway:
            yield gateway
    finally:
        recorder.close()


async def check(gateway: House, engine: Engine, body: Body, request: bytes) -> None:
    """What became of it, and what is said of it."""
    engine.last = b""
    before = len(gateway.lines)
    reply = await asyncio.to_thread(_ask, gateway.port, request)
    head, _, said = reply.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    line = await gateway.line(before)
    if body.code == bodies.CARRIED:
        assert status == 200, reply[:500]
        last = engine.last.lstrip()  # spaces stand for a byte order mark
        end = last.removesuffix(b',"return_token_ids":true}')
        assert end
        assert request.endswith(end) if end == last else request.endswith(end + b"}")
        assert (line["status"], line["outcome"]) == (200, "ok")
    else:
        error = orjson.loads(said)["error"]
        assert (status, error["code"]) == (404 if body.code == "model_not_found" else 400, body.code), reply[:500]
        assert len(said) < 500
        assert (line["status"], line["outcome"]) == (status, body.code)
    await asyncio.sleep(0)
    assert len(gateway.lines) == before + 1
    assert gateway.api.buffers.held == 0


async def check_cost(gateway: House, engine: Engine, body: Body, size: int, lane: str) -> None:
    request = _request(body, size, lane)
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # the peak begins anew
    before = _memory("VmRSS")
    async with stalls() as found:
        await check(gateway, engine, body, request)
    took = _memory("VmHWM") - before
    assert max(found) < LONGEST_STALL_S, sorted(found)[-5:]
    assert took < 3 * len(request) + OTHER_MEMORY, f"{took >> 20} MiB for {len(request) >> 20} MiB"


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("name", bodies.BOMBS)
@pytest.mark.parametrize(
    "size", [pytest.param(3 * MIB, id="3MiB"), pytest.param(100 * 10**6, marks=pytest.mark.long, id="100MB")]
)
async def test_a_bomb_holds_nobody_up(tmp_path: Path, engine: Engine, size: int, name: str, lane: str) -> None:
    async with gateway_to(engine, tmp_path) as gateway:
        await check_cost(gateway, engine, bodies.BOMBS[name], size, lane)


@pytest.mark.parametrize("name", bodies.SMALL)
async def test_nor_does_a_small_one(tmp_path: Path, engine: Engine, name: str) -> None:
    async with gateway_to(engine, tmp_path) as gateway:
        await check_cost(gateway, engine, bodies.SMALL[name], 125 * 1024, "fast")


@pytest.mark.parametrize("name", bodies.MEDIUM)
async def test_nor_does_one_of_medium_size(tmp_path: Path, engine: Engine, name: str) -> None:
    async with gateway_to(engine, tmp_path) as gateway:
        await check_cost(gateway, engine, bodies.MEDIUM[name], 2 * MIB - 1000, "fast")


@pytest.mark.parametrize("make", [LeastTokens, SessionAffinity])
@pytest.mark.parametrize("name", ["a user", "content of numbers"])
async def test_nor_do_other_strategies_that_read_bodies(
    tmp_path: Path, engine: Engine, name: str, make: Callable[[], Scheduler]
) -> None:
    """With many instances, of which one is there."""
    body = bodies.SMALL.get(name, bodies.BOMBS[name])
    async with gateway_to(engine, tmp_path, make()) as gateway:
        gateway.queues.publish(_routes(engine.port, 64))
        await check_cost(gateway, engine, body, 125 * 1024 if name in bodies.SMALL else 16 * MIB, "fast")


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("name", bodies.ODD)
async def test_what_parsers_differ_in_is_carried_or_refused(
    tmp_path: Path, engine: Engine, name: str, lane: str
) -> None:
    async with gateway_to(engine, tmp_path) as gateway:
        await check(gateway, engine, bodies.ODD[name], _request(bodies.ODD[name], 0, lane))
