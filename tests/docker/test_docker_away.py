# SPDX-License-Identifier: Apache-2.0
"""Docker goes away and comes back: what runs serves, what is asked for waits, nothing runs twice or unknown."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiodocker
import pytest

from tests.docker.test_gateway import config, containers, model, streaming
from tests.gateway import GatewayProcess, running_gateway
from tests.integration.test_reload import reload
from tests.lab.gate import Gate
from tests.lab.lab import Lab


@pytest.fixture
async def gate(lab: Lab) -> AsyncIterator[Gate]:
    gate = Gate(lab.docker_host, Path("/tmp") / f"{uuid.uuid4().hex[:12]}.sock")
    await gate.open()
    yield gate
    await gate.shut()


async def health(gateway: GatewayProcess) -> dict[str, Any]:
    async with gateway.http.get("/health") as reply:
        assert reply.status == 200
        answer: dict[str, Any] = await reply.json()
        return answer


async def test_docker_away_costs_a_delay(lab: Lab, docker: aiodocker.Docker, gate: Gate, tmp_path: Path) -> None:
    lab.reset_gpus(1, 65_000)
    settings = config(lab, a=model("a"), b=model("b", footprint_mib=31_000))
    async with running_gateway(tmp_path, settings, {**lab.environment, "DOCKER_HOST": gate.url}) as gateway:
        assert (await gateway.chat("a"))[0] == 200
        await gate.shut()
        page = await gateway.until(lambda page: bool(page["problems"]))
        assert "runtime" in page["problems"][0]
        assert (await health(gateway))["status"] == "degraded"
        assert (await gateway.chat("a"))[0] == 200
        waiting = asyncio.create_task(gateway.chat("b"))
        await gateway.until(lambda page: bool(page["models"]["b"]["image_pull"]))
        stranger = await _left_behind(docker, lab, "vllm_server_a_instance_7")
        await gate.open()
        await gateway.event("runtime_back")
        assert (await waiting)[0] == 200
        await gateway.event("instance_removed_stale", instance="vllm_server_a_instance_7")
        assert stranger not in {one["Id"] for one in lab.containers()}
        assert await containers(lab) == ["vllm_server_a_instance_1", "vllm_server_b_instance_1"]
        assert len(gateway.events("instance_starting")) == 2
        assert (await health(gateway)) == {"status": "ok"}


async def _left_behind(docker: aiodocker.Docker, lab: Lab, name: str) -> str:
    """As a start would whose answer never came."""
    labels = {"vllm-gateway.owner": "vllm_server", "vllm-gateway.model": "a", "vllm-gateway.instance": name[-1]}
    made = await docker.containers.create({"Image": lab.image, "Labels": labels, "Cmd": ["--model", "x"]}, name=name)
    return made.id


async def test_meanwhile_nothing_makes_way_for_what_cannot_be_started(lab: Lab, gate: Gate, tmp_path: Path) -> None:
    lab.reset_gpus(1, 40_000)
    settings = config(lab, a=model("a"), b=model("b"))
    async with running_gateway(tmp_path, settings, {**lab.environment, "DOCKER_HOST": gate.url}) as gateway:
        assert (await gateway.chat("a"))[0] == 200
        await gate.shut()
        await gateway.event("runtime_down")
        waiting = asyncio.create_task(gateway.chat("b"))
        await gateway.until(lambda page: page["models"]["b"]["queued"] == 1)
        changed = config(lab, a=model("a", engine_arguments=["--seed", "7"]), b=model("b"))
        await reload(gateway, tmp_path, changed)
        for _ in range(3):
            assert (await gateway.chat("a"))[0] == 200
        assert not gateway.events("instance_draining")
        await gate.open()
        assert (await waiting)[0] == 200
        assert await containers(lab) == ["vllm_server_b_instance_1"]


async def test_what_was_to_be_stopped_meanwhile_is_stopped_then(lab: Lab, gate: Gate, tmp_path: Path) -> None:
    lab.reset_gpus(1, 40_000)
    settings = config(lab, a=model("a"), b=model("b"))
    async with running_gateway(tmp_path, settings, {**lab.environment, "DOCKER_HOST": gate.url}) as gateway:
        async with streaming(gateway, "a") as content:
            waiting = asyncio.create_task(gateway.chat("b"))
            await gateway.event("instance_draining", model="a")
            await gate.shut()
            await content.read()
        await gateway.event("instance_stopping", model="a")
        page = await gateway.status()
        assert page["active_containers_by_name"]["vllm_server_a_instance_1"]["state"] == "stopping", "it is there"
        await gate.open()
        assert (await waiting)[0] == 200
        assert await containers(lab) == ["vllm_server_b_instance_1"]
