# SPDX-License-Identifier: Apache-2.0
"""What an engine wrote can be read while it starts, while it runs and after its end; and by the command."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from tests.engines import engines_of_somebody_else
from tests.gateway import GatewayProcess, running_gateway
from tests.integration.test_gateway import FAST, config, model
from tests.waiting import LIMIT_S, until
from vllm_gateway.fleet.runtimes.output import STARTED_AGAIN

# Writes what is written into its fifo, and ends with it.
ECHO = """
import os, sys
print("the first line", flush=True)
with open(os.environ["FIFO"]) as told:
    for line in told:
        print(line, end="", flush=True)
print("the last line, not ended", end="", flush=True)
sys.exit(3)
"""
FLOOD = """
import time
for n in range(20_000):
    print(n, "x" * 1000, flush=True)
time.sleep(600)
"""
ONE = "vllm_server_a_instance_1"
LOGS = f"/gateway/instances/{ONE}/logs"


def scripted(script: str, **environment: str) -> dict[str, Any]:
    return config(
        process={"command": [sys.executable, "-c", script]}, models={"a": model("a", environment=environment)}
    )


@asynccontextmanager
async def asked_for(gateway: GatewayProcess) -> AsyncIterator[None]:
    """Somebody waits for the model, so that it starts."""
    asked = asyncio.create_task(gateway.chat("a"))
    await gateway.event("instance_starting")
    yield
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)


async def read(gateway: GatewayProcess, path: str = LOGS) -> str:
    async with gateway.http.get(path) as reply:
        assert (reply.status, reply.content_type) == (200, "text/plain")
        return await reply.text()


async def begun(gateway: GatewayProcess, *words: str) -> asyncio.subprocess.Process:
    arguments = ["-m", "vllm_gateway.cli", "logs", *words, "--url", gateway.url]
    return await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )


async def command(gateway: GatewayProcess, *words: str) -> tuple[int, str]:
    process = await begun(gateway, *words)
    async with asyncio.timeout(LIMIT_S):
        said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


async def test_a_start_is_followed_from_its_first_line_to_its_end_and_read_after_it(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    async with running_gateway(tmp_path, scripted(ECHO, FIFO=str(fifo))) as gateway, asked_for(gateway):
        async with gateway.http.get(f"{LOGS}?follow=true") as reply, asyncio.timeout(LIMIT_S):
            assert (reply.status, reply.headers["Transfer-Encoding"]) == (200, "chunked")
            assert await reply.content.readline() == b"the first line\n"
            with await asyncio.to_thread(fifo.open, "w") as told:
                for word in ("loading", "\x1b[1mcompiling\x1b[0m"):
                    print(word, file=told, flush=True)
                    assert (
                        await reply.content.readline()
                        == word.encode().replace(b"\x1b[1m", b"").replace(b"\x1b[0m", b"") + b"\n"
                    )
                assert await read(gateway, f"{LOGS}?tail=1") == "compiling\n"
                followed = asyncio.create_task(command(gateway, "-f", "--tail", "2", "a"))
                await until(lambda: len(gateway.events("request_finished", path="/gateway/logs")) == 2)
                print("capturing", file=told, flush=True)
                assert await reply.content.readline() == b"capturing\n"
            assert await reply.content.read() == b"the last line, not ended\n"
        status, said = await followed
        assert (status, said.splitlines()[-2:]) == (0, ["capturing", "the last line, not ended"])
        whole = "the first line\nloading\ncompiling\ncapturing\nthe last line, not ended\n"
        await gateway.until(lambda page: not page["active_containers_by_name"])
        assert await read(gateway) == whole
        assert await command(gateway, "a") == (0, whole)
        assert await command(gateway, ONE, "--tail", "1") == (0, "the last line, not ended\n")
        async with gateway.http.post("/gateway/models/a/retry"), asked_for(gateway):
            await until(lambda: len(gateway.events("instance_starting")) == 2)
            with await asyncio.to_thread(fifo.open, "w"):
                assert await read(gateway) == f"{whole}{STARTED_AGAIN}\nthe first line\n"


async def test_a_reader_that_is_too_slow_loses_its_connection(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, scripted(FLOOD)) as gateway, asked_for(gateway):
        url = URL(gateway.url)
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(slow, (url.host, url.port))
            await loop.sock_sendall(slow, f"GET {LOGS}?follow=true HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            await gateway.event("request_finished", path=LOGS, outcome="client_stalled", limit_s=2 * LIMIT_S)
            came = b""
            async with asyncio.timeout(LIMIT_S):
                with suppress(ConnectionResetError):
                    while data := await loop.sock_recv(slow, 1 << 20):
                        came = came[-10:] + data
            assert not came.endswith(b"0\r\n\r\n"), "nobody takes that for the end"
        assert len(await read(gateway)) < 1 << 20


async def test_a_reader_that_leaves_is_not_waited_for_and_one_that_stays_does_not_hold_up_the_end(
    tmp_path: Path,
) -> None:
    settings = config(models={"a": model("a")})
    async with running_gateway(tmp_path, settings) as gateway:
        await gateway.chat("a")
        async with gateway.http.get(f"{LOGS}?follow=1&tail=0") as reply:
            reply.close()
        await gateway.event("request_finished", path=LOGS, outcome="client_gone")
        async with gateway.http.get(f"{LOGS}?follow=1&tail=0") as reply, asyncio.timeout(LIMIT_S / 2):
            gateway.process.terminate()
            await reply.content.read()
        await gateway.event("request_finished", path=LOGS, outcome="ok")


async def test_both_instances_of_a_model_side_by_side(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, config()) as gateway:
        await gateway.chat("gemma3-4B")
        page = await gateway.until(lambda page: page["models"]["gemma3-4B"]["running"] == 2)
        names = sorted(page["active_containers_by_name"])
        status, said = await command(gateway, "gemma3-4B", "--tail", "1")
        assert (status, [line.partition(" | ")[0] for line in said.splitlines()]) == (0, names)
        async with gateway.http.get("/gateway/logs") as reply:
            logs = (await reply.json())["logs"]
        assert [(one["instance"], one["model"], one["state"]) for one in logs] == [
            (name, "gemma3-4B", "ready") for name in names
        ]
        assert all(one["lines"] > 3 for one in logs)
        following = await begun(gateway, "--follow", "gemma3-4B", "-n", "1")
        assert following.stdout is not None
        async with asyncio.timeout(LIMIT_S):
            seen = {(await following.stdout.readline()).decode().partition(" | ")[0] for _ in names}
            assert seen == set(names)
            for one in page["active_containers_by_name"].values():
                os.kill(await pid_of(gateway, one["name"]), signal.SIGKILL)
            await following.communicate()
        assert following.returncode == 0


async def pid_of(gateway: GatewayProcess, name: str) -> int:
    """Each of the simulated engine's lines has it."""
    text = await read(gateway, f"/gateway/instances/{name}/logs?tail=1")
    return int(text.partition("pid=")[2].partition(")")[0])


WRONG = {
    f"{LOGS}?tail=-1": (400, "bad_request", "tail"),
    f"{LOGS}?tail=many": (400, "bad_request", "tail"),
    f"{LOGS}?tail={'9' * 30}": (400, "bad_request", "tail"),
    f"{LOGS}?follow=maybe": (400, "bad_request", "follow"),
    LOGS: (404, "not_found", "name"),
    "/gateway/instances/a%2Fb/logs": (404, "not_found", "name"),
    "/gateway/logs?model=nope": (404, "model_not_found", "model"),
}


async def test_what_cannot_be_read(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, config()) as gateway, aiohttp.ClientSession() as http:
        for path, expected in WRONG.items():
            async with http.get(URL(f"{gateway.url}{path}", encoded=True)) as reply:
                error = (await reply.json())["error"]
                assert (reply.status, error["code"], error["param"]) == expected
        async with gateway.http.delete(LOGS) as reply:
            assert reply.status == 405
        assert await command(gateway, "nope") == (
            1,
            "vllm-gateway logs: No model named 'nope'. This gateway serves: gemma3-4B, qwen2.5.\n",
        )
        status, said = await command(gateway, "qwen2.5")
        assert (status, "No engine of qwen2.5 has been started yet" in said) == (1, True)


async def test_engines_of_somebody_else_have_their_logs_elsewhere(tmp_path: Path) -> None:
    async with engines_of_somebody_else("a", 1, FAST) as urls:
        models = {"a": {"endpoints": list(urls)}}
        async with running_gateway(tmp_path, config(models=models)) as gateway:
            page = await gateway.until(lambda page: page["models"]["a"]["running"] == 1)
            (name,) = page["active_containers_by_name"]
            url = URL(f"{gateway.url}/gateway/instances/", encoded=True) / name / "logs"
            async with aiohttp.ClientSession() as http, http.get(url) as reply:
                assert "where it was started" in (await reply.json())["error"]["message"]
