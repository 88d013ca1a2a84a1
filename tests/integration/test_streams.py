# SPDX-License-Identifier: Apache-2.0
"""Streams whose engine fails, with real engines: continued so that nobody sees it, or ended with an error event."""

import json
import os
import re
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio

from tests import engines
from tests.engines import engine_pids
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
    address = (await gateway.status())["active_containers_by_name"][instance]["address"]
    return engine_pids(gateway.process.pid)[address]


async def set_faults(gateway: GatewayProcess, *faults: str) -> None:
    """On every engine, once."""
    for one in (await gateway.status())["active_containers_by_name"].values():
        await engines.set_faults(one["address"], *faults)


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
        await engines.set_faults(first["address"], f"{fault}_after_tokens=7*1")
        for _ in range(2):  # they take turns
            events = await events_of(gateway, path, **asked)
            assert text_of(events) == text_of(whole)
            assert events[-1] == "[DONE]"
            assert events[-2]["usage"] == whole[-2]["usage"]
            assert len({event["id"] for event in events[:-1]}) == 1
    assert len(gateway.events("stream_continued", how="ids")) == 2
    await gateway.until(lambda page: all(not one["in_flight"] for one in page["active_containers_by_name"].values()))


@pytest.mark.parametrize(
    ("more", "why"), [({"n": 2}, "n"), ({"logprobs": True}, "logprobs"), ({"stop": ["zzz"]}, "stop")]
)
async def test_what_cannot_be_continued_ends_with_an_error_event(
    gateway: GatewayProcess, more: dict[str, Any], why: str
) -> None:
    await set_faults(gateway, "done_after_tokens=5*1")
    events = await events_of(gateway, CHAT, max_tokens=20, **more)
    assert events[-1]["error"]["code"] == "stream_interrupted"
    assert set(events[-1]["error"]) == {"message", "type", "param", "code"}
    assert "[DONE]" not in events
    assert (await gateway.event("stream_interrupted"))["why"] == why
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        await set_faults(gateway, "exit_after_tokens=5")
        stream: Any = await client.chat.completions.create(model="m", messages=HELLO, stream=True, extra_body=more)
        with pytest.raises(openai.APIError, match="cannot be continued"):
            async for _ in stream:
                pass


@pytest.mark.parametrize("fault", ["reset", "done", "error"])
async def test_a_stream_that_is_not_to_go_on_ends_with_an_error_event_too(tmp_path: Path, fault: str) -> None:
    async with running_gateway(tmp_path, two(resume="off")) as gateway:
        await ready(gateway, 2)
        whole = await events_of(gateway, CHAT, max_tokens=20)
        await set_faults(gateway, f"{fault}_after_tokens=5*1")
        events = await events_of(gateway, CHAT, max_tokens=20)
        assert events[-1]["error"]["code"] == "stream_interrupted"
        assert [event["choices"] for event in events[:-1]] == [event["choices"] for event in whole[:6]]
        assert (await gateway.event("stream_interrupted"))["why"] == "resume is off"


async def test_the_text_serves_where_the_ids_do_not(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, two(resume="best_effort")) as gateway:
        await ready(gateway, 2)
        whole = await events_of(gateway, CHAT, max_tokens=20)
        await set_faults(gateway, "close_after_tokens=5*1")
        events = [await events_of(gateway, CHAT, max_tokens=20, stop=["zzz"]) for _ in range(2)]
        assert [text_of(one) for one in events] == [text_of(whole)] * 2
        await gateway.event("stream_continued", how="text")


async def test_an_engine_that_falls_silent_is_left(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, {**two(), "timeouts": {"idle_s": 0.3}}) as gateway:
        await ready(gateway, 2)
        whole = await events_of(gateway, CHAT, max_tokens=20)
        await set_faults(gateway, "silent_after_tokens=5*1")
        events = await events_of(gateway, CHAT, max_tokens=20)
        assert text_of(events) == text_of(whole)
        await gateway.event("stream_continued", reason="idle_timeout")
        await set_faults(gateway, "silent_after_tokens=5*1")
        events = await events_of(gateway, CHAT, max_tokens=20, n=2)
        assert events[-1]["error"]["code"] == "idle_timeout"
        async with gateway.http.get("/metrics") as reply:
            counted = re.search(r'limits_reached_total{code="idle_timeout",model="m"} (\d)', await reply.text())
        assert counted is not None
        assert int(counted[1]) == 2 + len(gateway.events("stream_continued")) - 1


async def test_a_request_has_a_limit_before_its_reply_and_within_it(tmp_path: Path) -> None:
    slow = {**SLOW, "SIM_TOKENS_PER_S": "20"}
    models = {"m": model("m", environment=slow)}
    async with running_gateway(tmp_path, config(models=models, timeouts={"request_s": 3})) as gateway:
        await ready(gateway, 1)
        status, _, reply = await gateway.chat("m", max_tokens=1000)
        assert (status, reply["error"]["code"]) == (504, "request_timeout")
        events = await events_of(gateway, CHAT, max_tokens=1000)
        assert events[-1]["error"]["code"] == "request_timeout"
        assert len(events) > 20
        await gateway.until(
            lambda page: all(not one["in_flight"] for one in page["active_containers_by_name"].values())
        )


async def test_a_cold_start_is_kept_alive_and_then_answered(tmp_path: Path) -> None:
    slow = {**SLOW, "SIM_LOAD_S": "2.5"}
    models = {"m": model("m", environment=slow, cold_start="keepalive")}
    async with running_gateway(tmp_path, config(models=models)) as gateway:
        for comment in (": starting m", ": starting m, "):
            body = {"model": "m", "messages": HELLO, "max_tokens": 5, "stream": True}
            async with gateway.http.post(CHAT, json=body) as reply:
                assert (reply.status, reply.headers["X-Request-Id"] != "") == (200, True)
                first = (await reply.content.readuntil(b"\n\n")).decode()
                assert first.startswith(comment)
                assert not (await gateway.status())["models"]["m"]["running"], "it comes before the start is over"
                rest = (await reply.content.read()).decode()
            assert rest.count('"role":"assistant"') == 1
            assert rest.endswith("data: [DONE]\n\n")
            (instance,) = (await gateway.status())["active_containers_by_name"]
            os.kill(await process_of(gateway, instance), signal.SIGKILL)
            await gateway.until(lambda page: not page["models"]["m"]["running"])


async def test_a_cold_start_that_fails_is_told_within_the_stream(tmp_path: Path) -> None:
    slow = {**SLOW, "SIM_LOAD_S": "20", "SIM_FAULTS": "crash_during_load=1.5"}
    models = {"m": model("m", environment=slow, cold_start="keepalive")}
    async with running_gateway(tmp_path, config(models=models)) as gateway:
        events = await events_of(gateway, CHAT, max_tokens=5)
        assert [event["error"]["code"] for event in events] == ["model_start_failed"]


async def test_what_the_engine_refuses_after_the_head_comes_as_an_event(tmp_path: Path) -> None:
    models = {"m": model("m", environment={**SLOW, "SIM_LOAD_S": "1.5"}, cold_start="keepalive")}
    async with running_gateway(tmp_path, config(models=models)) as gateway:
        (event,) = await events_of(gateway, CHAT, temperature=-1)
        assert "temperature" in event["error"]["message"]
        line = await gateway.event("request_finished", outcome="status_400")
        assert line["status"] == 200


async def test_an_engines_own_error_after_the_head_is_not_tried_again(tmp_path: Path) -> None:
    sick = {**SLOW, "SIM_LOAD_S": "1.5", "SIM_FAULTS": "status_500"}
    async with running_gateway(
        tmp_path, config(models={"m": model("m", environment=sick, cold_start="keepalive")})
    ) as gateway:
        (event,) = await events_of(gateway, CHAT)
        assert event["error"]["message"] == "Internal server error (simulated)"
        await gateway.event("request_finished", outcome="status_500", attempts=1)


async def test_a_stream_waits_for_the_only_instance_to_come_back(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, config(models={"m": model("m", environment=SLOW)})) as gateway:
        await ready(gateway, 1)
        whole = await events_of(gateway, CHAT, max_tokens=20)
        await set_faults(gateway, "exit_after_tokens=5")
        assert text_of(await events_of(gateway, CHAT, max_tokens=20)) == text_of(whole)
        await gateway.event("instance_ready", count=2)
