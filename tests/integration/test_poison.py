# SPDX-License-Identifier: Apache-2.0
"""A request that ends every engine it meets, on real processes: it is found out, and nobody else pays for it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.gateway import CHAT, GatewayProcess, running_gateway
from tests.integration.test_gateway import FAST, config, model


def settings(instances: int, fault: str) -> dict[str, Any]:
    environment = {**FAST, "SIM_FAULTS": fault, "SIM_TOKENS_PER_S": "30"}
    return config(models={"a": {**model("a", instances=instances, footprint_mib=4000), "environment": environment}})


async def ask(gateway: GatewayProcess, text: str, *, stream: bool = False) -> tuple[int, bytes]:
    body = {"model": "a", "messages": [{"role": "user", "content": text}], "max_tokens": 20, "stream": stream}
    body["ignore_eos"] = True
    async with gateway.http.post(CHAT, json=body) as reply:
        return reply.status, await reply.read()


async def all_ready(gateway: GatewayProcess, instances: int) -> None:
    await gateway.chat("a")
    await gateway.until(lambda page: page["models"]["a"]["running"] == instances)


async def in_flight(gateway: GatewayProcess, count: int) -> None:
    await gateway.until(
        lambda page: sum(one["in_flight"] for one in page["active_containers_by_name"].values()) >= count
    )


@pytest.mark.parametrize(
    ("instances", "fault", "stream"),
    [(1, "dies_of_poison=0.05", False), (4, "core_dies_of_poison=0.05", False), (4, "core_dies_of_poison", True)],
)
async def test_one_that_ends_engines_ends_two_and_is_refused(
    instances: int, fault: str, stream: bool, tmp_path: Path
) -> None:
    async with running_gateway(tmp_path, settings(instances, fault)) as gateway:
        await all_ready(gateway, instances)
        innocent = [asyncio.create_task(ask(gateway, f"hi {n}", stream=n % 2 == 0)) for n in range(24)]
        await in_flight(gateway, 24)
        status, said = await ask(gateway, "poison", stream=stream)
        assert (status, b'"code":"poison_request"' in said) == (200 if stream else 422, True), said
        answers = await asyncio.gather(*innocent)
        assert [status for status, _ in answers] == [200] * 24
        assert all(said.endswith(b"[DONE]\n\n") and b'"error"' not in said for _, said in answers[::2])
        assert len(gateway.events("instance_failed")) == 2
        await gateway.event("poison_request", count=1)

        assert (await ask(gateway, "poison", stream=stream))[0] == 422, "at once, before any reply has begun"
        assert (await ask(gateway, "another"))[0] == 200
        assert len(gateway.events("instance_failed")) == 2
        page = await gateway.status()
        assert page["models"]["a"]["quarantined"] == 0
