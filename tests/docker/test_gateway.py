# SPDX-License-Identifier: Apache-2.0
"""The main job on a real Docker engine with stand-in GPUs, read through the real NVML binding."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiodocker
import aiohttp
import openai

from tests.gateway import CHAT, GatewayProcess, running_gateway
from tests.lab.lab import Lab

FAST = {"SIM_LOAD_S": "0.5", "SIM_TTFT_S": "0", "SIM_WEIGHTS_MIB": "2000", "SIM_TOKENS_PER_S": "500"}


def model(name: str, **more: Any) -> dict[str, Any]:
    return {"repository": f"test/{name}", "environment": FAST, "footprint_mib": 30_000, **more}


def config(lab: Lab, **models: dict[str, Any]) -> dict[str, Any]:
    return {
        "runtime": "docker",
        "docker": {"image": lab.image, "pull": "never"},
        "gpus": {"min_resident_s": 0},
        "models": models,
    }


async def containers(lab: Lab) -> list[str]:
    docker = aiodocker.Docker(url=lab.docker_host)
    try:
        found = await docker.containers.list(all=True, filters={"label": ["vllm-gateway.owner"]})
        return sorted([(await one.show())["Name"].lstrip("/") for one in found])
    finally:
        await docker.close()


async def kill(lab: Lab, name: str) -> None:
    docker = aiodocker.Docker(url=lab.docker_host)
    try:
        await (await docker.containers.get(name)).kill(signal="SIGKILL")
    finally:
        await docker.close()


@asynccontextmanager
async def streaming(gateway: GatewayProcess, name: str) -> AsyncIterator[aiohttp.StreamReader]:
    """A stream that has begun and goes on for a while."""
    body = {"model": name, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1000, "stream": True}
    async with gateway.http.post(CHAT, json={**body, "ignore_eos": True}) as reply:
        await reply.content.readline()
        yield reply.content


async def both_ready(gateway: GatewayProcess, name: str) -> dict[str, Any]:
    return await gateway.until(lambda page: page["models"][name]["running"] == 2)


async def test_two_instances_take_turns_and_fifty_requests_start_no_third(lab: Lab, tmp_path: Path) -> None:
    lab.reset_gpus(2, 40_000)
    settings = config(lab, **{"gemma3-4B": model("gemma-3-4b", instances=2)})
    async with running_gateway(tmp_path, settings, lab.environment) as gateway:
        answers = await asyncio.gather(*(gateway.chat("gemma3-4B") for _ in range(50)))
        assert [status for status, _, _ in answers] == [200] * 50
        page = await both_ready(gateway, "gemma3-4B")
        names = ["vllm_server_gemma3-4B_instance_1", "vllm_server_gemma3-4B_instance_2"]
        assert await containers(lab) == names
        seen = [(await gateway.chat("gemma3-4B"))[1]["x-simulated-instance"] for _ in range(4)]
        assert seen[0] != seen[1]
        assert seen[:2] == seen[2:]
        gpus = [one["gpus"] for one in page["active_containers_by_name"].values()]
        assert sorted(map(tuple, gpus)) == [("GPU-sim-0",), ("GPU-sim-1",)]


async def test_a_third_model_evicts_the_least_recently_used(lab: Lab, tmp_path: Path) -> None:
    lab.reset_gpus(2, 40_000)
    settings = config(lab, a=model("a"), b=model("b"), c=model("c"))
    async with running_gateway(tmp_path, settings, lab.environment) as gateway:
        await gateway.chat("b")
        await gateway.chat("a")
        assert (await gateway.chat("c"))[0] == 200
        assert [line["model"] for line in gateway.events("eviction")] == ["b"]
        assert await containers(lab) == ["vllm_server_a_instance_1", "vllm_server_c_instance_1"]


async def test_a_busy_instance_is_never_evicted(lab: Lab, tmp_path: Path) -> None:
    """The least recently used of the two that stand in the way is in use: the other one leaves."""
    lab.reset_gpus(2, 40_000)
    settings = config(lab, a=model("a"), b=model("b"), c=model("c"))
    async with running_gateway(tmp_path, settings, lab.environment) as gateway:
        await asyncio.gather(gateway.chat("a"), gateway.chat("b"))
        async with streaming(gateway, "a") as content:
            await gateway.chat("b")
            assert (await gateway.chat("c"))[0] == 200
            assert [line["model"] for line in gateway.events("eviction")] == ["b"]
            assert (await content.read()).endswith(b"data: [DONE]\n\n")


async def test_least_connections_prefers_the_idle_instance(lab: Lab, tmp_path: Path) -> None:
    lab.reset_gpus(2, 40_000)
    settings = {**config(lab, a=model("a", instances=2)), "strategy": "least_connections"}
    async with running_gateway(tmp_path, settings, lab.environment) as gateway:
        await gateway.chat("a")
        await both_ready(gateway, "a")
        async with streaming(gateway, "a") as content:
            busy = next(
                name
                for name, one in (await gateway.status())["active_containers_by_name"].items()
                if one["in_flight"] == 1
            )
            served_by = {(await gateway.chat("a"))[1]["x-simulated-instance"] for _ in range(4)}
            assert len(served_by) == 1
            assert busy not in served_by
            await content.read()


async def test_a_model_over_two_gpus_takes_its_part_of_each(lab: Lab, tmp_path: Path) -> None:
    lab.reset_gpus(2, 40_000)
    async with running_gateway(tmp_path, config(lab, a=model("a", tensor_parallel_size=2)), lab.environment) as gateway:
        assert (await gateway.chat("a"))[0] == 200
        page = await gateway.status()
        (one,) = page["active_containers_by_name"].values()
        assert one["gpus"] == ["GPU-sim-0", "GPU-sim-1"]
        assert [gpu["reserved_mib"] for gpu in page["gpus"]] == [30_000, 30_000]


async def test_the_official_client_chats_streams_and_lists(lab: Lab, tmp_path: Path) -> None:
    lab.reset_gpus(1, 40_000)
    async with (
        running_gateway(tmp_path, config(lab, a=model("a")), lab.environment) as gateway,
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client,
    ):
        messages: list[Any] = [{"role": "user", "content": "Hello"}]
        answer = await client.chat.completions.create(model="a", messages=messages, max_tokens=8, temperature=0)
        stream = await client.chat.completions.create(
            model="a", messages=messages, max_tokens=8, temperature=0, stream=True
        )
        text = "".join([part.choices[0].delta.content or "" async for part in stream])
        assert text == answer.choices[0].message.content
        assert [one.id async for one in client.models.list()] == ["a"]


async def test_a_killed_container_is_replaced_and_its_memory_is_free_again(lab: Lab, tmp_path: Path) -> None:
    lab.reset_gpus(1, 40_000)
    async with running_gateway(tmp_path, config(lab, a=model("a")), lab.environment) as gateway:
        await gateway.chat("a")
        await kill(lab, "vllm_server_a_instance_1")
        assert (await gateway.chat("a"))[0] == 200
        page = await gateway.status()
        assert page["gpus"][0]["reserved_mib"] == 30_000


async def test_a_new_gateway_adopts_what_runs_and_removes_what_does_not_match(lab: Lab, tmp_path: Path) -> None:
    lab.reset_gpus(2, 40_000)
    async with running_gateway(tmp_path, config(lab, a=model("a"), b=model("b")), lab.environment) as first:
        await asyncio.gather(first.chat("a"), first.chat("b"))
    assert len(await containers(lab)) == 2
    changed = config(lab, a=model("a"), b=model("b", engine_arguments=["--max-model-len", "4096"]))
    async with running_gateway(tmp_path, changed, lab.environment) as second:
        assert (await second.chat("a"))[0] == 200
        assert [line["model"] for line in second.events("instance_adopted")] == ["a"]
        assert [line["model"] for line in second.events("instance_removed_stale")] == ["b"]
        assert not second.events("instance_starting", model="a")


async def test_two_cold_models_at_once_never_over_commit_a_gpu(lab: Lab, tmp_path: Path) -> None:
    lab.reset_gpus(1, 65_000)
    async with running_gateway(tmp_path, config(lab, a=model("a"), b=model("b")), lab.environment) as gateway:
        answers = await asyncio.gather(gateway.chat("a"), gateway.chat("b"))
        assert [status for status, _, _ in answers] == [200, 200]
        assert not gateway.events("instance_failed")


async def test_a_model_too_big_is_refused_and_evicts_nothing(lab: Lab, tmp_path: Path) -> None:
    lab.reset_gpus(1, 40_000)
    settings = config(lab, a=model("a"), huge=model("huge", footprint_mib=90_000))
    async with running_gateway(tmp_path, settings, lab.environment) as gateway:
        await gateway.chat("a")
        status, _, reply = await gateway.chat("huge")
        assert (status, reply["error"]["code"]) == (503, "no_room")
        assert await containers(lab) == ["vllm_server_a_instance_1"]


async def test_discovery_measures_what_the_engine_took(lab: Lab, tmp_path: Path) -> None:
    lab.reset_gpus(1, 40_000)
    settings = config(lab, a=model("a-4b", footprint_mib=None))
    async with running_gateway(tmp_path, settings, lab.environment) as gateway:
        await gateway.chat("a")
        measured = (await gateway.event("footprint_measured"))["footprint_mib"]
        page = await gateway.until(lambda page: page["gpus"][0]["used_mib"] >= measured)
        assert abs(page["gpus"][0]["used_mib"] - page["gpus"][0]["foreign_mib"] - measured) <= 1


async def test_a_missing_image_fails_the_request_with_a_remedy(lab: Lab, tmp_path: Path) -> None:
    lab.reset_gpus(1, 40_000)
    settings = config(lab, a=model("a", image="no-such/image:1"))
    async with running_gateway(tmp_path, settings, lab.environment) as gateway:
        status, _, reply = await gateway.chat("a")
        assert (status, reply["error"]["code"]) == (503, "model_start_failed")
        assert "its image could not be fetched" in reply["error"]["message"]
        assert "no-such/image:1" in (await gateway.status())["models"]["a"]["last_error"]
        assert await containers(lab) == []


async def test_a_request_that_ends_engines_ends_two(lab: Lab, tmp_path: Path) -> None:
    """Docker tells of a death later than the engine's connections do."""
    lab.reset_gpus(3, 40_000)
    deadly = {**FAST, "SIM_FAULTS": "core_dies_of_poison=0.05", "SIM_TOKENS_PER_S": "30"}
    settings = config(lab, a={**model("a", instances=3), "environment": deadly})
    async with running_gateway(tmp_path, settings, lab.environment) as gateway:
        await gateway.chat("a")
        await gateway.until(lambda page: page["models"]["a"]["running"] == 3)
        innocent = [asyncio.create_task(gateway.chat("a", max_tokens=20, ignore_eos=True)) for _ in range(12)]
        await gateway.until(
            lambda page: sum(one["in_flight"] for one in page["active_containers_by_name"].values()) == 12
        )
        status, _, answer = await gateway.chat("a", user="poison")
        assert (status, answer["error"]["code"]) == (422, "poison_request")
        assert [(await one)[0] for one in innocent] == [200] * 12
        assert len(gateway.events("instance_failed")) == 2
