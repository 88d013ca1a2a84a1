# SPDX-License-Identifier: Apache-2.0
"""Docker takes a call and does not answer: it shows, others do not wait for it, and nothing is left behind."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import aiodocker
import pytest

from tests.docker.test_docker_away import gate, health
from tests.docker.test_docker_fails import A1, B1, DELETE, STOP
from tests.docker.test_gateway import config, containers, kill, model
from tests.gateway import GatewayProcess, running_gateway
from tests.lab.gate import Gate
from tests.lab.lab import Lab
from tests.waiting import until

__all__ = ["gate"]

CREATE, START = r"POST \S*/containers/create", r"POST \S*/containers/\w+/start"
SHOWN_S = 15.0
GRACE_S = 1  # engines end at once


async def shown(gateway: GatewayProcess, words: str) -> float:
    """How long it takes for /health to say so."""
    began = time.monotonic()

    async def says() -> bool:
        return words in str((await health(gateway)).get("problems"))

    await until(says)
    return time.monotonic() - began


async def ask(gateway: GatewayProcess, name: str) -> asyncio.Task[int]:
    async def status() -> int:
        return (await gateway.chat(name))[0]

    return asyncio.create_task(status())


Strike = Callable[[GatewayProcess, Lab], Awaitable[object]]


async def evict(gateway: GatewayProcess, lab: Lab) -> None:
    asyncio.get_running_loop().create_task(gateway.chat("b"))


async def end(gateway: GatewayProcess, lab: Lab) -> None:
    await kill(lab, A1)


@pytest.mark.parametrize(("call", "word"), [(START, "/start"), pytest.param(CREATE, "create", marks=pytest.mark.long)])
async def test_a_start_that_hangs_shows_and_makes_way(
    call: str, word: str, lab: Lab, gate: Gate, tmp_path: Path
) -> None:
    lab.reset_gpus(1, 70_000)
    settings = config(lab, a=model("a"), b=model("b"))
    async with running_gateway(tmp_path, settings, {**lab.environment, "DOCKER_HOST": gate.url}) as gateway:
        gate.holds = call
        waiting = await ask(gateway, "a")
        await gateway.event("instance_starting", model="a")
        assert await shown(gateway, word) < SHOWN_S
        waiting.cancel()
        gate.holds = None
        assert (await gateway.chat("b"))[0] == 200, "nobody waits for a"
        gate.goes_on.set()
        await gateway.until(lambda page: list(page["active_containers_by_name"]) == [B1])
        assert await health(gateway) == {"status": "ok"}

        async def alone() -> bool:
            with suppress(aiodocker.DockerError):  # one goes just now
                return await containers(lab) == [B1]
            return False

        await until(alone)  # what Docker made of the call in the end is removed
        assert not gateway.events("unhandled_error")


@pytest.mark.parametrize(("call", "strike"), [(STOP, evict), pytest.param(DELETE, end, marks=pytest.mark.long)])
async def test_an_end_that_hangs_shows_and_keeps_its_room_but_nobody_elses_turn(
    call: str, strike: Strike, lab: Lab, gate: Gate, tmp_path: Path
) -> None:
    lab.reset_gpus(1, 64_000)
    settings = config(lab, a=model("a", footprint_mib=40_000), b=model("b"), c=model("c", footprint_mib=20_000))
    settings["stop_grace_s"] = GRACE_S
    async with running_gateway(tmp_path, settings, {**lab.environment, "DOCKER_HOST": gate.url}) as gateway:
        assert (await gateway.chat("a"))[0] == 200
        gate.holds = call
        await strike(gateway, lab)
        assert await shown(gateway, "Docker has not answered") < SHOWN_S
        assert (await gateway.chat("c"))[0] == 200
        assert A1 in str((await health(gateway))["problems"]), "it is there"
        gate.goes_on.set()
        await gateway.event("instance_stopped", instance=A1)
        assert not gateway.events("unhandled_error")


async def test_a_docker_that_hangs_altogether_is_away_until_it_answers(lab: Lab, gate: Gate, tmp_path: Path) -> None:
    lab.reset_gpus(1, 40_000)
    settings = config(lab, a=model("a"), b=model("b"))
    async with running_gateway(tmp_path, settings, {**lab.environment, "DOCKER_HOST": gate.url}) as gateway:
        assert (await gateway.chat("a"))[0] == 200
        gate.holds = ""
        assert await shown(gateway, "runtime: ") < SHOWN_S
        await gateway.event("runtime_down")
        waiting = await ask(gateway, "b")
        await gateway.until(lambda page: page["models"]["b"]["queued"] == 1)
        assert (await gateway.chat("a"))[0] == 200
        assert not gateway.events("instance_draining"), "nobody makes way for what could not be started"
        gate.holds = None
        gate.goes_on.set()
        await gateway.event("runtime_back")
        assert await waiting == 200
        assert not gateway.events("unhandled_error")
