# SPDX-License-Identifier: Apache-2.0
"""A gateway that is told to end, whenever that is: promptly, with status 0, and with a last word to every client."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.engines import engines_of_somebody_else
from tests.gateway import running_gateway
from tests.integration.test_gateway import FAST, config, model
from tests.integration.test_take_over import ended, folder_of, taking_over
from tests.waiting import LIMIT_S, until_refused

SLOW = {"SIM_LOAD_S": "0.1", "SIM_TOKENS_PER_S": "20"}
LONG = {"model": "a", "prompt": "x", "max_tokens": 1000, "stream": True, "ignore_eos": True}


def last_event(stream: bytes) -> dict[str, Any]:
    last = stream.strip().rsplit(b"\n\n", 1)[-1]
    event: dict[str, Any] = json.loads(last.removeprefix(b"data: "))
    return event


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("more", [{}, {"n": 2}], ids=["could be continued", "could not"])
async def test_told_twice_it_ends_now(number: signal.Signals, more: dict[str, int], tmp_path: Path) -> None:
    settings = config(models={"a": model("a", environment=SLOW)}, server={"drain_timeout_s": 600})
    async with (
        running_gateway(tmp_path, settings) as gateway,
        gateway.http.post("/v1/completions", json={**LONG, **more}) as stream,
    ):
        await stream.content.readline()
        gateway.process.send_signal(number)
        await until_refused(gateway.url)
        gateway.process.send_signal(number)
        assert last_event(await stream.content.read())["error"]["code"] == "stopping"
        await ended(gateway)


async def test_told_while_it_asks_to_take_over(tmp_path: Path) -> None:
    control = tmp_path / "control.sock"
    file = tmp_path / "gateway.yaml"
    server = {"control_socket": str(control)}
    file.write_text(yaml.safe_dump({"runtime": "process", "server": server, "models": {"a": {"repository": "x/a"}}}))
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(control))
        silent.listen()
        silent.setblocking(False)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "vllm_gateway.cli", "serve", "--config", str(file), "--port", "0", "--take-over"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(LIMIT_S):
                connection, _ = await asyncio.get_running_loop().sock_accept(silent)
                process.terminate()
                _, said = await process.communicate()
                connection.close()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert (process.returncode, said) == (0, b"")


async def test_told_while_another_takes_over(tmp_path: Path) -> None:
    async with engines_of_somebody_else("a", 2, FAST) as addresses:
        control = str(tmp_path / "control.sock")
        server = {"control_socket": control}
        settings = {"runtime": "process", "server": server, "models": {"a": {"endpoints": addresses}}}
        async with running_gateway(folder_of(tmp_path, "0"), settings) as gateway:
            with socket.socket(socket.AF_UNIX) as successor:
                successor.connect(control)
                successor.sendall(b'"take over"\n')
                _, numbers, _, _ = await asyncio.to_thread(socket.recv_fds, successor, 4096, 4)
                handed = [socket.socket(fileno=number) for number in numbers]
                gateway.process.terminate()
                await ended(gateway)
                for one in handed:
                    one.close()


async def test_what_outlives_the_drain_of_a_gateway_that_was_taken_over_is_told(tmp_path: Path) -> None:
    async with engines_of_somebody_else("a", 2, SLOW) as addresses:
        settings = {"runtime": "process", "models": {"a": {"endpoints": addresses}}, "server": {"drain_timeout_s": 0.5}}
        async with running_gateway(folder_of(tmp_path, "0"), settings) as first:
            await first.until(lambda page: page["models"]["a"]["running"] == 2)
            async with first.http.post("/v1/completions", json=LONG) as stream:
                await stream.content.readline()
                async with running_gateway(folder_of(tmp_path, "1"), settings, arguments=taking_over(first)):
                    assert last_event(await stream.content.read())["error"]["code"] == "stopping"
                    await ended(first)
