# SPDX-License-Identifier: Apache-2.0
"""Streams of /v1/messages and /v1/responses whose engine fails, as Anthropic's and OpenAI's own clients see them."""

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio

from tests import engines
from tests.gateway import GatewayProcess, running_gateway
from tests.integration.test_gateway import config, model
from tests.integration.test_streams import SLOW, busy, process_of, ready, set_faults, two

MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
BOTH = pytest.mark.parametrize("path", [MESSAGES, RESPONSES])


@pytest_asyncio.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[GatewayProcess]:
    async with running_gateway(tmp_path, two()) as running:
        await ready(running, 2)
        yield running


@dataclass
class Seen:
    """What a client has got of a stream."""

    text: str
    types: list[str]
    ids: set[str]
    usage: tuple[int, int]


async def nothing() -> None: ...


async def stream(
    gateway: GatewayProcess, path: str, at: int = 0, then: Callable[[], Awaitable[None]] = nothing, **more: Any
) -> Seen:
    """By the official client of that API; `then` is done at the event of that number."""
    if path == MESSAGES:
        return await by_anthropics(gateway, at, then, **more)
    return await by_openais(gateway, at, then, **more)


async def by_anthropics(gateway: GatewayProcess, at: int, then: Callable[[], Awaitable[None]], **more: Any) -> Seen:
    async with (
        anthropic.AsyncAnthropic(base_url=gateway.url, api_key="none", max_retries=0) as client,
        client.messages.stream(model="m", messages=HELLO, max_tokens=40, extra_body=more) as events,
    ):
        types: list[str] = []
        async for event in events:
            if event.type in ("text", "content_block_stop"):  # the client makes the first of these itself
                continue
            types.append(event.type)
            if len(types) == at:
                await then()
        whole = await events.get_final_message()
    assert whole.stop_reason == "max_tokens"
    (block,) = whole.content
    assert block.type == "text"
    return Seen(block.text, types, {whole.id}, (whole.usage.input_tokens, whole.usage.output_tokens))


async def by_openais(gateway: GatewayProcess, at: int, then: Callable[[], Awaitable[None]], **more: Any) -> Seen:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        events: Any = await client.responses.create(
            model="m", input="Hello", max_output_tokens=40, stream=True, extra_body=more
        )
        types: list[str] = []
        numbers, ids, text, usage = [], set(), "", None
        async for event in events:
            types.append(event.type)
            numbers.append(event.sequence_number)
            if hasattr(event, "response"):
                ids.add(event.response.id)
                usage = event.response.usage
            if event.type == "response.output_text.delta":
                text += event.delta
            if len(types) == at:
                await then()
    assert types[-1] == "response.completed"
    assert numbers == list(range(len(types)))
    assert usage is not None
    return Seen(text, types, ids, (usage.input_tokens, usage.output_tokens))


def alike(seen: Seen, whole: Seen) -> bool:
    return (seen.text, seen.usage, len(seen.ids)) == (whole.text, whole.usage, 1) and seen.types == whole.types


@asynccontextmanager
async def one_fails(gateway: GatewayProcess, *faults: str) -> AsyncIterator[None]:
    """The instance whose turn it is next meets these; the other one is well."""
    await gateway.until(lambda page: page["models"]["m"]["running"] == 2)
    await set_faults(gateway)
    first = next(iter((await gateway.status())["active_containers_by_name"].values()))
    await engines.set_faults(first["address"], *faults)
    yield


async def instances(gateway: GatewayProcess) -> list[dict[str, Any]]:
    return list((await gateway.status())["active_containers_by_name"].values())


async def kill(gateway: GatewayProcess) -> None:
    os.kill(await process_of(gateway, (await busy(gateway))["name"]), signal.SIGKILL)


@BOTH
async def test_before_the_first_token_another_instance_goes_on(gateway: GatewayProcess, path: str) -> None:
    whole = await stream(gateway, path)
    faults = ["reset", "close", "done", "error", "out_of_memory", "exit"]
    for fault in faults:
        async with one_fails(gateway, f"{fault}_after_tokens=0*1", "opens_early"):
            for _ in range(2):  # they take turns
                assert alike(await stream(gateway, path), whole), fault
    continued = gateway.events("stream_continued", how="anew", tokens=0)
    assert len(continued) == len(faults)


@BOTH
async def test_within_the_reply_the_client_is_told_in_the_form_of_its_api(gateway: GatewayProcess, path: str) -> None:
    for count, fault in enumerate(["reset", "close", "done", "error", "exit"], 1):
        await gateway.until(lambda page: page["models"]["m"]["running"] == 2)
        await set_faults(gateway, f"{fault}_after_tokens=5*1")
        with pytest.raises((anthropic.APIStatusError, openai.APIError), match="cannot be continued") as raised:
            await stream(gateway, path)
        interrupted = await gateway.event("stream_interrupted", count=count)
        assert interrupted["tokens"] >= 4, fault
        error: Any = raised.value
        if path == MESSAGES:
            assert (error.type, error.error_code) == ("api_error", "stream_interrupted")
            assert error.request_id == interrupted["request_id"]
        else:
            assert error.code == "stream_interrupted"
        line = await gateway.event("request_finished", request_id=interrupted["request_id"])
        assert (line["outcome"], line["status"], line["attempts"]) == ("stream_interrupted", 200, 1)


@BOTH
async def test_an_engine_that_is_killed_within_the_reply(gateway: GatewayProcess, path: str) -> None:
    with pytest.raises((anthropic.APIStatusError, openai.APIError), match="cannot be continued"):
        await stream(gateway, path, 10, lambda: kill(gateway))
    assert (await gateway.event("stream_interrupted"))["why"].startswith("streams of this API are not continued")


@BOTH
async def test_an_engine_that_is_killed_before_its_first_token_goes_unnoticed(
    gateway: GatewayProcess, path: str
) -> None:
    whole = await stream(gateway, path)
    await set_faults(gateway, "opens_early", "hold_after_tokens=0")

    async def replaced() -> None:
        sick = await busy(gateway)
        (well,) = {one["address"] for one in await instances(gateway)} - {sick["address"]}
        os.kill(await process_of(gateway, sick["name"]), signal.SIGKILL)
        await engines.set_faults(well)

    assert alike(await stream(gateway, path, 1, replaced), whole)
    assert (await gateway.event("request_finished", continued=1))["outcome"] == "ok"


async def test_an_engine_that_is_killed_at_the_end_has_said_all_of_a_message(gateway: GatewayProcess) -> None:
    """The last event of a message says nothing; that of a response is the whole response."""
    whole = await stream(gateway, MESSAGES)
    stops = whole.types.index("message_delta") + 1
    await set_faults(gateway, "cut_before_the_end")
    assert alike(await stream(gateway, MESSAGES), whole)
    with pytest.raises(openai.APIError, match="cannot be continued"):
        await stream(gateway, RESPONSES)
    assert stops == len(whole.types) - 1


@BOTH
async def test_an_engine_that_falls_silent(tmp_path: Path, path: str) -> None:
    async with running_gateway(tmp_path, {**two(), "timeouts": {"idle_s": 0.3}}) as gateway:
        await ready(gateway, 2)
        whole = await stream(gateway, path)
        await set_faults(gateway, "silent_after_tokens=0*1", "opens_early")
        assert alike(await stream(gateway, path), whole)
        await set_faults(gateway, "silent_after_tokens=5*1")
        with pytest.raises((anthropic.APIStatusError, openai.APIError), match="idle_timeout"):
            await stream(gateway, path)


@BOTH
async def test_a_request_has_its_limit(tmp_path: Path, path: str) -> None:
    slow = {**SLOW, "SIM_TOKENS_PER_S": "10"}
    async with running_gateway(
        tmp_path, config(models={"m": model("m", environment=slow)}, timeouts={"request_s": 2})
    ) as gateway:
        await ready(gateway, 1)
        with pytest.raises((anthropic.APIStatusError, openai.APIError), match=r"timeouts\.request_s") as late:
            await stream(gateway, path)
        assert getattr(late.value, "type", "timeout_error") == "timeout_error"


@BOTH
async def test_a_cold_start_is_kept_alive_and_then_answered(tmp_path: Path, path: str) -> None:
    slow = {**SLOW, "SIM_LOAD_S": "1.5"}
    models = {"m": model("m", environment=slow, cold_start="keepalive")}
    async with running_gateway(tmp_path, config(models=models)) as gateway:
        body = {"model": "m", "messages": HELLO, "input": "Hello", "max_tokens": 40, "stream": True}
        async with gateway.http.post(path, json=body) as reply:
            assert (await reply.content.readuntil(b"\n\n")).startswith(b": starting m")
            assert (await reply.content.read()).rstrip().splitlines()[-2].startswith(b"event: ")
        refused: dict[str, Any] = {"temperature": -1}
        (instance,) = (await gateway.status())["active_containers_by_name"]
        os.kill(await process_of(gateway, instance), signal.SIGKILL)
        await gateway.until(lambda page: not page["models"]["m"]["running"])
        with pytest.raises((anthropic.APIStatusError, openai.APIError), match="temperature must be non-negative"):
            await stream(gateway, path, **refused)


@BOTH
async def test_a_start_that_fails_is_told_within_the_stream(tmp_path: Path, path: str) -> None:
    slow = {**SLOW, "SIM_LOAD_S": "20", "SIM_FAULTS": "crash_during_load=1.3"}
    models = {"m": model("m", environment=slow, cold_start="keepalive")}
    async with running_gateway(tmp_path, config(models=models)) as gateway:
        with pytest.raises((anthropic.APIStatusError, openai.APIError), match="m could not be started"):
            await stream(gateway, path)
        await gateway.event("request_finished", outcome="model_start_failed")
