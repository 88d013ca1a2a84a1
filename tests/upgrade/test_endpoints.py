# SPDX-License-Identifier: Apache-2.0
"""An upgrade and its way back in front of engines that somebody else runs: nobody notices."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest

from tests.engines import engines_of_somebody_else
from tests.gateway import CHAT, GatewayProcess
from tests.integration.test_gateway import FAST
from tests.integration.test_take_over import ended
from tests.load import Load
from tests.upgrade.releases import Releases

MANY_SETTINGS = {
    "strategy": {"name": "least_connections"},
    "decisions": {"keep": 5},
    "priorities": {"normal": 0, "batch": -1},
    "retry": {"attempts": 2, "budget": 0.1, "floor": 5},
    "ejection": {"consecutive_failures": 5},
    "timeouts": {"connect_s": 3, "first_byte_s": 60, "idle_s": 60, "client_s": 60},
    "resume": "best_effort",
    "cold_start": "keepalive",
    "queue_size": 500,
    "log": {"format": "json"},
}


@asynccontextmanager
async def a_stream(gateway: GatewayProcess) -> AsyncIterator[None]:
    """It has begun at the block's begin, and is whole at its end."""
    body = {"model": "a", "prompt": "x", "max_tokens": 500, "stream": True, "ignore_eos": True}
    async with gateway.http.post("/v1/completions", json=body) as stream:
        await stream.content.readline()
        yield
        assert (await stream.content.read()).rstrip().endswith(b"data: [DONE]")


async def test_no_request_and_no_stream_is_lost_there_and_back(releases: Releases) -> None:
    async with engines_of_somebody_else("a", 2, FAST) as addresses, AsyncExitStack() as gateways:
        models = {"a": {"endpoints": addresses, "aliases": ["gpt-4o"], "weights": [1, 2]}}
        both = replace(releases, settings={"runtime": "process", "models": models, **MANY_SETTINGS})
        gateway = await gateways.enter_async_context(both.old())
        await gateway.until(lambda page: page["models"]["a"]["running"] == 2)
        loads = [Load(gateway.url, ["a", "gpt-4o"]), Load(gateway.url, count=2, stream=True)]
        for start in (both.new, both.old):
            before = gateway
            async with a_stream(before):
                gateway = await gateways.enter_async_context(start(over=before))
                await before.event("gateway_handed_over")
            await ended(before)
            for load in loads:
                await load.more(20)
            assert (await gateway.chat("gpt-4o"))[0] == 200
        for load in loads:
            await load.end()
            assert not load.failures


@pytest.mark.parametrize("where", ["control_socket", "XDG_RUNTIME_DIR"])
async def test_they_find_each_other_and_keys_stay_keys(where: str, releases: Releases) -> None:
    folder = releases.environment["TMPDIR"]
    if where == "control_socket":
        keys, environment = ["of-the-file"], {}
        server = {"control_socket": f"{folder}/control", "api_keys": keys}
    else:
        keys, server = ["first", "second"], {}
        environment = {"XDG_RUNTIME_DIR": folder, "VLLM_GATEWAY_API_KEYS": "first,second"}

    async def status_with(key: str) -> int:
        body = {"model": "a", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
        async with gateway.http.post(CHAT, json=body, headers={"Authorization": f"Bearer {key}"}) as reply:
            return reply.status

    async with engines_of_somebody_else("a", 1, FAST) as addresses, AsyncExitStack() as gateways:
        settings = {"runtime": "process", "server": server, "models": {"a": {"endpoints": addresses}}}
        both = replace(releases, settings=settings, environment={**releases.environment, **environment})
        gateway = await gateways.enter_async_context(both.old())
        for start in (None, both.new, both.old):
            if start:
                before = gateway
                gateway = await gateways.enter_async_context(start(over=before))
                await ended(before)
            assert [await status_with(key) for key in keys] == [200] * len(keys)
            assert await status_with("guessed") == 401
