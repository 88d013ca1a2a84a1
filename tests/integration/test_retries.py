# SPDX-License-Identifier: Apache-2.0
"""Instances that fail before they answer, on real processes: another one does, within a budget; the sick are spared."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import engines
from tests.engines import engine_pids
from tests.gateway import GatewayProcess, running_gateway
from tests.integration.test_gateway import config, model
from tests.waiting import LIMIT_S


@asynccontextmanager
async def two_instances(folder: Path, **more: Any) -> AsyncIterator[GatewayProcess]:
    async with running_gateway(folder, config(models={"a": model("a", instances=2)}, **more)) as gateway:
        await gateway.chat("a")
        await gateway.until(lambda page: page["models"]["a"]["running"] == 2)
        yield gateway


async def instances(gateway: GatewayProcess) -> dict[str, Mapping[str, Any]]:
    page = await gateway.status()
    return dict(page["active_containers_by_name"])


async def set_faults(gateway: GatewayProcess, name: str, *faults: str) -> None:
    address = (await instances(gateway))[name]["address"]
    await engines.set_faults(address, *faults)


@pytest.mark.parametrize("fault", ["status_503", "shutting_down_500", "health_503", "refuse_connections"])
async def test_another_instance_answers(fault: str, tmp_path: Path) -> None:
    async with two_instances(tmp_path) as gateway:
        sick, well = await instances(gateway)
        await set_faults(gateway, sick, fault)
        answers = await asyncio.gather(*(gateway.chat("a") for _ in range(8)))  # more than there are open connections
        assert [status for status, _, _ in answers] == [200] * 8
        await gateway.event("instance_suspect", instance=sick)
        await gateway.event("request_finished", status=200, instance=well, attempts=2)


async def test_the_only_instance_is_ending_and_the_next_one_answers(tmp_path: Path) -> None:
    settings = config(models={"a": model("a")}, retry={"same_after_s": 600})
    async with running_gateway(tmp_path, settings) as gateway:
        await gateway.chat("a")
        (ending,) = await instances(gateway)
        await set_faults(gateway, ending, "shutting_down_500")
        asked = asyncio.create_task(gateway.chat("a"))
        await gateway.event("instance_suspect", instance=ending)
        (pid,) = engine_pids(gateway.process.pid).values()
        os.kill(pid, signal.SIGTERM)
        assert (await asked)[0] == 200
        await gateway.event("request_finished", status=200, attempts=2)


async def test_an_engines_own_error_is_not_tried_again(tmp_path: Path) -> None:
    async with two_instances(tmp_path) as gateway:
        for name in await instances(gateway):
            await set_faults(gateway, name, "status_500*1")
        errors = [await gateway.chat("a") for _ in range(2)]
        assert [status for status, _, _ in errors] == [500, 500]
        assert (await gateway.chat("a", max_tokens=-1))[0] == 400
        await gateway.event("request_finished", status=400)
        assert not [line for line in gateway.events("request_finished") if line["attempts"] > 1]
        assert not gateway.events("instance_suspect")


async def test_a_sick_fleet_is_not_beaten_to_death(tmp_path: Path) -> None:
    async with two_instances(tmp_path, retry={"floor": 2, "budget": 0}) as gateway:
        for name in await instances(gateway):
            await set_faults(gateway, name, "status_503")
        first = await gateway.chat("a")
        assert first[0] == 503, "the last try's own reply"
        assert "simulated" in first[2]["error"]["message"]
        answers = await asyncio.gather(*(gateway.chat("a") for _ in range(10)))
        assert {(status, answer["error"]["code"]) for status, _, answer in answers} == {(502, "instance_failed")}
        assert all(int(headers["Retry-After"]) >= 1 for _, headers, _ in answers)
        await gateway.event("request_finished", status=502, count=10)
        tried = [line["attempts"] for line in gateway.events("request_finished", model="a")]
        assert sum(tried) - len(tried) == 2
        assert (await gateway.status())["models"]["a"]["retries_denied"] == 10


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("count", [1, 2])
async def test_what_dead_instances_had_to_do_is_done_by_others(tmp_path: Path, stream: bool, count: int) -> None:
    """Without a budget for anything else; also if all die at once, and the next ones have to be started."""
    async with two_instances(tmp_path, retry={"floor": 0, "budget": 0}) as gateway:
        for name in await instances(gateway):
            await set_faults(gateway, name, "hold_after_tokens=2")
        body = {"model": "a", "prompt": "x", "max_tokens": 8, "stream": stream}

        async def ask() -> tuple[int, bytes]:
            async with gateway.http.post("/v1/completions", json=body) as reply:
                return reply.status, await reply.read()

        asked = [asyncio.create_task(ask()) for _ in range(6)]
        await gateway.until(
            lambda page: all(one["in_flight"] == 3 for one in page["active_containers_by_name"].values())
        )
        names = list(await instances(gateway))
        for pid in list(engine_pids(gateway.process.pid).values())[:count]:
            os.kill(pid, signal.SIGKILL)
        await gateway.event("instance_failed", count=count)
        for name in names[count:]:
            await set_faults(gateway, name)
        answers = await asyncio.gather(*asked)
        assert [status for status, _ in answers] == [200] * 6
        assert all(said.endswith(b"[DONE]\n\n") for _, said in answers if stream)
        assert (await gateway.status())["models"]["a"]["retries_denied"] == 0


async def test_a_request_that_takes_too_long_says_nothing_about_its_instance(tmp_path: Path) -> None:
    async with two_instances(tmp_path, timeouts={"request_s": 1}) as gateway:
        for name in await instances(gateway):
            await set_faults(gateway, name, "hold_after_tokens=2")
        answers = await asyncio.gather(*(gateway.chat("a") for _ in range(8)))
        assert {(status, answer["error"]["code"]) for status, _, answer in answers} == {(504, "request_timeout")}
        assert {one["failures"] for one in (await instances(gateway)).values()} == {0}
        assert not gateway.events("instance_suspect")


async def test_an_instance_that_keeps_failing_is_ejected_and_comes_back(tmp_path: Path) -> None:
    async with two_instances(tmp_path) as gateway:
        sick, well = await instances(gateway)
        await set_faults(gateway, sick, "status_500")
        while not gateway.events("instance_ejected"):
            await asyncio.gather(*(gateway.chat("a") for _ in range(4)))
        assert (await instances(gateway))[sick]["health"] == "ejected"
        await set_faults(gateway, sick)
        async with asyncio.timeout(LIMIT_S):
            while not gateway.events("instance_restored", instance=sick):
                status, _, _ = await gateway.chat("a")
                assert status == 200
        assert (await instances(gateway))[sick]["health"] == "healthy"
        assert not gateway.events("instance_ejected", instance=well)
        async with gateway.http.get("/metrics") as reply:
            assert 'vllm_gateway_instance_ejections_total{model="a"} 1.0' in await reply.text()


async def test_a_full_queue_says_when_to_come_again(tmp_path: Path) -> None:
    slow = model("a", environment={"SIM_LOAD_S": "30"})
    async with running_gateway(tmp_path, config(models={"a": slow}, queue_size=1)) as gateway:
        waits = asyncio.create_task(gateway.chat("a"))
        await gateway.until(lambda page: page["models"]["a"]["queued"] == 1)
        status, headers, answer = await gateway.chat("a")
        assert (status, answer["error"]["code"]) == (429, "queue_full")
        assert 1 < int(headers["Retry-After"]) <= 60
        waits.cancel()


async def test_clients_take_turns(tmp_path: Path) -> None:
    one_place = model("a", max_in_flight=1, environment={"SIM_LOAD_S": "0.5"})
    keys = {"api_keys": ["greedy", "modest"]}
    async with running_gateway(tmp_path, config(models={"a": one_place}, server=keys)) as gateway:
        gateway.http.headers["Authorization"] = "Bearer modest"
        served: list[str] = []

        async def ask(key: str) -> None:
            body = {"model": "a", "prompt": "x", "max_tokens": 1}
            headers = {"Authorization": f"Bearer {key}"}
            async with gateway.http.post("/v1/completions", json=body, headers=headers) as reply:
                assert reply.status == 200
                await reply.read()
            served.append(key)

        async with asyncio.TaskGroup() as tasks:
            for number, key in enumerate(["greedy"] * 5 + ["modest"], 1):
                tasks.create_task(ask(key))
                await gateway.until(lambda page, number=number: page["models"]["a"]["queued"] == number)  # type: ignore[misc]
        assert served[1] == "modest"
