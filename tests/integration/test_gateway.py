# SPDX-License-Identifier: Apache-2.0
"""The main job end to end, with the process runtime and the simulated engine: balance, swap, refuse, recover."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.engines import engines_of_somebody_else, metrics
from tests.gateway import running_gateway
from tests.waiting import LIMIT_S, until

FAST = {"SIM_LOAD_S": "0.2", "SIM_TTFT_S": "0", "SIM_WEIGHTS_MIB": "2000", "SIM_TOKENS_PER_S": "500"}


def model(name: str, **more: Any) -> dict[str, Any]:
    return {"repository": f"test/{name}", "environment": FAST, "footprint_mib": 6000, **more}


def config(*, gpus: int = 2, gpu_mib: int = 10_000, **more: Any) -> dict[str, Any]:
    devices = [{"name": "Simulated GPU", "memory_mib": gpu_mib}] * gpus
    return {
        "runtime": "process",
        "process": {"command": ["simulated"]},
        "gpus": {"source": "simulated", "devices": devices, "margin_mib": 0, "min_resident_s": 0},
        "models": {"gemma3-4B": model("gemma-3-4b", instances=2), "qwen2.5": model("qwen2.5-3b")},
        **more,
    }


async def test_two_instances_take_turns(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, config()) as gateway:
        await gateway.chat("gemma3-4B")
        await gateway.until(lambda page: page["models"]["gemma3-4B"]["running"] == 2)
        seen = [(await gateway.chat("gemma3-4B"))[1]["x-simulated-instance"] for _ in range(4)]
        assert seen[0] != seen[1]
        assert seen[:2] == seen[2:]
        assert {one["name"] for one in (await gateway.status())["active_containers_by_name"].values()} == {
            "vllm_server_gemma3-4B_instance_1",
            "vllm_server_gemma3-4B_instance_2",
        }


async def test_fifty_requests_at_once_on_a_cold_model_start_exactly_the_wanted_instances(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, config()) as gateway:
        answers = await asyncio.gather(*(gateway.chat("gemma3-4B") for _ in range(50)))
        assert [status for status, _, _ in answers] == [200] * 50
        await gateway.until(lambda page: page["models"]["gemma3-4B"]["running"] == 2)
        assert len(gateway.events("instance_starting")) == 2
        page = await gateway.status()
        assert sum(one["total"] for one in page["active_containers_by_name"].values()) == 50
        assert all(one["in_flight"] == 0 for one in page["active_containers_by_name"].values())


async def test_the_least_recently_used_makes_room(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, config()) as gateway:
        await gateway.chat("gemma3-4B")
        await gateway.until(lambda page: page["models"]["gemma3-4B"]["running"] == 2)
        _, headers, _ = await gateway.chat("gemma3-4B")
        status, _, _ = await gateway.chat("qwen2.5")
        assert status == 200
        (evicted,) = gateway.events("eviction", for_model="qwen2.5")
        assert evicted["instance"].startswith("vllm_server_gemma3-4B")
        assert evicted["instance"] != headers["x-simulated-instance"], "it was used last"
        page = await gateway.until(lambda page: "no room" in str(page["models"]["gemma3-4B"]["why_fewer"]))
        assert page["models"]["gemma3-4B"]["running"] == 1
        assert (await gateway.chat("gemma3-4B"))[0] == 200


async def test_a_busy_instance_is_not_cut_by_an_eviction(tmp_path: Path) -> None:
    models = {"a": model("a", environment={**FAST, "SIM_TOKENS_PER_S": "40"}), "b": model("b")}
    async with running_gateway(tmp_path, config(gpus=1, models=models)) as gateway:
        await gateway.chat("a")
        body = {"model": "a", "prompt": "x", "max_tokens": 60, "stream": True, "ignore_eos": True}
        async with gateway.http.post("/v1/completions", json=body) as stream:
            await stream.content.readline()
            other = asyncio.create_task(gateway.chat("b"))
            await gateway.event("instance_draining", model="a")
            text = (await stream.content.read()).decode()
        assert '"finish_reason":"length"' in text
        assert text.rstrip().endswith("data: [DONE]")
        assert (await other)[0] == 200


async def test_what_can_never_fit_is_refused_and_evicts_nothing(tmp_path: Path) -> None:
    models = {"small": model("small"), "huge": model("huge", footprint_mib=50_000)}
    async with running_gateway(tmp_path, config(models=models)) as gateway:
        await gateway.chat("small")
        status, _, reply = await gateway.chat("huge")
        assert status == 503
        assert reply["error"]["code"] == "no_room"
        assert "50000" in reply["error"]["message"]
        assert (await gateway.status())["models"]["small"]["running"] == 1
        assert not gateway.events("eviction")


async def test_a_bad_engine_argument_fails_the_request_at_once_and_operators_see_why(tmp_path: Path) -> None:
    models = {"bad": model("bad", engine_arguments=["--no-such-option"])}
    async with running_gateway(tmp_path, config(models=models)) as gateway:
        status, headers, reply = await gateway.chat("bad")
        assert status == 503
        assert reply["error"]["code"] == "model_start_failed"
        assert "--no-such-option" not in reply["error"]["message"], "that is for operators"
        shown = (await gateway.status())["models"]["bad"]
        assert "unrecognized arguments: --no-such-option" in "".join(shown["log_tail"])
        failed = await gateway.event("instance_failed", failure_id=shown["failure_id"])
        assert "unrecognized arguments: --no-such-option" in "".join(failed["log_tail"])
        assert f"failure {shown['failure_id']}" in reply["error"]["message"]
        assert int(headers["Retry-After"]) >= 1
        again, _, reply = await gateway.chat("bad")
        assert again == 503
        assert "bad failed to start and is tried again later: the engine ended with" in reply["error"]["message"]
        assert len(gateway.events("instance_starting")) == 1, "it must not loop hot"
        page = await gateway.until(lambda page: not page["active_containers_by_name"])
        assert all(gpu["reserved_mib"] == 0 for gpu in page["gpus"])


async def test_a_gateway_that_ends_leaves_the_engines_of_another_one(tmp_path: Path) -> None:
    models = {"a": model("a")}
    (tmp_path / "other").mkdir()
    async with running_gateway(tmp_path, config(gpus=1, models=models)) as gateway:
        async with running_gateway(tmp_path / "other", config(gpus=1, models=models)) as other:
            await gateway.chat("a")
            await other.chat("a")
            engines = engines_of(gateway.process.pid)
            await asyncio.sleep(1.2)  # both have looked at who there is
        assert engines_of(gateway.process.pid) == engines
        assert (await gateway.chat("a"))[0] == 200


async def test_a_killed_engine_is_replaced_and_no_request_fails(tmp_path: Path) -> None:
    models = {"a": model("a")}
    async with running_gateway(tmp_path, config(gpus=1, models=models)) as gateway:
        await gateway.chat("a")
        (child,) = engines_of(gateway.process.pid)
        os.kill(child, signal.SIGKILL)
        answers = await asyncio.gather(*(gateway.chat("a") for _ in range(5)))
        assert [status for status, _, _ in answers] == [200] * 5
        await gateway.event("instance_ready", count=2)


async def test_discovery_measures_what_the_engine_took(tmp_path: Path) -> None:
    models = {"gemma3-4B": {"repository": "google/gemma-3-4b-it", "instances": 2, "environment": FAST}}
    async with running_gateway(tmp_path, config(gpu_mib=24_000, models=models)) as gateway:
        assert (await gateway.chat("gemma3-4B"))[0] == 200
        measured = await gateway.event("footprint_measured")
        took = measured["footprint_mib"]
        page = await gateway.until(lambda page: [gpu["used_mib"] for gpu in page["gpus"]] == [took, took])
        assert list(page["known_footprints_mib"].values()) == [took]
        assert page["models"]["gemma3-4B"]["running"] == 2


async def test_footprints_that_cannot_be_kept_are_measured_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    wanted = config(
        models={"a": model("a", footprint_mib=None)}, memory_footprint_file=str(tmp_path / "file" / "f.json")
    )
    async with running_gateway(tmp_path, wanted) as gateway:
        assert (await gateway.chat("a"))[0] == 200
        assert "f.json" in (await gateway.event("footprint_file_not_written"))["file"]
        assert (await gateway.status())["known_footprints_mib"]


async def test_an_estimate_too_small_is_corrected_and_the_request_served(tmp_path: Path) -> None:
    """Estimated by its name at 3190 MiB; its weights alone take 4000."""
    models = {"a": {"repository": "test/a-50m", "environment": {**FAST, "SIM_WEIGHTS_MIB": "4000"}}}
    async with running_gateway(tmp_path, config(gpu_mib=24_000, models=models)) as gateway:
        assert (await gateway.chat("a"))[0] == 200
        assert gateway.events("footprint_corrected", model="a")
        page = await gateway.status()
        assert not page["models"]["a"]["last_error"]


async def test_a_model_that_failed_is_tried_again_when_told(tmp_path: Path) -> None:
    models = {"bad": model("bad", engine_arguments=["--no-such-option"])}
    async with running_gateway(tmp_path, config(models=models)) as gateway:
        assert (await gateway.chat("bad"))[0] == 503
        shown = (await gateway.status())["models"]["bad"]
        assert "unrecognized arguments" in "".join(shown["log_tail"])
        command = [sys.executable, "-m", "vllm_gateway.cli", "retry", "bad", "--url", gateway.url]
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, check=False, timeout=LIMIT_S
        )
        assert done.stdout.startswith("bad: ")
        await gateway.event("instance_starting", count=2)
        async with gateway.http.post("/gateway/models/nope/retry") as reply:
            assert reply.status == 404
        async with gateway.http.get("/gateway/models/bad/retry") as reply:
            assert reply.status == 405


async def test_an_idle_model_is_stopped(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, config(models={"a": model("a", idle_timeout_s=0.5)})) as gateway:
        await gateway.chat("a")
        await gateway.event("idle_stop", model="a")
        await gateway.event("instance_stopped", model="a")
        assert not engines_of(gateway.process.pid)


async def test_a_client_that_left_the_queue_never_starts_a_model(tmp_path: Path) -> None:
    models = {"a": model("a", environment={**FAST, "SIM_TOKENS_PER_S": "20"}), "b": model("b")}
    async with running_gateway(tmp_path, config(gpus=1, models=models)) as gateway:
        await gateway.chat("a")
        body = {"model": "a", "prompt": "x", "max_tokens": 40, "stream": True, "ignore_eos": True}
        async with gateway.http.post("/v1/completions", json=body) as stream:
            await stream.content.readline()
            other = asyncio.create_task(gateway.chat("b"))
            await gateway.event("instance_draining", model="a")
            other.cancel()
            await gateway.until(lambda page: page["models"]["a"]["running"] == 1)
            await stream.content.read()
        assert not gateway.events("instance_starting", model="b")
        assert (await gateway.chat("a"))[0] == 200


async def test_the_instances_an_operator_asks_for_by_environment(tmp_path: Path) -> None:
    environment = {"PARALLEL_MODELS_JSON": "'{\"qwen2.5\": 2}'"}
    async with running_gateway(tmp_path, config(), environment) as gateway:
        assert (await gateway.status())["parallel_model_config"] == {"gemma3-4B": 2, "qwen2.5": 2}
        assert gateway.events("parallel_models_config")


async def test_least_connections_prefers_the_idle_instance(tmp_path: Path) -> None:
    slow = {**FAST, "SIM_TOKENS_PER_S": "40"}
    models = {"a": model("a", instances=2, strategy="least_connections", environment=slow)}
    async with running_gateway(tmp_path, config(models=models)) as gateway:
        await gateway.chat("a")
        await gateway.until(lambda page: page["models"]["a"]["running"] == 2)
        body = {"model": "a", "prompt": "x", "max_tokens": 80, "stream": True, "ignore_eos": True}
        async with gateway.http.post("/v1/completions", json=body) as stream:
            busy = stream.headers["x-simulated-instance"]
            others = {(await gateway.chat("a", max_tokens=1))[1]["x-simulated-instance"] for _ in range(4)}
            assert busy not in others


async def test_engines_of_somebody_else_need_no_docker_are_balanced_and_never_stopped(tmp_path: Path) -> None:
    async with engines_of_somebody_else("gemma3-4B", 2, FAST) as urls:
        models = {"gemma3-4B": {"endpoints": urls, "aliases": ["gpt-4o"]}}
        async with running_gateway(tmp_path, {"models": models}, {"DOCKER_HOST": "unix:///nowhere.sock"}) as gateway:
            await gateway.until(lambda page: page["models"]["gemma3-4B"]["running"] == 2)
            seen = {(await gateway.chat("gpt-4o"))[1]["x-simulated-instance"] for _ in range(4)}
            assert len(seen) == 2
        for url in urls:
            assert await metrics(url.removeprefix("http://"))


async def test_a_masked_gpu_gets_no_engine(tmp_path: Path) -> None:
    settings = config(gpus=3)
    settings["gpus"] |= {"except": [0], "only": [0, "GPU-sim-2"]}
    async with running_gateway(tmp_path, settings) as gateway:
        assert (await gateway.chat("qwen2.5"))[0] == 200
        page = await gateway.status()
        assert [gpu["index"] for gpu in page["gpus"]] == [2]
        (one,) = page["active_containers_by_name"].values()
        assert one["gpus"] == ["GPU-sim-2"]


async def test_engines_and_clients_by_ipv6(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, config(), arguments=["--host", "::1"]) as behind:
        models = {"qwen2.5": {"endpoints": [behind.url]}}
        served = {"server": {"open": True}, "models": models}
        async with running_gateway(tmp_path / "front", served, arguments=["--host", "::"]) as gateway:
            page = await gateway.until(lambda page: page["models"]["qwen2.5"]["running"] == 1)
            (one,) = page["active_containers_by_name"].values()
            assert f"http://{one['address']}" == behind.url
            port = gateway.url.rpartition(":")[2]
            body = {"model": "qwen2.5", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
            for host in ("127.0.0.1", "[::1]"):
                url = f"http://{host}:{port}/v1/chat/completions"
                async with aiohttp.ClientSession() as http, http.post(url, json=body) as reply:
                    assert reply.status == 200, host


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_disconnects_ends_the_engines_work(stream: bool, tmp_path: Path) -> None:
    models = {"a": model("a", environment={**FAST, "SIM_TOKENS_PER_S": "10"})}
    async with running_gateway(tmp_path, config(models=models)) as gateway:
        await gateway.chat("a", max_tokens=1)
        (one,) = (await gateway.status())["active_containers_by_name"].values()
        request = asyncio.create_task(gateway.chat("a", max_tokens=4000, ignore_eos=True, stream=stream))
        await running_requests(one["address"], 1)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        await running_requests(one["address"], 0)
        await gateway.event("request_finished", outcome="client_gone")
        await gateway.until(lambda page: page["active_containers_by_name"][one["name"]]["in_flight"] == 0)


async def running_requests(address: str, count: int) -> None:
    async def so_many() -> bool:
        page = (await metrics(address)).decode()
        return re.search(rf"num_requests_running{{[^}}]*}} {count}(\.0)?$", page, re.MULTILINE) is not None

    await until(so_many)


async def test_on_sigterm_a_stream_in_flight_ends_properly_and_nothing_is_left(tmp_path: Path) -> None:
    models = {"a": model("a", environment={**FAST, "SIM_TOKENS_PER_S": "40"})}
    async with running_gateway(tmp_path, config(models=models)) as gateway:
        await gateway.chat("a")
        (engine,) = engines_of(gateway.process.pid)
        body = {"model": "a", "prompt": "x", "max_tokens": 60, "stream": True, "ignore_eos": True}
        async with gateway.http.post("/v1/completions", json=body) as stream:
            await stream.content.readline()
            gateway.process.terminate()
            await gateway.event("gateway_stopping")
            with pytest.raises(aiohttp.ClientConnectionError):
                await gateway.chat("a")
            assert (await stream.content.read()).rstrip().endswith(b"data: [DONE]")
        async with asyncio.timeout(LIMIT_S):
            await gateway.process.wait()
        assert not Path(f"/proc/{engine}").exists()


def engines_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [
        int(child) for child in children if b"vllm_gateway.simulator" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
