# SPDX-License-Identifier: Apache-2.0
"""Swaps in a second, end to end: two models that do not fit together, and sleep in place of stops and starts."""

import asyncio
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.engines import engine_pids
from tests.gateway import GatewayProcess, running_gateway

FAST = {"SIM_LOAD_S": "0.2", "SIM_WAKE_S": "0.02", "SIM_TTFT_S": "0", "SIM_WEIGHTS_MIB": "2000"}
KEPT_MIB = 384  # what the simulated engine keeps asleep: activations and CUDA graphs


def model(name: str, faults: str = "", **more: Any) -> dict[str, Any]:
    environment = {**FAST, "SIM_FAULTS": faults}
    return {"repository": f"test/{name}", "environment": environment, "footprint_mib": 6000, "sleep": "level_1", **more}


def config(models: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    gpus = {"source": "simulated", "devices": [{"name": "Simulated GPU", "memory_mib": 10_000}]}
    return {
        "runtime": "process",
        "process": {"command": ["simulated"]},
        "gpus": {**gpus, "margin_mib": 0, "min_resident_s": 0},
        "models": models or {"a": model("a"), "b": model("b")},
        "host_memory_mib": 32_000,
        **more,
    }


async def answers(gateway: GatewayProcess, name: str) -> None:
    status, _, reply = await gateway.chat(name)
    assert status == 200, reply


async def test_a_swap_back_is_a_wake_and_not_a_start(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, config()) as gateway:
        for name in "ababa":
            await answers(gateway, name)
        assert len(gateway.events("instance_starting")) == 2
        assert len(gateway.events("instance_waking")) == 3
        assert not gateway.events("instance_stopping")
        asleep = gateway.events("instance_asleep")
        assert [line["asleep_mib"] for line in asleep] == [KEPT_MIB] * 4
        assert [line["asleep"] for line in gateway.events("eviction")] == [True] * 4
        page = await gateway.status()
        assert (page["models"]["a"]["state"], page["models"]["b"]["state"]) == ("ready", "sleeping")
        (gpu,) = page["gpus"]
        assert gpu["reserved_mib"] == 6000 + KEPT_MIB
        assert page["host_memory"]["limit_mib"] == 32_000
        assert 0 < page["host_memory"]["held_mib"] <= 32_000
        async with gateway.http.get("/metrics") as reply:
            assert 'vllm_gateway_instances{model="b",state="sleeping"} 1.0' in await reply.text()


async def test_a_stream_is_finished_before_its_engine_sleeps(tmp_path: Path) -> None:
    slow = model("a", environment={**FAST, "SIM_TOKENS_PER_S": "40"})
    async with running_gateway(tmp_path, config({"a": slow, "b": model("b")})) as gateway:
        await answers(gateway, "a")
        body = {"model": "a", "prompt": "x", "max_tokens": 40, "stream": True, "ignore_eos": True}
        async with gateway.http.post("/v1/completions", json=body) as stream:
            await stream.content.readline()
            other = asyncio.create_task(answers(gateway, "b"))
            again = asyncio.create_task(_after_the_drain(gateway, "a"))
            text = (await stream.content.read()).decode()
        assert '"finish_reason":"length"' in text
        await other
        await again
        assert len(gateway.events("instance_starting")) == 2


async def _after_the_drain(gateway: GatewayProcess, name: str) -> None:
    await gateway.event("instance_draining", model=name)
    await answers(gateway, name)


async def test_sleepers_make_way_when_their_remainders_are_too_much(tmp_path: Path) -> None:
    models = {"a": model("a"), "b": model("b"), "big": model("big", footprint_mib=9_200)}
    async with running_gateway(tmp_path, config(models)) as gateway:
        for name in ("a", "b", "big"):
            await answers(gateway, name)
        page = await gateway.status()
        assert page["models"]["a"]["state"] == "stopped", "it was used least recently"
        assert page["models"]["b"]["state"] == "sleeping"
        await answers(gateway, "b")
        assert len(gateway.events("instance_starting")) == 3


async def test_without_room_in_the_machines_memory_it_is_stopped(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, config(host_memory_mib=100)) as gateway:
        await answers(gateway, "a")
        await answers(gateway, "b")
        assert (await gateway.status())["models"]["a"]["state"] == "stopped"
        assert not gateway.events("instance_falling_asleep")


async def test_a_killed_sleeper_is_noticed_and_started_anew(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, config()) as gateway:
        await answers(gateway, "a")
        await answers(gateway, "b")
        os.kill(await _pid(gateway, "a"), signal.SIGKILL)
        await gateway.event("instance_failed", model="a")
        await gateway.until(lambda page: page["models"]["a"]["state"] == "stopped")
        await answers(gateway, "a")
        assert len(gateway.events("instance_starting", model="a")) == 2


async def test_an_engine_that_does_not_fall_asleep_is_stopped(tmp_path: Path) -> None:
    models = {"a": model("a", "sleep_500"), "b": model("b")}
    async with running_gateway(tmp_path, config(models)) as gateway:
        await answers(gateway, "a")
        await answers(gateway, "b")
        failed = await gateway.event("instance_not_moved", model="a")
        assert "500" in failed["reason"]
        assert (await gateway.status())["models"]["a"]["state"] == "stopped"
        await answers(gateway, "a")


async def test_an_engine_that_does_not_wake_is_started_anew_while_the_requests_wait(tmp_path: Path) -> None:
    models = {"a": model("a", "wake_500"), "b": model("b")}
    async with running_gateway(tmp_path, config(models)) as gateway:
        for name in "aba":
            await answers(gateway, name)
        assert gateway.events("instance_not_moved", model="a")
        assert len(gateway.events("instance_starting", model="a")) == 2


async def test_a_sleeper_is_stopped_after_its_models_idle_timeout(tmp_path: Path) -> None:
    models = {"a": model("a", idle_timeout_s=1.5), "b": model("b")}
    async with running_gateway(tmp_path, config(models)) as gateway:
        await answers(gateway, "a")
        await answers(gateway, "b")
        assert (await gateway.status())["models"]["a"]["state"] == "sleeping"
        await gateway.event("idle_stop", model="a")
        await gateway.until(lambda page: page["models"]["a"]["state"] == "stopped")


async def test_the_engines_developer_paths_are_not_passed_on(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, config()) as gateway:
        await answers(gateway, "a")
        body = {"model": "a", "method": "shutdown"}
        for path in ("/sleep", "/collective_rpc", "/v1/../sleep", "/v1/%2e%2e/sleep", "/v1/..%2fsleep"):
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            assert (await _raw(gateway, head, b'{"model": "a"}')).split()[1] == b"404", path
            async with gateway.http.post(path, json=body) as reply:
                assert reply.status == 404, path
        await answers(gateway, "a")


async def _raw(gateway: GatewayProcess, head: str, body: bytes) -> bytes:
    """The first line of the reply to what no client library would send as it is."""
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    line = await reader.readline()
    writer.close()
    return line


async def _pid(gateway: GatewayProcess, name: str) -> int:
    """Of the engine that listens at the instance's address."""
    (address,) = [
        one["address"] for one in (await gateway.status())["active_containers_by_name"].values() if one["model"] == name
    ]
    return engine_pids(gateway.process.pid)[address]
