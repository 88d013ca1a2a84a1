# SPDX-License-Identifier: Apache-2.0
"""Responses that engines keep, by OpenAI's own client: asked for by their ids, each at the instance that has it."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.gateway import GatewayProcess, running_gateway
from tests.integration.test_gateway import config, model
from tests.integration.test_streams import SLOW, process_of, ready, set_faults

KEEPING = {**SLOW, "SIM_TOKENS_PER_S": "500", "VLLM_ENABLE_RESPONSES_API_STORE": "1"}


@asynccontextmanager
async def keeping(folder: Path, count: int = 2, **more: Any) -> AsyncIterator[GatewayProcess]:
    models = {"m": model("m", instances=count, environment=KEEPING)}
    async with running_gateway(folder, config(models=models, **more)) as gateway:
        if keys := more.get("server", {}).get("api_keys"):
            gateway.http.headers["Authorization"] = f"Bearer {keys[0]}"
        await ready(gateway, count)
        yield gateway


def client_of(gateway: GatewayProcess, key: str = "none") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0)


async def made(client: openai.AsyncOpenAI, **more: Any) -> str:
    """The id of a new response."""
    asks: dict[str, Any] = {"model": "m", "input": "Hello", "max_output_tokens": 5, **more}
    if not more.get("stream"):
        return str((await client.responses.create(**asks)).id)
    ids = {event.response.id async for event in await client.responses.create(**asks) if hasattr(event, "response")}
    (one,) = ids
    return str(one)


async def instances(gateway: GatewayProcess) -> list[str]:
    return sorted((await gateway.status())["active_containers_by_name"])


async def test_each_is_found_where_it_is(tmp_path: Path) -> None:
    async with keeping(tmp_path) as gateway, client_of(gateway) as client:
        ids = [await made(client, stream=count % 3 == 0) for count in range(6)]
        for one in ids:
            assert (await client.responses.retrieve(one)).id == one
            with pytest.raises(openai.BadRequestError, match="Cannot cancel a synchronous response"):
                await client.responses.cancel(one)
        await gateway.event("request_finished", method="GET", model="m", count=6)
        asked = [line["instance"] for line in gateway.events("request_finished", method="GET", model="m")]
        assert sorted(set(asked)) == await instances(gateway), "they are spread"
        page = await gateway.status()
        assert all(not one["in_flight"] for one in page["active_containers_by_name"].values())
        await client.responses.create(model="m", input="x", max_output_tokens=1, store=False)


async def test_what_cannot_be_found_is_said(tmp_path: Path) -> None:
    async with keeping(tmp_path) as gateway, client_of(gateway) as client:
        with pytest.raises(openai.NotFoundError, match="gateway knows where the last") as unknown:
            await client.responses.retrieve("resp_unknown")
        assert (unknown.value.code, unknown.value.param) == ("response_not_found", "response_id")
        one = await made(client)
        await client.responses.retrieve(one)
        kept_by = (await gateway.event("request_finished", method="GET", status=200, model="m"))["instance"]
        os.kill(await process_of(gateway, kept_by), signal.SIGKILL)
        await gateway.event("instance_ready", count=3)
        with pytest.raises(openai.NotFoundError, match="the instance that kept it has ended"):
            await client.responses.retrieve(one)


async def test_where_only_one_instance_runs_it_is_asked(tmp_path: Path) -> None:
    async with keeping(tmp_path, 1) as gateway, client_of(gateway) as client:
        with pytest.raises(openai.NotFoundError, match="Response with id 'resp_unknown' not found"):
            await client.responses.retrieve("resp_unknown")


async def test_each_key_finds_its_own(tmp_path: Path) -> None:
    async with (
        keeping(tmp_path, 1, server={"api_keys": ["k1", "k2"]}) as gateway,
        client_of(gateway, "k1") as client,
        client_of(gateway, "k2") as other,
    ):
        one = await made(client)
        assert (await client.responses.retrieve(one)).id == one
        with pytest.raises(openai.NotFoundError, match="No response"):
            await other.responses.retrieve(one)


async def test_what_goes_on_from_one_goes_where_it_is(tmp_path: Path) -> None:
    async with keeping(tmp_path) as gateway, client_of(gateway) as client:
        last = await made(client)
        for count in range(6):
            last = await made(client, previous_response_id=last, stream=count % 2 == 0)
        await gateway.event("request_finished", path="/v1/responses", status=200, count=7)
        (alone,) = {line["instance"] for line in gateway.events("request_finished", path="/v1/responses", status=200)}
        with pytest.raises(openai.NotFoundError, match="Response with id 'resp_unknown' not found"):
            await made(client, previous_response_id="resp_unknown")
        long = "x" * (1 << 20)
        assert await made(client, previous_response_id=last, metadata={"long": long})
        os.kill(await process_of(gateway, alone), signal.SIGKILL)
        await gateway.event("instance_ready", count=3)
        for stream in True, False:
            with pytest.raises(openai.NotFoundError, match="the instance that kept it has ended") as gone:
                await made(client, previous_response_id=last, stream=stream)
            assert gone.value.code == "response_not_found"


async def test_what_goes_on_from_one_goes_nowhere_else_if_that_fails(tmp_path: Path) -> None:
    async with keeping(tmp_path) as gateway, client_of(gateway) as client:
        last = await made(client)
        await set_faults(gateway, "close_after_tokens=0")
        with pytest.raises(openai.APIError, match="no other instance has what it goes on from"):
            await made(client, previous_response_id=last, stream=True)
        with pytest.raises(openai.InternalServerError, match="failed before it answered"):
            await made(client, previous_response_id=last)
        await gateway.event("request_finished", path="/v1/responses", attempts=1, count=3)
