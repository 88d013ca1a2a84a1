# SPDX-License-Identifier: Apache-2.0
"""A hand-over while a request waits: the old gateway's stream holds the only GPU, which the waiting model needs."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tests.gateway import GatewayProcess, running_gateway
from tests.integration.test_take_over import folder_of, taking_over
from tests.lab.lab import Lab

SLOW = {"SIM_TOKENS_PER_S": "20"}
"""For the model `a`, so that its stream is still under way when the new gateway is there."""


@dataclass
class HandOver:
    old: GatewayProcess
    new: GatewayProcess
    stream: aiohttp.ClientResponse  # of `a`, at the old one
    waiting: asyncio.Task[tuple[int, Mapping[str, str], dict[str, Any]]]  # for `b`, at the old one


@asynccontextmanager
async def while_b_waits(
    lab: Lab, path: Path, settings: dict[str, Any], *, before: str = "a"
) -> AsyncIterator[HandOver]:
    """`before`: the models that are asked for first, one after the other; the last must be `a`."""
    async with running_gateway(folder_of(path, "0"), settings, lab.environment) as old:
        for name in before:
            assert (await old.chat(name))[0] == 200
        body = {"model": "a", "prompt": "x", "max_tokens": 100, "stream": True, "ignore_eos": True}
        async with old.http.post("/v1/completions", json=body) as stream:
            await stream.content.readline()
            waiting = asyncio.create_task(old.chat("b"))
            await old.event("instance_draining", model="a")
            async with running_gateway(
                folder_of(path, "1"), settings, lab.environment, arguments=taking_over(old)
            ) as new:
                await old.event("gateway_handed_over")
                yield HandOver(old, new, stream, waiting)
