# SPDX-License-Identifier: Apache-2.0
"""The gateway's own calls to engines end in time, with an answer of bounded size or none, and never hold the loop."""

import asyncio
import contextlib
import gzip
from collections.abc import AsyncIterator, Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.hostile.turns import watched_turns
from tests.integration.relay.wire import Instance, Peer, instance
from tests.waiting import until
from vllm_gateway.fleet import engine_metrics, health
from vllm_gateway.fleet.engines import vllm_sleep
from vllm_gateway.fleet.engines.calls import MOST_BYTES, Answer, CallFailed, call
from vllm_gateway.fleet.instance import State
from vllm_gateway.fleet.registry import ContainerRegistry
from vllm_gateway.routing import Address, EngineMetrics, ModelCard

LONGEST_TURN_S = 0.05
HTTP = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HTTP + b"Transfer-Encoding: chunked\r\n\r\n"
PART = 128 << 10
RUNNING = b'vllm:num_requests_running{engine="0"} %b\n'


def whole(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    lines = b"".join(line + b"\r\n" for line in headers)
    return b"HTTP/1.1 " + status + b"\r\n" + lines + b"Content-Length: %d\r\n\r\n" % len(body) + body


@contextlib.asynccontextmanager
async def engine(begin: bytes, again: bytes = b"", *, closes: bool = False) -> AsyncIterator[tuple[Instance, Address]]:
    """Answers whatever it is asked with this; if there is something to be said again, then without end."""

    async def script(peer: Peer) -> None:
        await peer.message(bodiless=False)
        await peer.send(begin)
        while again:
            await peer.send(again)
        if not closes:
            await peer.ended()

    async with instance(script) as there:
        yield there, Address("127.0.0.1", there.port)


TAKEN = {
    "a length": (whole(b"ok"), Answer(200, b"ok")),
    "chunks": (CHUNKED + b"1;a\r\no\r\n1\r\nk\r\n0\r\nX: y\r\n\r\n", Answer(200, b"ok")),
    "no body": (b"HTTP/1.1 204 No\r\n\r\n", Answer(204, b"")),
    "interim replies": (b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + whole(b"ok"), Answer(200, b"ok")),
    "a redirect": (whole(b"", b"Location: http://127.0.0.1:1/", status=b"302 Found"), Answer(302, b"")),
    "more than its length": (whole(b"ok") + b"more", Answer(200, b"ok")),
}


@pytest.mark.parametrize(("wire", "answer"), TAKEN.values(), ids=TAKEN.keys())
async def test_an_answer(wire: bytes, answer: Answer) -> None:
    async with engine(wire) as (there, address):
        assert await call(address, "/x", limit_s=5) == answer
        await until(lambda: there.open == 0)


async def test_an_answer_that_ends_with_its_connection() -> None:
    async with engine(HTTP + b"\r\nok", closes=True) as (_, address):
        assert await call(address, "/x", limit_s=5) == Answer(200, b"ok")


BOMBS: Mapping[str, tuple[bytes, bytes]] = {
    "silence": (b"", b""),
    "half a head": (HTTP, b""),
    "half a body": (HTTP + b"Content-Length: 9\r\n\r\nok", b""),
    "a length beyond all": (HTTP + b"Content-Length: %d\r\n\r\n" % (1 << 50), b"x" * PART),
    "a body without end": (HTTP + b"\r\n", b"x" * PART),
    "lines without end": (HTTP, b"A: b\r\n" * (PART // 6)),
    "a line without end": (HTTP + b"A: ", b"b" * PART),
    "interim replies": (b"", b"HTTP/1.1 100 \r\n\r\n" * (PART // 17)),
    "tiny chunks": (CHUNKED, b"1\r\nx\r\n" * (PART // 6)),
    "extensions": (CHUNKED, b"1;a=b\r\nx\r\n" * (PART // 10)),
    "a size without end": (CHUNKED, b"0" * PART),
    "trailers without end": (CHUNKED + b"0\r\n", b"A: b\r\n" * (PART // 6)),
    "compressed": (whole(gzip.compress(bytes(8 << 20)), b"Content-Encoding: gzip"), b""),
    "another protocol": (b"HTTP/1.1 101 x\r\nUpgrade: y\r\n\r\n", b"x" * PART),
    "no HTTP": (b"SSH-2.0-x\r\n\r\n", b""),
    "two lengths": (HTTP + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nokk", b""),
}


@pytest.mark.parametrize(("begin", "again"), BOMBS.values(), ids=BOMBS.keys())
async def test_no_answer(begin: bytes, again: bytes) -> None:
    limit_s = 30.0 if again or len(begin) > 1000 else 0.2
    async with engine(begin, again) as (there, address):
        with watched_turns() as turns:
            async with asyncio.timeout(30):
                with pytest.raises(CallFailed):
                    await call(address, "/x", limit_s=limit_s)
        assert turns.longest_s < LONGEST_TURN_S
        await until(lambda: there.open == 0)


async def test_a_body_that_drips_has_its_time_and_no_more() -> None:
    async def script(peer: Peer) -> None:
        await peer.message()
        await peer.send(HTTP + b"\r\n")
        while True:
            await peer.send(b"x")
            await asyncio.sleep(0.01)

    async with instance(script) as there:
        with pytest.raises(CallFailed, match=r"0\.2 s"):
            await call(Address("127.0.0.1", there.port), "/x", limit_s=0.2)


async def test_nobody_there() -> None:
    with pytest.raises(CallFailed):
        await call(Address("127.0.0.1", 1), "/x", limit_s=5)
    with pytest.raises(CallFailed):
        await call(Address(path="/nowhere/at/all"), "/x", limit_s=5)


async def test_a_redirect_is_no_health_and_is_not_followed() -> None:
    async with engine(whole(b"")) as (elsewhere, there):
        to = b"Location: http://%b/health" % there.authority.encode()
        async with engine(whole(b"", to, status=b"302 Found")) as (_, address):
            assert not await health.passes(address)
            assert await health.models(address) is None
            assert await vllm_sleep.is_sleeping(address) is None
        assert elsewhere.accepted == 0


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"data":{}}', b'{"data":[1]}', b'{"is_sleeping":"x"}', b"[" * MOST_BYTES, b"\xff"]
)
async def test_what_is_no_answer_of_an_engine(body: bytes) -> None:
    async with engine(whole(body)) as (_, address):
        assert await health.models(address) is None
        assert await vllm_sleep.is_sleeping(address) is None


LISTED = (
    b'{"object":"list","data":[{"id":"a","root":"org/a","max_model_len":8192,"permission":[]},{"id":"b"},'
    b'{"id":"c","root":["x"],"max_model_len":-1},{"id":"d","max_model_len":"8k"},{"id":"e","max_model_len":1e30}]}'
)


async def test_models_are_read() -> None:
    async with engine(whole(LISTED)) as (_, address):
        assert await health.models(address) == {
            "a": ModelCard("org/a", 8192),
            **dict.fromkeys("bcde", ModelCard()),
        }


PAGES = {
    "infinity": RUNNING % b"+Inf",
    "no number": RUNNING % b"NaN",
    "a million lines": RUNNING % b"1" * 100_000,
    "a million other lines": b"a 1\n" * 1_000_000,
    "more than is read": b"# \n" * (2 << 20),
    "no text": b"\xff\xfe" * 100,
}


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES.keys())
async def test_one_bad_page_of_metrics_costs_the_others_nothing(page: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_metrics, "PACE_S", 0.5)
    found: dict[str, EngineMetrics] = {}
    bad_asked = 0

    async def bad_script(peer: Peer) -> None:
        nonlocal bad_asked
        await peer.message()
        bad_asked += 1
        await peer.send(whole(page))

    async with instance(bad_script) as bad, engine(whole(RUNNING % b"3")) as (_, good):
        addresses = {"bad": Address("127.0.0.1", bad.port), "good": good}
        registry = [
            SimpleNamespace(instance_id=name, model="m", state=State.READY, running=SimpleNamespace(address=address))
            for name, address in addresses.items()
        ]

        def measured(name: str, metrics: EngineMetrics) -> None:
            found[name] = metrics
            rounds.append(name)

        rounds: list[str] = []
        with watched_turns() as turns:
            following = asyncio.create_task(
                engine_metrics.follow(lambda: ["m"], cast(ContainerRegistry, cast(Any, registry)), measured)
            )
            await until(lambda: rounds.count("good") > 2 and bad_asked > 2)
            following.cancel()
        assert found["good"].running == 3
        assert turns.longest_s < LONGEST_TURN_S
        if "bad" in found:
            assert found["bad"].running == 0
