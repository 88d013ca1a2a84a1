# SPDX-License-Identifier: Apache-2.0
"""Each fault as a client and an operator see it."""

import asyncio
import json
from contextlib import suppress
from typing import Any

import aiohttp
import pytest

from tests.integration.simulator.launcher import Launcher
from tests.waiting import until
from vllm_gateway.simulator.engine import DEAD_MESSAGE


async def read_events(reply: aiohttp.ClientResponse) -> list[Any]:
    events = []
    async for line in reply.content:
        if line.startswith(b"data: "):
            data = line.removeprefix(b"data: ").strip()
            events.append("[DONE]" if data == b"[DONE]" else json.loads(data))
    return events


@pytest.mark.parametrize(
    ("fault", "status", "text"),
    [
        ("crash_at_start=3", 3, "Segmentation fault"),
        ("crash_during_load=0.05", 1, "Engine core initialization failed"),
        ("value_error_at_start", 1, "ValueError:"),
    ],
)
async def test_a_start_that_fails(launcher: Launcher, fault: str, status: int, text: str) -> None:
    engine = await launcher.start(faults=fault, load_s=30)
    assert await engine.exit_status() == status
    assert text in engine.log


async def test_an_unknown_fault_ends_the_start(launcher: Launcher) -> None:
    engine = await launcher.start(faults="nonsense")
    assert await engine.exit_status() == 1
    assert "SIM_FAULTS: no fault named 'nonsense'" in engine.log


async def test_sigterm_ends_a_load_that_hangs(launcher: Launcher) -> None:
    engine = await launcher.start(faults="hang_during_load")
    await engine.says("vLLM API server version")
    engine.terminate()
    assert await engine.exit_status() == 0


async def test_replies_with_errors_as_often_as_asked(launcher: Launcher) -> None:
    engine = await launcher.ready()
    await engine.faults("status_503*2")
    assert [(await engine.complete())[0] for _ in range(3)] == [503, 503, 200]
    await engine.faults("status_500")
    assert (await engine.complete())[0] == 500
    await engine.faults("shutting_down_500")
    status, answer = await engine.complete()
    assert (status, answer["error"]["message"]) == (500, "cannot schedule new futures after shutdown")
    async with engine.client.post("/sim/faults", json={"health_503": None}) as reply:
        assert await reply.json() == ["health_503"]
    async with engine.client.get("/health") as reply:
        assert reply.status == 503
    assert (await engine.complete())[1]["error"]["message"] == DEAD_MESSAGE
    await engine.faults()
    assert (await engine.complete())[0] == 200
    async with engine.client.post("/sim/faults", json=["nonsense"]) as reply:
        assert reply.status == 400


async def test_silence_can_be_lifted(launcher: Launcher) -> None:
    engine = await launcher.ready()
    await engine.faults("silent")
    with pytest.raises(TimeoutError):
        async with engine.client.get("/health", timeout=aiohttp.ClientTimeout(0.2)):
            pass
    await engine.faults("never_healthy")
    with pytest.raises(TimeoutError):
        async with engine.client.get("/health", timeout=aiohttp.ClientTimeout(0.2)):
            pass
    assert (await engine.complete())[0] == 200


async def test_connections_are_refused_for_a_while(launcher: Launcher) -> None:
    engine = await launcher.ready()
    url = f"{engine.url}/health"
    await engine.faults("refuse_connections=0.3")
    async with aiohttp.ClientSession() as other:
        with pytest.raises(aiohttp.ClientConnectorError):
            await other.get(url)

        async def answers() -> bool:
            try:
                async with other.get(url) as reply:
                    return reply.status == 200
            except aiohttp.ClientConnectorError:
                return False

        await until(answers)


async def test_a_full_backlog_leaves_new_connections_waiting_and_those_there_are_open(launcher: Launcher) -> None:
    engine = await launcher.ready()
    url = f"{engine.url}/health"
    await engine.faults("full_backlog")
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(sock_connect=0.3)) as other:
        with pytest.raises(aiohttp.ConnectionTimeoutError):
            await other.get(url)
        await engine.faults()
        async with other.get(url) as reply:
            assert reply.status == 200


@pytest.mark.parametrize("fault", ["garbage", "cut_head"])
async def test_a_reply_that_is_no_http(launcher: Launcher, fault: str) -> None:
    engine = await launcher.ready(faults=f"{fault}*1")
    with pytest.raises(aiohttp.ClientError):
        await engine.complete()
    assert (await engine.complete())[0] == 200


async def test_a_reply_can_be_held_in_the_middle_and_before_its_end(launcher: Launcher) -> None:
    engine = await launcher.ready(faults="hold_after_tokens=2")
    reply = await engine.stream(max_tokens=5)
    text = b"".join([await reply.content.readuntil(b"\n\n") for _ in range(2)])
    await engine.faults("hold_after_tokens=5")
    text += b"".join([await reply.content.readuntil(b"\n\n") for _ in range(3)])
    assert text.endswith(b"}\n\n")
    assert b'"finish_reason":"length"' in text
    await engine.faults()
    assert await reply.content.read() == b"data: [DONE]\n\n"


async def test_a_stream_that_ends_with_done_alone(launcher: Launcher) -> None:
    engine = await launcher.ready(faults="done_after_tokens=3")
    events = await read_events(await engine.stream())
    assert [event["choices"][0]["finish_reason"] for event in events[:-1]] == [None] * 3
    assert events[-1] == "[DONE]"


async def test_a_stream_that_ends_with_an_error_event(launcher: Launcher) -> None:
    engine = await launcher.ready(faults="error_after_tokens=3")
    events = await read_events(await engine.stream())
    assert len(events) == 5
    assert events[-2]["error"] == {
        "message": DEAD_MESSAGE, "type": "InternalServerError", "param": None, "code": 500
    }  # fmt: skip
    assert (await engine.complete())[0] == 500
    assert (await engine.complete(max_tokens=3))[0] == 200


@pytest.mark.parametrize("fault", ["close_after_tokens=3", "reset_after_tokens=3", "exit_after_tokens=3"])
async def test_a_connection_that_breaks_in_the_middle(launcher: Launcher, fault: str) -> None:
    engine = await launcher.ready(faults=fault)
    with pytest.raises(aiohttp.ClientError):
        await read_events(await engine.stream())
    if fault.startswith("exit"):
        assert await engine.exit_status() == 1
    else:
        async with engine.client.get("/load") as reply:
            assert await reply.json() == {"server_load": 0}


async def test_a_stream_that_goes_silent(launcher: Launcher) -> None:
    engine = await launcher.ready(faults="silent_after_tokens=2*1")
    reply = await engine.stream(max_tokens=20)
    received = b""
    with suppress(TimeoutError):
        async with asyncio.timeout(0.5):
            while not reply.content.at_eof():
                received += await reply.content.readany()
    assert not reply.content.at_eof()
    assert received.count(b"data: {") == 2
    reply.close()
    assert (await engine.complete())[0] == 200


async def test_out_of_memory_kills_all_streams_and_then_the_engine(launcher: Launcher) -> None:
    engine = await launcher.ready()
    other = await engine.stream()
    await engine.faults("out_of_memory_after_tokens=3")
    for reply in (await engine.stream(), other):
        events = await read_events(reply)
        assert events[-2]["error"]["message"] == DEAD_MESSAGE
        assert events[-1] == "[DONE]"
    assert await engine.exit_status() == 1
    assert "torch.OutOfMemoryError" in engine.log
