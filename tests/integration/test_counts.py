# SPDX-License-Identifier: Apache-2.0
"""The work on an engine counts as long as it runs, whoever gave it and whatever the engine is called meanwhile."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from yarl import URL

from tests.engines import engines_of_somebody_else, set_faults
from tests.gateway import running_gateway
from tests.integration.test_gateway import FAST

COMPLETIONS = "/v1/completions"
BODY = {"model": "a", "prompt": "x", "max_tokens": 50, "stream": True, "ignore_eos": True}


def in_flight(page: dict[str, Any]) -> int:
    (one,) = page["active_containers_by_name"].values()
    count: int = one["in_flight"]
    return count


async def test_an_endpoint_that_misses_a_health_check_comes_back_with_the_work_it_has(tmp_path: Path) -> None:
    async with engines_of_somebody_else("a", 1, FAST) as urls:
        models = {"a": {"endpoints": urls, "max_in_flight": 2}}
        async with running_gateway(tmp_path, {"models": models}) as gateway, AsyncExitStack() as stack:
            await gateway.until(lambda page: page["models"]["a"]["running"] == 1)
            engine = urls[0].removeprefix("http://")
            await set_faults(engine, "hold_after_tokens=1")
            streams = [await stack.enter_async_context(gateway.http.post(COMPLETIONS, json=BODY)) for _ in range(2)]
            await set_faults(engine, "hold_after_tokens=1", "never_healthy")
            await gateway.until(lambda page: page["models"]["a"]["running"] == 0)
            await set_faults(engine, "hold_after_tokens=1")
            assert in_flight(await gateway.until(lambda page: page["models"]["a"]["running"] == 1)) == 2
            third = asyncio.create_task(gateway.chat("a"))
            await gateway.until(lambda page: page["models"]["a"]["queued"] == 1)
            await set_faults(engine)
            for stream in streams:
                assert (await stream.content.read()).rstrip().endswith(b"data: [DONE]")
            assert (await third)[0] == 200
            await gateway.until(lambda page: in_flight(page) == 0)


async def test_what_the_earlier_gateway_has_on_an_engine_counts(tmp_path: Path) -> None:
    async with engines_of_somebody_else("a", 1, FAST) as urls:
        settings = {"models": {"a": {"endpoints": urls, "max_in_flight": 1}}}
        async with running_gateway(tmp_path / "0", settings) as first:
            await first.until(lambda page: page["models"]["a"]["running"] == 1)
            engine = urls[0].removeprefix("http://")
            await set_faults(engine, "hold_after_tokens=1")
            async with first.http.post(COMPLETIONS, json=BODY) as stream:
                await stream.content.readline()
                arguments = ["--port", str(URL(first.url).port), "--take-over"]
                async with running_gateway(tmp_path / "1", settings, arguments=arguments) as second:
                    await first.event("gateway_handed_over")
                    await second.until(lambda page: page["models"]["a"]["running"] == 1 and in_flight(page) == 1)
                    waits = asyncio.create_task(second.chat("a"))
                    await second.until(lambda page: page["models"]["a"]["queued"] == 1)
                    await set_faults(engine)
                    assert (await stream.content.read()).rstrip().endswith(b"data: [DONE]")
                    assert (await waits)[0] == 200
                    await second.until(lambda page: in_flight(page) == 0)
