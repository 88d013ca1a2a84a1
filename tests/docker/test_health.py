# SPDX-License-Identifier: Apache-2.0
"""Containers that are paused: spared while they may come back, replaced when they do not, adopted or not."""

import asyncio
from pathlib import Path

import aiodocker

from tests.docker.test_gateway import config, model
from tests.engines import set_faults
from tests.gateway import running_gateway
from tests.integration.test_take_over import ended, folder_of, taking_over
from tests.lab.lab import Lab

QUICK = {"every_s": 0.5, "timeout_s": 1, "replace_after_s": 600}


async def test_a_container_that_is_paused_for_a_while_is_spared_and_comes_back(
    lab: Lab, docker: aiodocker.Docker, tmp_path: Path
) -> None:
    lab.reset_gpus(2, 40_000)
    settings = {**config(lab, a=model("a", instances=2)), "health": QUICK}
    async with running_gateway(tmp_path, settings, lab.environment) as gateway:
        await gateway.chat("a")
        await gateway.until(lambda page: page["models"]["a"]["running"] == 2)
        name, other = (await gateway.status())["active_containers_by_name"]
        container, well = await docker.containers.get(name), await docker.containers.get(other)
        await container.pause()
        waiting = [asyncio.create_task(gateway.chat("a")) for _ in range(4)]
        await gateway.event("instance_sick", instance=name)
        answers = await asyncio.gather(*waiting, *(gateway.chat("a") for _ in range(4)))
        assert {(status, headers["x-simulated-instance"]) for status, headers, _ in answers} == {(200, well.id[:12])}
        await container.unpause()
        await gateway.event("instance_well", instance=name)
        assert not gateway.events("instance_failed")


async def test_one_that_stays_paused_is_replaced_after_its_limit_also_by_a_gateway_that_adopts_it(
    lab: Lab, docker: aiodocker.Docker, tmp_path: Path
) -> None:
    lab.reset_gpus(1, 40_000)
    settings = {**config(lab, a=model("a")), "health": {**QUICK, "replace_after_s": 2}}
    async with running_gateway(folder_of(tmp_path, "0"), settings, lab.environment) as first:
        await first.chat("a")
        (name,) = (await first.status())["active_containers_by_name"]
        await (await docker.containers.get(name)).pause()
        assert (await first.chat("a"))[0] == 200
        assert "no answer" in (await first.event("instance_failed", instance=name))["reason"]
        page = await first.until(lambda page: list(page["active_containers_by_name"]) not in ([], [name]))
        (successor,) = page["active_containers_by_name"]
    await (await docker.containers.get(successor)).pause()
    async with running_gateway(folder_of(tmp_path, "1"), settings, lab.environment) as second:
        await second.event("instance_adopted", instance=successor)
        assert (await second.chat("a"))[0] == 200
        assert "no answer" in (await second.event("instance_failed", instance=successor))["reason"]


async def test_while_one_gateway_takes_over_from_another_it_alone_replaces(
    lab: Lab, docker: aiodocker.Docker, tmp_path: Path
) -> None:
    lab.reset_gpus(2, 40_000)
    settings = {**config(lab, a=model("a", instances=2)), "health": {**QUICK, "replace_after_s": 2}}
    async with running_gateway(folder_of(tmp_path, "0"), settings, lab.environment) as first:
        await first.chat("a")
        page = await first.until(lambda page: page["models"]["a"]["running"] == 2)
        addresses = {one["name"]: one["address"] for one in page["active_containers_by_name"].values()}
        for address in addresses.values():
            await set_faults(address, "hold_after_tokens=1")
        body = {"model": "a", "prompt": "x", "max_tokens": 9, "stream": True}
        async with first.http.post("/v1/completions", json=body) as stream:
            await stream.content.readline()
            page = await first.status()
            busy, idle = sorted(addresses, key=lambda name: -page["active_containers_by_name"][name]["in_flight"])
            async with running_gateway(
                folder_of(tmp_path, "1"), settings, lab.environment, arguments=taking_over(first)
            ) as second:
                await second.until(lambda page: page["models"]["a"]["running"] == 2)
                await (await docker.containers.get(idle)).pause()
                await asyncio.gather(*(each.event("instance_sick", instance=idle) for each in (first, second)))
                said = await second.event("instance_failed", instance=idle)
                assert "no answer" in said["reason"]
                assert "SIGKILL" in (await first.event("instance_failed", instance=idle))["reason"]
                await set_faults(addresses[busy])
                assert (await stream.content.read()).rstrip().endswith(b"data: [DONE]")
                await ended(first)
                assert len(first.events("instance_failed")) == len(second.events("instance_failed")) == 1
