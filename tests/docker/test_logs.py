# SPDX-License-Identifier: Apache-2.0
"""What containers write is read while they start, over a restart of the gateway, and after their end."""

import asyncio
from pathlib import Path

from tests.docker.test_gateway import config, kill, model
from tests.gateway import GatewayProcess, running_gateway
from tests.lab.lab import Lab
from tests.waiting import LIMIT_S, until

LOGS = "/gateway/instances/vllm_server_a_instance_1/logs"


async def read(gateway: GatewayProcess) -> list[str]:
    async with gateway.http.get(LOGS) as reply:
        assert reply.status == 200
        return (await reply.text()).splitlines()


async def test_from_the_first_line_to_the_last(lab: Lab, tmp_path: Path) -> None:
    lab.reset_gpus(1, 40_000)
    settings = config(lab, a=model("a"))
    async with running_gateway(tmp_path, settings, lab.environment) as gateway:
        asked = asyncio.create_task(gateway.chat("a"))
        await gateway.event("instance_starting")
        async with gateway.http.get(f"{LOGS}?follow=true") as reply, asyncio.timeout(LIMIT_S):
            first = (await reply.content.readline()).decode().rstrip()
            await asked
        whole = await read(gateway)
        assert whole[0] == first
        assert len(whole) > 3
    async with running_gateway(tmp_path, settings, lab.environment) as gateway:
        await gateway.event("instance_ready")

        async def all_there() -> bool:
            return (await read(gateway))[: len(whole)] == whole

        await until(all_there)
        async with gateway.http.get(f"{LOGS}?follow=true&tail=0") as reply, asyncio.timeout(LIMIT_S):
            await kill(lab, "vllm_server_a_instance_1")
            await reply.content.read()
        await gateway.event("instance_ready", count=2)
        assert (await read(gateway))[: len(whole)] == whole, "of the one that ended"
