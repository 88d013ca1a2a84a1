# SPDX-License-Identifier: Apache-2.0
"""All bodies together take no more memory than is set: the slowest senders make way, and each is told so."""

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.integration.front.house import LANES, House, a_request, house
from tests.integration.relay.wire import OK, Message, Peer, instance
from tests.waiting import until
from vllm_gateway.api import buffers
from vllm_gateway.api.buffers import Buffers, Pace, buffered_bytes
from vllm_gateway.api.errors import ApiError
from vllm_gateway.api.guests import Bounds
from vllm_gateway.api.receiving import body_time_s
from vllm_gateway.api.visitor import Visitor

KIB = 1024
LIMIT = 512 * KIB
EACH_LANE = pytest.mark.parametrize("lane", LANES)


def large(size: int, lane: str) -> bytes:
    return a_request(b'{"model":"m","x":"' + b"y" * (size - 20) + b'"}', lane=lane)


async def begin(gateway: House, request: bytes, part: int) -> Peer:
    """So much of a request is there, and counted."""
    held = gateway.api.buffers.held
    peer = await gateway.connect()
    await peer.send(request[:part])
    body = part - request.index(b"\r\n\r\n") - 4
    await until(lambda: gateway.api.buffers.held >= held + body)
    return peer


async def answer(peer: Peer) -> None:
    while True:
        await peer.message()
        await peer.send(OK)


def is_full(reply: Message) -> bool:
    return (
        reply.status == 503
        and orjson.loads(reply.body)["error"]["code"] == "buffers_full"
        and bool(reply.header("retry-after"))
    )


@EACH_LANE
async def test_the_slowest_sender_makes_way(lane: str) -> None:
    async with instance(answer) as engine, house(engine.port, max_buffered=LIMIT) as gateway:
        slow = await begin(gateway, large(400 * KIB, lane), 100 * KIB)
        fast = await begin(gateway, large(400 * KIB, lane), 350 * KIB)
        assert gateway.api.buffers.held > 440 * KIB
        request = large(140 * KIB, lane)
        third = await begin(gateway, request, 40 * KIB)
        await third.send(request[40 * KIB :])
        assert is_full(await slow.message())
        assert (await third.message()).status == 200
        await fast.send(large(400 * KIB, lane)[350 * KIB :])
        assert (await fast.message()).status == 200
        await until(lambda: len(gateway.lines) == 3)
        assert [line["outcome"] for line in gateway.lines].count("buffers_full") == 1
    assert gateway.api.buffers.held == 0


@EACH_LANE
async def test_what_waits_holds_its_memory_and_gives_it_back(lane: str) -> None:
    async with instance(answer) as engine, house(max_buffered=LIMIT) as gateway:
        waiting = [await begin(gateway, large(200 * KIB, lane), len(large(200 * KIB, lane))) for _ in range(2)]
        await until(lambda: gateway.queues.waiting("m") == 2)
        refused = await gateway.ask(large(200 * KIB, lane))
        assert is_full(refused)
        assert gateway.api.buffers.held == 400 * KIB
        gateway.publish([engine.port])
        assert [(await peer.message()).status for peer in waiting] == [200, 200]
        await until(lambda: gateway.api.buffers.held == 0)
        assert (await gateway.ask(large(200 * KIB, lane))).status == 200


@EACH_LANE
@pytest.mark.parametrize("size", [1 * KIB, 300 * KIB])
async def test_who_leaves_gives_it_back(lane: str, size: int) -> None:
    async with house(max_buffered=LIMIT) as gateway:
        for part in (size // 2, size):
            peer = await begin(gateway, large(size, lane), part)
            await peer.close()
            await until(lambda: gateway.api.buffers.held == 0)


@EACH_LANE
async def test_however_many_come_slowly_the_limit_holds(lane: str) -> None:
    async with instance(answer) as engine, house(engine.port, max_buffered=LIMIT) as gateway:
        most = 0
        for _ in range(20):
            peer = await gateway.connect()
            await peer.send(large(400 * KIB, lane)[: 60 * KIB])
            await asyncio.sleep(0.01)
            most = max(most, gateway.api.buffers.held)
        await until(lambda: sum(line["outcome"] == "buffers_full" for line in gateway.lines) >= 10)
        assert most <= LIMIT


@EACH_LANE
async def test_heads_that_do_not_end_count_too(lane: str) -> None:
    """On connections that wait for their next request, in their lane."""
    async with instance(answer) as engine, house(engine.port, max_buffered=LIMIT) as gateway:
        peers = [await gateway.connect() for _ in range(20)]
        for peer in peers:
            assert (await peer.ask(a_request(lane=lane))).status == 200
            await peer.send(a_request(lane=lane)[:40] + b"\r\nX: " + b"y" * (50 * KIB))
        await until(lambda: sum(line["outcome"] == "buffers_full" for line in gateway.lines) >= 9)
        assert LIMIT - 60 * KIB < gateway.api.buffers.held <= LIMIT
        assert is_full(await peers[0].message()), "it has been there for longest"
        for peer in peers:
            peer.writer.transport.abort()
        await until(lambda: gateway.api.buffers.held == 0)


@EACH_LANE
async def test_requests_that_come_ahead_count_too_and_the_one_at_hand_is_answered(lane: str) -> None:
    async with instance(answer) as engine, house(max_buffered=LIMIT) as gateway:
        peers = [await gateway.connect() for _ in range(10)]
        for peer in peers:
            await peer.send(a_request(lane=lane))
        await until(lambda: gateway.queues.waiting("m") == len(peers))
        for peer in peers:
            await peer.send(a_request(b'{"model":"m","x":"' + b"y" * (100 * KIB) + b'"}', lane=lane))
        await until(lambda: len([one for one in gateway.connections if takes_no_more(one)]) >= 2)
        assert gateway.api.buffers.held <= LIMIT
        gateway.publish([engine.port])
        assert {(await peer.message()).status for peer in peers} == {200}
        seconds = [await asyncio.gather(peer.message(), return_exceptions=True) for peer in peers]
        closed = [one for one in seconds if isinstance(one[0], asyncio.IncompleteReadError)]
        assert 2 <= len(closed) < len(peers)
        assert {one[0].status for one in seconds if isinstance(one[0], Message)} == {200}
        await until(lambda: gateway.api.buffers.held == 0)


def takes_no_more(connection: Any) -> bool:
    return bool(connection._is_last if isinstance(connection, Visitor) else connection._last)


class Clocked:
    """Senders by name, on a clock that is set."""

    def __init__(self, limit: int) -> None:
        self.now = 0.0
        self.buffers = Buffers(limit, lambda: self.now)
        self.refused: list[str] = []

    def sender(self, name: str) -> "_Sender":
        return _Sender(name, self)


class _Sender:
    def __init__(self, name: str, clocked: Clocked) -> None:
        self.name = name
        self.pace: Pace | None = Pace(clocked.now)
        self._clocked = clocked

    def make_way(self, error: ApiError) -> None:
        self._clocked.refused.append(self.name)


def test_one_that_has_stalled_is_slower_than_one_that_has_just_begun() -> None:
    clocked = Clocked(1000)
    stalled, steady = clocked.sender("stalled"), clocked.sender("steady")
    clocked.buffers.came(stalled, 600)
    for second in range(20):
        clocked.now = float(second)
        clocked.buffers.came(steady, 15)
    clocked.buffers.came(clocked.sender("new"), 200)
    assert clocked.refused == ["stalled"]
    assert clocked.buffers.held == 500


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 400), st.floats(0, 3)), max_size=60))
def test_the_books_are_right_whatever_comes(arrivals: list[tuple[int, int, float]]) -> None:
    clocked = Clocked(1000)
    senders = {number: clocked.sender(str(number)) for number in range(6)}
    for number, size, pause_s in arrivals:
        clocked.now += pause_s
        if str(number) not in clocked.refused:
            clocked.buffers.came(senders[number], size)
        paces = [sender.pace.held for sender in senders.values() if sender.pace]
        assert clocked.buffers.held == sum(paces) <= 1000
    for sender in senders.values():
        clocked.buffers.left(sender)
    assert clocked.buffers.held == 0


def test_a_large_body_has_to_come_faster() -> None:
    bounds = Bounds(stall_s=60, body_s=300)
    assert body_time_s(10 * KIB, 10 * KIB, bounds) == pytest.approx(70)
    assert body_time_s(100 << 20, 100 << 20, bounds) == pytest.approx(360)
    assert body_time_s(60 * KIB, 100 << 20, bounds) < 61, "a dripping one is known early"


def test_the_memory_is_the_containers_if_that_is_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "memory.max"
    monkeypatch.setattr(buffers, "_MEMORY_LIMITS", (str(file), str(tmp_path / "none")))
    of_the_machine = buffered_bytes(None)
    file.write_text("max\n")
    assert buffered_bytes(None) == of_the_machine <= 2 << 30
    file.write_text(str(64 << 20))
    assert buffered_bytes(None) == 16 << 20
    assert buffered_bytes(5) == 5 << 20
