# SPDX-License-Identifier: Apache-2.0
"""Docker answers 500 for a while: nothing is given up, promised twice or left behind, and it is told."""

import asyncio
import re
from pathlib import Path

import aiodocker
import pytest

from tests.docker.test_docker_away import gate, health
from tests.docker.test_gateway import config, containers, kill, model
from tests.gateway import running_gateway
from tests.integration.test_take_over import ended, folder_of, taking_over
from tests.lab.gate import Gate
from tests.lab.lab import Lab

__all__ = ["gate"]

STOP, DELETE, TOP, LOGS = (
    r"POST \S*/containers/\w+/stop",
    r"DELETE \S*/containers/",
    r"GET \S*/containers/\w+/top",
    r"GET \S*/containers/\w+/logs",
)
INSPECT = r"GET \S*/containers/\w+/json"
NO_EXIT = "cannot stop container: tried to kill container, but did not receive an exit event"
BUSY = "driver failed to remove root filesystem: unlinkat /var/lib/docker: device or resource busy"
A1, A2, B1 = "vllm_server_a_instance_1", "vllm_server_a_instance_2", "vllm_server_b_instance_1"


async def test_an_engine_that_docker_cannot_stop_keeps_its_room_until_it_can(
    lab: Lab, gate: Gate, tmp_path: Path
) -> None:
    lab.reset_gpus(1, 40_000)
    settings = config(lab, a=model("a"), b=model("b"))
    async with running_gateway(tmp_path, settings, {**lab.environment, "DOCKER_HOST": gate.url}) as gateway:
        assert (await gateway.chat("a"))[0] == 200
        gate.failures = {STOP: NO_EXIT}
        waiting = asyncio.create_task(gateway.chat("b"))
        stuck = await gateway.event("instance_stuck", instance=A1, model="a")
        assert NO_EXIT in stuck["problem"]
        answer = await health(gateway)
        assert (answer["status"], answer["problems"]) == ("degraded", [f"{A1} cannot be ended: {NO_EXIT}"])
        gate.failures = {DELETE: BUSY}
        await gateway.until(lambda page: BUSY in str(page["problems"]))
        page = await gateway.status()
        shown = {name: (one["state"], one["reserved_mib"]) for name, one in page["active_containers_by_name"].items()}
        assert shown == {A1: ("stopping", 30_000), B1: ("starting", 30_000)}
        assert not gateway.events("instance_starting", model="b")
        gate.failures = {}
        assert (await waiting)[0] == 200
        assert await containers(lab) == [B1]
        assert len(gateway.events("instance_stuck")) == 1
        assert await health(gateway) == {"status": "ok"}


async def test_what_is_left_of_a_dead_engine_is_removed_in_the_end(lab: Lab, gate: Gate, tmp_path: Path) -> None:
    """Nothing else can be learned of it either: its log, its processes."""
    lab.reset_gpus(1, 70_000)
    settings = config(lab, a=model("a"))
    async with running_gateway(tmp_path, settings, {**lab.environment, "DOCKER_HOST": gate.url}) as gateway:
        assert (await gateway.chat("a"))[0] == 200
        gate.failures = {DELETE: BUSY, TOP: "no", LOGS: "configured logging driver does not support reading"}
        await kill(lab, A1)
        assert (await gateway.event("instance_failed", instance=A1, model="a"))["exit_code"] == 137
        await gateway.event("instance_stuck", instance=A1, model="a")
        assert (await gateway.chat("a"))[0] == 200
        assert await containers(lab) == [A1, A2]
        gate.failures = {}
        await gateway.event("instance_stopped", instance=A1, model="a")
        assert await containers(lab) == [A2]


async def test_a_docker_that_tells_nothing_of_its_containers_is_asked_again(
    lab: Lab, gate: Gate, tmp_path: Path
) -> None:
    lab.reset_gpus(1, 40_000)
    settings = config(lab, a=model("a"))
    async with running_gateway(tmp_path, settings, {**lab.environment, "DOCKER_HOST": gate.url}) as gateway:
        assert (await gateway.chat("a"))[0] == 200
        gate.failures = {INSPECT: "containerd: transport is closing: unavailable"}
        await kill(lab, A1)
        gpus = (await gateway.status())["gpus"]
        lab.reset_gpus(2, 40_000)
        await gateway.until(lambda page: len(page["gpus"]) == len(gpus) + 1)
        gate.failures = {}
        await gateway.event("instance_failed", instance=A1, model="a")
        assert (await gateway.chat("a"))[0] == 200


@pytest.mark.parametrize("name", ["vllm_server_gone_instance_1", A1])
async def test_a_leftover_that_withstands_does_not_keep_the_gateway(
    name: str, lab: Lab, docker: aiodocker.Docker, gate: Gate, tmp_path: Path
) -> None:
    of_model = name.split("_")[2]
    labels = {"vllm-gateway.owner": "vllm_server", "vllm-gateway.model": of_model, "vllm-gateway.instance": "1"}
    await docker.containers.create({"Image": lab.image, "Labels": labels, "Cmd": ["--model", "x"]}, name=name)
    gate.failures = {DELETE: BUSY}
    settings = config(lab, a=model("a"))
    async with running_gateway(tmp_path, settings, {**lab.environment, "DOCKER_HOST": gate.url}) as gateway:
        assert BUSY in gateway.events("instance_stuck", instance=name)[0]["problem"]
        assert re.search(rf"{name}.*busy", str((await health(gateway))["problems"]))
        assert (await gateway.chat("a"))[0] == 200
        gate.failures = {}
        await gate.shut()
        await gateway.event("runtime_down")
        await gate.open()
        await gateway.event("instance_removed_stale", instance=name)
        assert await containers(lab) == [A2 if name == A1 else A1]
        assert await health(gateway) == {"status": "ok"}


async def test_an_engine_that_docker_cannot_stop_does_not_keep_a_new_gateway_from_taking_over(
    lab: Lab, gate: Gate, tmp_path: Path
) -> None:
    lab.reset_gpus(2, 40_000)
    settings = config(lab, a=model("a"), b=model("b"))
    environment = {**lab.environment, "DOCKER_HOST": gate.url}
    async with running_gateway(folder_of(tmp_path, "0"), settings, environment) as first:
        assert (await first.chat("a"))[0] == (await first.chat("b"))[0] == 200
        gate.failures = {DELETE: BUSY}
        await kill(lab, A1)
        await first.event("instance_stuck", instance=A1)
        async with running_gateway(
            folder_of(tmp_path, "1"), settings, environment, arguments=taking_over(first)
        ) as second:
            await ended(first)
            assert (await second.chat("a"))[0] == (await second.chat("b"))[0] == 200
            assert await containers(lab) == [A1, A2, B1]
            assert A1 in str((await health(second))["problems"])
