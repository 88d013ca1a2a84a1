# SPDX-License-Identifier: Apache-2.0
"""Restarts of the gateway with containers: taken over under load, kept, or stopped with it."""

import asyncio
import shutil
from pathlib import Path

import aiohttp
import pytest

from tests.docker.hand_over import SLOW, while_b_waits
from tests.docker.test_gateway import FAST, config, containers, model
from tests.gateway import running_gateway
from tests.integration.test_take_over import ended, folder_of, taking_over
from tests.lab.lab import Lab
from tests.load import Load


async def test_a_restart_under_load_loses_no_request_and_no_container(lab: Lab, tmp_path: Path) -> None:
    lab.reset_gpus(2, 40_000)
    settings = config(lab, a=model("a"), b=model("b"))
    async with running_gateway(folder_of(tmp_path, "0"), settings, lab.environment) as first:
        assert (await first.chat("a"))[0] == 200
        before = {one["Id"] for one in lab.containers("vllm-gateway.owner")}
        load = Load(first.url, ["a", "b"])
        cold = asyncio.create_task(first.chat("b"))
        await first.event("instance_planned", model="b")
        async with running_gateway(
            folder_of(tmp_path, "1"), settings, lab.environment, arguments=taking_over(first)
        ) as second:
            assert (await cold)[0] == 200
            await ended(first)
            await load.more(50)
            await load.end()
            assert not load.failures
            assert before <= {one["Id"] for one in lab.containers("vllm-gateway.owner")}
            assert len(second.events("instance_adopted")) == 2
            assert not second.events("instance_starting")


async def test_what_the_old_one_waits_for_is_started_by_the_new_one(lab: Lab, tmp_path: Path) -> None:
    lab.reset_gpus(1, 40_000)
    settings = config(lab, a=model("a", environment={**FAST, **SLOW}), b=model("b"))
    async with while_b_waits(lab, tmp_path, settings) as hand_over:
        text = await hand_over.stream.content.read()
        assert text.rstrip().endswith(b"data: [DONE]"), "nothing was stopped under it"
        assert (await hand_over.waiting)[0] == 200
        assert len(hand_over.new.events("instance_starting", model="b")) == 1
        await ended(hand_over.old)


async def test_a_start_that_the_new_one_tries_in_vain_is_told_to_who_waits_at_the_old_one(
    lab: Lab, tmp_path: Path
) -> None:
    lab.reset_gpus(1, 40_000)
    broken = model("b", engine_arguments=["--no-such-option"])
    settings = config(lab, a=model("a", environment={**FAST, **SLOW}), b=broken)
    async with while_b_waits(lab, tmp_path, settings) as hand_over:
        status, _, answer = await hand_over.waiting
        assert (status, answer["error"]["code"]) == (503, "model_start_failed")
        assert "the engine ended with exit status 2 (failure " in answer["error"]["message"]
        await hand_over.stream.content.read()
        await ended(hand_over.old)


async def test_a_discovery_run_is_measured_by_the_gateway_that_adopts_it(lab: Lab, tmp_path: Path) -> None:
    lab.reset_gpus(1, 40_000)
    settings = config(lab, a=model("a-4b", footprint_mib=None, environment={**FAST, "SIM_LOAD_S": "3"}))
    async with running_gateway(folder_of(tmp_path, "0"), settings, lab.environment, may_be_killed=True) as first:
        asked = asyncio.create_task(first.chat("a"))
        await first.until(lambda page: any(one["address"] for one in page["active_containers_by_name"].values()))
        first.process.kill()
        with pytest.raises(aiohttp.ClientError):
            await asked
        async with running_gateway(folder_of(tmp_path, "1"), settings, lab.environment) as second:
            await second.event("instance_adopted")
            measured = (await second.event("footprint_measured"))["footprint_mib"]
            page = await second.status()
            (one,) = page["active_containers_by_name"].values()
            assert one["reserved_mib"] == measured < 40_000
            assert (await second.chat("a"))[0] == 200


async def test_a_changed_model_is_replaced_by_the_new_one_while_the_old_one_serves(lab: Lab, tmp_path: Path) -> None:
    lab.reset_gpus(2, 40_000)
    async with running_gateway(folder_of(tmp_path, "0"), config(lab, a=model("a")), lab.environment) as first:
        await first.chat("a")
        load = Load(first.url)
        changed = config(lab, a=model("a", engine_arguments=["--max-model-len", "4096"]))
        async with running_gateway(
            folder_of(tmp_path, "1"), changed, lab.environment, arguments=taking_over(first)
        ) as second:
            await second.event("instance_stopped", model="a")
            await ended(first)
            await load.more(20)
            await load.end()
            assert not load.failures


@pytest.mark.parametrize("what", ["gone", "fewer", "changed"])
async def test_no_stream_of_the_old_one_is_cut_by_what_the_new_one_has_no_use_for(
    what: str, lab: Lab, tmp_path: Path
) -> None:
    lab.reset_gpus(2, 40_000)
    slow = {**FAST, "SIM_TOKENS_PER_S": "20"}
    a, b = model("a", environment=slow), model("b")
    settings = config(lab, a={**a, "instances": 2} if what == "fewer" else a)
    changed = {"gone": {"b": b}, "fewer": {"a": a}, "changed": {"a": {**a, "engine_arguments": ["--seed", "7"]}}}[what]
    async with running_gateway(folder_of(tmp_path, "0"), settings, lab.environment) as first:
        await first.chat("a")
        await first.until(lambda page: page["models"]["a"]["running"] == settings["models"]["a"].get("instances", 1))
        body = {"model": "a", "prompt": "x", "max_tokens": 100, "stream": True, "ignore_eos": True, "n": 2}
        async with (
            first.http.post("/v1/completions", json=body) as one,
            first.http.post("/v1/completions", json=body) as other,
        ):
            await asyncio.gather(one.content.readline(), other.content.readline())
            async with running_gateway(
                folder_of(tmp_path, "1"), config(lab, **changed), lab.environment, arguments=taking_over(first)
            ) as second:
                await first.event("gateway_handed_over")
                for text in await asyncio.gather(one.content.read(), other.content.read()):
                    assert text.rstrip().endswith(b"data: [DONE]"), "such a stream cannot be continued"
                assert (await second.event("instance_stopped", model="a"))["instance"]
                await ended(first)


async def test_containers_stay_or_go_with_the_gateway_as_it_is_told(lab: Lab, tmp_path: Path) -> None:
    lab.reset_gpus(1, 40_000)
    for on_exit, left in (("keep", ["vllm_server_a_instance_1"]), ("stop", [])):
        settings = config(lab, a=model("a"))
        settings["docker"]["on_exit"] = on_exit
        async with running_gateway(folder_of(tmp_path, on_exit), settings, lab.environment) as gateway:
            assert (await gateway.chat("a"))[0] == 200
        assert await containers(lab) == left


async def test_a_lost_state_dir_costs_an_engine_only_its_socket(lab: Lab, tmp_path: Path) -> None:
    """By a port, the way and the key are known to Docker. A socket that is gone is never waited for."""
    lab.reset_gpus(2, 40_000)
    settings = config(lab, a=model("a"), b=model("b", engine_address="port"))
    async with running_gateway(tmp_path, settings, lab.environment) as gateway:
        for name in "ab":
            assert (await gateway.chat(name))[0] == 200
    before = {one["Labels"]["vllm-gateway.model"]: one["Id"] for one in lab.containers("vllm-gateway.owner")}
    shutil.rmtree(tmp_path / "state")
    async with running_gateway(tmp_path, settings, lab.environment) as gateway:
        assert "socket has been deleted" in (await gateway.event("instance_removed_stale", model="a"))["reason"]
        for name in "ab":
            assert (await gateway.chat(name))[0] == 200
        after = {one["Labels"]["vllm-gateway.model"]: one["Id"] for one in lab.containers("vllm-gateway.owner")}
        assert after["b"] == before["b"]
        assert after["a"] != before["a"]
        assert not gateway.events("instance_starting", model="b")
