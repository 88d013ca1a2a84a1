# SPDX-License-Identifier: Apache-2.0
"""A gateway whose configuration changes while it serves."""

import asyncio
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.gateway import GatewayProcess, running_gateway
from tests.integration.test_gateway import FAST, config, model
from tests.load import Load


def write(folder: Path, settings: Mapping[str, Any]) -> None:
    file = folder / "gateway.yaml"
    before = yaml.safe_load(file.read_text("utf-8"))
    kept = {name: before[name] for name in ("memory_footprint_file", "state_dir")}
    file.write_text(yaml.safe_dump({**kept, **settings}), "utf-8")


async def reload(gateway: GatewayProcess, folder: Path, settings: Mapping[str, Any], count: int = 1) -> None:
    write(folder, settings)
    gateway.process.send_signal(signal.SIGHUP)
    await gateway.event("config_reloaded", count=count)


async def test_models_come_go_and_change_and_no_request_fails(tmp_path: Path) -> None:
    models = {"a": model("a", instances=2), "gone": model("gone")}
    async with running_gateway(tmp_path, config(gpus=2, models=models)) as gateway:
        assert (await gateway.chat("a"))[0] == 200
        await gateway.until(lambda page: page["models"]["a"]["running"] == 2)
        over = asyncio.Event()
        answers: list[int] = []

        async def client() -> None:
            while not over.is_set():
                answers.append((await gateway.chat("a"))[0])

        clients = [asyncio.create_task(client()) for _ in range(4)]
        changed = model("a", instances=2, aliases=["alias"], engine_arguments=["--max-model-len", "4096"])
        await reload(gateway, tmp_path, config(gpus=2, models={"a": changed, "new": model("new", footprint_mib=4000)}))
        await gateway.event("instance_stopped", model="a", count=2)
        await gateway.until(lambda page: page["models"]["a"]["running"] == 2)
        over.set()
        await asyncio.gather(*clients)
        assert set(answers) == {200}
        assert (await gateway.chat("alias"))[0] == 200
        assert (await gateway.chat("new"))[0] == 200
        assert (await gateway.chat("gone"))[0] == 404
        starts = gateway.events("instance_starting", model="a")
        assert len(starts) == 4, "two old ones, two new ones"


async def test_a_new_alias_counts_at_once_and_the_engine_stays(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, config(models={"a": model("a")})) as gateway:
        assert (await gateway.chat("a"))[0] == 200
        await reload(gateway, tmp_path, config(models={"a": model("a", aliases=["gpt-4o"])}))
        status, _, answer = await gateway.chat("gpt-4o")
        assert (status, answer["model"]) == (200, "gpt-4o")
        assert len(gateway.events("instance_starting")) == 1


async def test_a_bad_file_changes_nothing_and_what_needs_a_restart_is_said(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, config(models={"a": model("a")})) as gateway:
        write(tmp_path, config(modles={}))
        gateway.process.send_signal(signal.SIGHUP)
        failed = await gateway.event("config_reload_failed")
        assert "did you mean 'models'" in failed["problems"][0]
        assert (await gateway.chat("a"))[0] == 200
        write(tmp_path, config(models={"a": model("a", aliases=["again"])}, queue_size=1 << 63))
        gateway.process.send_signal(signal.SIGHUP)
        failed = await gateway.event("config_reload_failed", count=2)
        assert "queue_size: must be at most 1000000000" in failed["problems"][0]
        assert (await gateway.chat("again"))[0] == 404, "nothing of it is in force"
        await reload(gateway, tmp_path, config(models={"a": model("a")}, log={"level": "error"}, strategy="random"))
        assert not gateway.events("config_needs_restart"), "LOG_LEVEL is set, and wins"
        assert (await gateway.status())["models"]["a"]["strategy"] == "random"
        await reload(gateway, tmp_path, config(models={"a": model("a")}, reload="watch"), count=2)
        assert (await gateway.event("config_needs_restart"))["settings"] == ["reload"]


async def test_an_emptied_file_drops_no_model_and_one_that_says_so_does(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, config(models={"a": model("a")})) as gateway:
        assert (await gateway.chat("a"))[0] == 200
        (tmp_path / "gateway.yaml").write_text("")
        gateway.process.send_signal(signal.SIGHUP)
        assert "say `models: {}`" in (await gateway.event("config_reload_failed"))["problems"][0]
        assert (await gateway.chat("a"))[0] == 200
        (tmp_path / "gateway.yaml").write_text("models: {}\n")
        gateway.process.send_signal(signal.SIGHUP)
        assert (await gateway.event("config_reloaded"))["models"] == []
        assert (await gateway.chat("a"))[0] == 404


async def test_a_changed_file_is_noticed_if_that_is_asked_for(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, config(models={"a": model("a")}, reload="watch")) as gateway:
        write(tmp_path, config(models={"b": model("b")}, reload="watch", server={"api_keys": ["secret"]}))
        await gateway.event("config_reloaded")
        assert (await gateway.chat("b"))[0] == 401
        gateway.http.headers["Authorization"] = "Bearer secret"
        assert (await gateway.chat("b"))[0] == 200
        assert (await gateway.chat("a"))[0] == 404


async def test_numbers_of_instances_go_up_and_down_and_no_request_fails(tmp_path: Path) -> None:
    def with_instances(count: int, **more: Any) -> dict[str, Any]:
        return config(gpus=3, models={"a": model("a", instances=count, **more)})

    async with running_gateway(tmp_path, with_instances(2)) as gateway:
        await gateway.chat("a")
        await gateway.until(lambda page: page["models"]["a"]["running"] == 2)
        load = Load(gateway.url)
        for done, count in enumerate((1, 3), start=1):
            await reload(gateway, tmp_path, with_instances(count), count=done)
            await gateway.until(lambda page, count=count: len(page["active_containers_by_name"]) == count)  # type: ignore[misc]
            await load.more(20)
        for seed in (3, 4):  # the second one comes while the first one is under way
            write(tmp_path, with_instances(2, engine_arguments=["--seed", str(seed)], pinned=seed == 3))
            gateway.process.send_signal(signal.SIGHUP)
            await gateway.event("config_reloaded", count=seed)
        await load.more(20)
        await gateway.until(lambda page: len(page["active_containers_by_name"]) == page["models"]["a"]["running"] == 2)
        await load.end()
        assert not load.failures


async def test_who_waits_for_a_model_that_goes_is_told_and_who_is_served_is_served(tmp_path: Path) -> None:
    slow = {**FAST, "SIM_TOKENS_PER_S": "30"}
    cold = model("cold", environment={**FAST, "SIM_LOAD_S": "5"})
    models = {"a": model("a", environment=slow, max_in_flight=1), "cold": cold}
    async with running_gateway(tmp_path, config(gpus=2, models=models)) as gateway:
        await gateway.chat("a")
        body = {"model": "a", "prompt": "x", "max_tokens": 100, "stream": True, "ignore_eos": True, "n": 2}
        async with gateway.http.post("/v1/completions", json=body) as stream:
            await stream.content.readline()
            waiting = [asyncio.create_task(gateway.chat(name)) for name in models]
            await gateway.until(lambda page: all(page["models"][name]["queued"] == 1 for name in models))
            await gateway.event("instance_starting", model="cold")
            await reload(gateway, tmp_path, config(models={"c": model("c")}))
            for status, _, answer in await asyncio.gather(*waiting):
                assert (status, answer["error"]["code"]) == (404, "model_not_found")
            assert (await stream.content.read()).rstrip().endswith(b"data: [DONE]")
        await gateway.until(lambda page: not page["active_containers_by_name"])
        assert (await gateway.chat("c"))[0] == 200


async def test_engines_are_not_promised_where_none_can_run(tmp_path: Path) -> None:
    async with running_gateway(tmp_path / "a", config(models={"a": model("a")})) as other:
        elsewhere = {"models": {"a": {"endpoints": [other.url]}}}
        without_docker = {"DOCKER_HOST": f"unix://{tmp_path}/no.sock"}
        async with running_gateway(tmp_path / "b", elsewhere, without_docker) as gateway:
            write(tmp_path / "b", {"models": {**elsewhere["models"], "b": {"repository": "test/b"}}})
            gateway.process.send_signal(signal.SIGHUP)
            (problem,) = (await gateway.event("config_reload_failed"))["problems"]
            assert "Docker" in problem
            assert (await gateway.chat("b"))[0] == 404
            assert (await gateway.chat("a"))[0] == 200


async def test_the_first_engines_of_its_own(tmp_path: Path) -> None:
    async with running_gateway(tmp_path / "a", config(models={"a": model("a")})) as other:
        elsewhere = {"a": {"endpoints": [other.url]}}
        async with running_gateway(tmp_path / "b", config(models=elsewhere)) as gateway:
            await reload(gateway, tmp_path / "b", config(models={**elsewhere, "b": model("b")}))
            assert (await gateway.chat("b"))[0] == 200
