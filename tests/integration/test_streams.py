# SPDX-License-Identifier: Apache-2.0
"""Streams whose engine fails, with real engines: continued so that nobody sees it, or ended with an error event."""

import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio

from tests.gateway import CHAT, GatewayProcess, running_gateway
from tests.integration.test_gateway import config, model

COMPLETIONS = "/v1/completions"
SLOW = {"SIM_LOAD_S": "0.2", "SIM_TTFT_S": "0", "SIM_WEIGHTS_MIB": "2000", "SIM_TOKENS_PER_S": "100"}
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]


def two(**more: Any) -> dict[str, Any]:
    return config(models={"m": model("m", instances=2, environment=SLOW, **more)})


@pytest_asyncio.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[GatewayProcess]:
    async with running_gateway(tmp_path, two()) as running:
        await ready(running, 2)
        yield running


async def ready(gateway: GatewayProcess, count: int) -> None:
    await gateway.chat("m")
    await gateway.until(lambda page: page["models"]["m"]["running"] == count)


async def busy(gateway: GatewayProcess) -> dict[str, Any]:
    """The instance that has the one request in flight."""
    page = await gateway.until(lambda page: any(one["in_flight"] for one in page["active_containers_by_name"].values()))
    (found,) = [one for one in page["active_containers_by_name"].values() if one["in_flight"]]
    return dict(found)


async def process_of(gateway: GatewayProcess, instance: str) -> int:
    port = (await gateway.status())["active_containers_by_name"][instance]["address"].rpartition(":")[2]
    children = Path(f"/proc/{gateway.process.pid}/task/{gateway.process.pid}/children").read_text().split()
    for child in children:
        if port.encode() in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(port)


async def set_faults(gateway: GatewayProcess, *faults: str) -> None:
    """On every engine, once."""
    for one in (await gateway.status())["active_containers_by_name"].values():
        async with gateway.http.post(f"http://{one['address']}/sim/faults", json=list(faults)) as reply:
            assert reply.status == 200


async def events_of(gateway: GatewayProcess, path: str, **more: Any) -> list[Any]:
    what = {"messages": HELLO} if path == CHAT else {"prompt": "Hello"}
    body = {"model": "m", "stream": True, "temperature": 0, **what, **more}
    async with gateway.http.post(path, json=body) as reply:
        assert reply.status == 200
        assert reply.content_type == "text/event-stream"
        wire = (await reply.content.read()).decode()
    datas = [event.removeprefix("data: ") for event in wire.split("\n\n") if event.startswith("data: ")]
    return [data if data == "[DONE]" else json.loads(data) for data in datas]


def text_of(events: list[Any]) -> str:
    choices = [choice for event in events[:-1] for choice in event.get("choices", ())]
    return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)


async def test_an_engine_killed_within_a_chat_goes_unnoticed_by_the_official_client(gateway: GatewayProcess) -> None:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:

        async def chat(at_tenth: Callable[[], Any]) -> tuple[str, list[Any]]:
            stream = await client.chat.completions.create(
                model="m",
                messages=HELLO,
                max_tokens=60,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
            )
            text, parts = "", []
            async for part in stream:
                parts.append(part)
                text += part.choices[0].delta.content or "" if part.choices else ""
                if len(parts) == 10:
                    await at_tenth()
            return text, parts

        async def nothing() -> None: ...

        async def kill() -> None:
            os.kill(await process_of(gateway, (await busy(gateway))["name"]), signal.SIGKILL)

        whole, uncut = await chat(nothing)
        text, parts = await chat(kill)
    assert text == whole
    assert len({(part.id, part.created, part.model) for part in parts}) == 1
    assert parts[-1].usage == uncut[-1].usage
    assert [part.choices[0].finish_reason for part in parts if part.choices][-1] == "length"
    continued = await gateway.event("stream_continued", how="ids")
    assert continued["tokens"] >= 8
    line = await gateway.event("request_finished", attempts=2)
    assert (line["outcome"], line["continued"]) == ("ok", 1)


FAULTS = ["exit", "reset", "close", "done", "error", "out_of_memory"]


@pytest.mark.parametrize("fault", FAULTS)
async def test_whatever_happens_to_the_engine_the_stream_is_whole(gateway: GatewayProcess, fault: str) -> None:
    for path in CHAT, COMPLETIONS:
        asked = {"max_tokens": 20, "stream_options": {"include_usage": True}}
        whole = await events_of(gateway, path, **asked)
        await gateway.until(lambda page: page["models"]["m"]["running"] == 2)
        await set_faults(gateway)
        first = next(iter((await gateway.status())["active_containers_by_name"].values()))
        async with gateway.http.post(f"http://{first['address']}/sim/faults", json=[f"{fault}_after_tokens=7*1"]):
            pass
        for _ in range(2):  # they take turns
            events = await events_of(gateway, path, **asked)
            assert text_of(events) == text_of(whole)
            assert events[-1] == "[DONE]"
            assert events[-2]["usage"] == whole[-2]["usage"]
            assert len({event["id"] for event in events[:-1]}) == 1
    assert len(gateway.events("stream_continued", how="ids")) == 2
    await gateway.until(lambda page: all(not one["in_flight"] for one in page["active_containers_by_name"].values()))
