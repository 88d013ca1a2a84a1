# SPDX-License-Identifier: Apache-2.0
"""A new gateway takes over from a running one, by its control socket."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from yarl import URL

from tests.engines import engines_of_somebody_else
from tests.gateway import GatewayProcess, running_gateway
from tests.integration.test_gateway import FAST, config, model
from tests.load import Load
from tests.waiting import LIMIT_S, until_refused


def folder_of(path: Path, name: str) -> Path:
    folder = path / name
    folder.mkdir()
    return folder


def taking_over(gateway: GatewayProcess) -> list[str]:
    return ["--port", str(URL(gateway.url).port), "--take-over"]


async def ended(gateway: GatewayProcess) -> None:
    async with asyncio.timeout(LIMIT_S):
        assert await gateway.process.wait() == 0


async def test_restarts_under_load_lose_no_request(tmp_path: Path) -> None:
    async with engines_of_somebody_else("a", 2, FAST) as addresses:
        settings = {"runtime": "process", "models": {"a": {"endpoints": addresses}}}
        async with running_gateway(folder_of(tmp_path, "0"), settings) as first:
            await first.until(lambda page: page["models"]["a"]["running"] == 2)
            load = Load(first.url)
            await load.more(20)
            async with running_gateway(folder_of(tmp_path, "1"), settings, arguments=taking_over(first)) as second:
                assert second.url == first.url
                await first.event("gateway_handed_over")
                await ended(first)
                await load.more(20)
                third_folder = folder_of(tmp_path, "2")
                async with running_gateway(third_folder, settings, arguments=taking_over(second)) as third:
                    await ended(second)
                    await load.more(20)
                    await load.end()
                    assert not load.failures
                    assert (await third.chat("a"))[0] == 200


async def test_a_stream_outlives_the_hand_over(tmp_path: Path) -> None:
    async with engines_of_somebody_else("a", 2, FAST) as addresses:
        settings = {"runtime": "process", "models": {"a": {"endpoints": addresses}}}
        async with running_gateway(folder_of(tmp_path, "0"), settings) as first:
            await first.until(lambda page: page["models"]["a"]["running"] == 2)
            body = {"model": "a", "prompt": "x", "max_tokens": 1000, "stream": True, "ignore_eos": True}
            async with first.http.post("/v1/completions", json=body) as stream:
                await stream.content.readline()
                async with running_gateway(folder_of(tmp_path, "1"), settings, arguments=taking_over(first)):
                    await first.event("gateway_handed_over")
                    text = await stream.content.read()
                    assert text.rstrip().endswith(b"data: [DONE]")
                    await ended(first)


async def test_a_stream_that_outlasts_the_drain_timeout_is_told_that_this_is_the_end(tmp_path: Path) -> None:
    """What the docs say of restarts: nothing but that is lost."""
    async with engines_of_somebody_else("a", 1, {**FAST, "SIM_TOKENS_PER_S": "20"}) as addresses:
        models = {"a": {"endpoints": addresses}}
        settings = {"runtime": "process", "models": models, "server": {"drain_timeout_s": 0.5}}
        async with running_gateway(folder_of(tmp_path, "0"), settings) as first:
            await first.until(lambda page: page["models"]["a"]["running"] == 1)
            body = {"model": "a", "prompt": "x", "max_tokens": 1000, "stream": True, "ignore_eos": True}
            async with first.http.post("/v1/completions", json=body) as stream:
                await stream.content.readline()
                async with running_gateway(folder_of(tmp_path, "1"), settings, arguments=taking_over(first)) as second:
                    *_, last, end = (await stream.content.read()).split(b"\n\n")
                    assert (json.loads(last.removeprefix(b"data: "))["error"]["code"], end) == ("stopping", b"")
                    await ended(first)
                    assert (await second.chat("a"))[0] == 200


async def test_child_processes_cannot_be_handed_over(tmp_path: Path) -> None:
    settings = config(models={"a": model("a")})
    async with running_gateway(folder_of(tmp_path, "0"), settings) as first:
        await first.chat("a")
        file = tmp_path / "0" / "gateway.yaml"
        command = [sys.executable, "-m", "vllm_gateway.cli", "serve", "--config", str(file), *taking_over(first)]
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        assert done.returncode == 1
        assert "child processes" in done.stderr
        assert (await first.chat("a"))[0] == 200
        assert not first.events("gateway_handed_over")


async def test_a_successor_that_dies_leaves_the_running_one_in_charge(tmp_path: Path) -> None:
    async with engines_of_somebody_else("a", 2, FAST) as addresses:
        control = str(tmp_path / "control.sock")
        server = {"control_socket": control}
        settings = {"runtime": "process", "server": server, "models": {"a": {"endpoints": addresses}}}
        async with running_gateway(folder_of(tmp_path, "0"), settings) as first:
            await first.until(lambda page: page["models"]["a"]["running"] == 2)
            with socket.socket(socket.AF_UNIX) as successor:
                successor.connect(control)
                successor.sendall(b'"take over"\n')
                data, numbers, _, _ = await asyncio.to_thread(socket.recv_fds, successor, 4096, 4)
                assert b'"refused": null' in data
                for number in numbers:
                    os.close(number)
            for _ in range(4):
                assert (await first.chat("a"))[0] == 200
            assert not first.events("gateway_handed_over")


SLOW = {**FAST, "SIM_TOKENS_PER_S": "20"}
LONG = {"model": "a", "prompt": "x", "max_tokens": 4000, "stream": True, "ignore_eos": True}


async def test_a_successor_that_is_killed_leaves_the_old_one_serving_again(tmp_path: Path) -> None:
    async with engines_of_somebody_else("a", 2, SLOW) as addresses:
        settings = {"runtime": "process", "models": {"a": {"endpoints": addresses}}}
        async with running_gateway(folder_of(tmp_path, "0"), settings) as first:
            await first.until(lambda page: page["models"]["a"]["running"] == 2)
            async with first.http.post("/v1/completions", json=LONG) as stream:
                await stream.content.readline()
                arguments = taking_over(first)
                async with running_gateway(
                    folder_of(tmp_path, "1"), settings, arguments=arguments, may_be_killed=True
                ) as second:
                    await first.event("gateway_handed_over")
                    assert (await second.chat("a"))[0] == 200
                    second.process.kill()
                    await second.process.wait()
                await first.event("gateway_goes_on")
                assert (await first.chat("a"))[0] == 200
                async with running_gateway(folder_of(tmp_path, "2"), settings, arguments=taking_over(first)) as third:
                    await first.event("gateway_handed_over", count=2)
                    assert (await third.chat("a"))[0] == 200
                    stream.close()
                    await ended(first)
                    assert (await third.chat("a"))[0] == 200


async def test_a_successor_that_is_stopped_leaves_an_address_that_refuses(tmp_path: Path) -> None:
    async with engines_of_somebody_else("a", 1, SLOW) as addresses:
        settings = {"runtime": "process", "models": {"a": {"endpoints": addresses}}}
        async with running_gateway(folder_of(tmp_path, "0"), settings) as first:
            await first.until(lambda page: page["models"]["a"]["running"] == 1)
            async with first.http.post("/v1/completions", json=LONG) as stream:
                await stream.content.readline()
                async with running_gateway(folder_of(tmp_path, "1"), settings, arguments=taking_over(first)) as second:
                    await first.event("gateway_handed_over")
                    second.process.terminate()
                    await ended(second)
                await until_refused(first.url)
                assert not first.events("gateway_goes_on")
                assert await stream.content.readline()
                stream.close()
                await ended(first)


async def test_who_waits_at_the_old_one_is_told_what_the_new_one_says(tmp_path: Path) -> None:
    control = str(tmp_path / "control.sock")
    models = {"a": {"endpoints": ["http://127.0.0.1:9"]}, "b": {"endpoints": ["http://127.0.0.1:9"]}}
    settings = {"runtime": "process", "server": {"control_socket": control}, "models": models}
    async with running_gateway(tmp_path, settings) as old:
        waiting = {name: asyncio.create_task(old.chat(name)) for name in models}
        await old.until(lambda page: all(page["models"][name]["queued"] == 1 for name in models))
        with socket.socket(socket.AF_UNIX) as new:
            new.connect(control)
            new.sendall(b'"take over"\n')
            _, numbers, _, _ = await asyncio.to_thread(socket.recv_fds, new, 4096, 4)
            for number in numbers:
                os.close(number)
            new.sendall(b'"ready"\n')
            await old.event("gateway_handed_over")
            said = {"model": "a", "code": "model_start_failed", "message": "No luck.", "retry_after_s": 7}
            new.sendall(json.dumps(said).encode() + b"\n")
            status, headers, answer = await waiting["a"]
            assert (status, headers["Retry-After"]) == (503, "7")
            assert (answer["error"]["code"], answer["error"]["message"]) == ("model_start_failed", "No luck.")
            assert not waiting["b"].done()
            waiting["b"].cancel()
            await ended(old)


async def test_who_waits_at_the_old_one_for_a_model_that_the_new_one_has_not_is_told(tmp_path: Path) -> None:
    models = {name: {"endpoints": ["http://127.0.0.1:9"]} for name in ("a", "b")}
    settings = {"runtime": "process", "models": models}
    async with running_gateway(folder_of(tmp_path, "0"), settings) as first:
        waiting = {name: asyncio.create_task(first.chat(name)) for name in models}
        await first.until(lambda page: all(page["models"][name]["queued"] == 1 for name in models))
        without = {**settings, "models": {"a": models["a"]}}
        async with running_gateway(folder_of(tmp_path, "1"), without, arguments=taking_over(first)):
            status, _, answer = await waiting["b"]
            assert (status, answer["error"]["code"]) == (404, "model_not_found")
            assert not waiting["a"].done()
            waiting["a"].cancel()
            await ended(first)


async def test_where_nobody_runs_taking_over_is_a_plain_start(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, config(), arguments=["--take-over"]) as gateway:
        assert (await gateway.chat("qwen2.5"))[0] == 200
