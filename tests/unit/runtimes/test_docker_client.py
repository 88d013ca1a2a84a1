# SPDX-License-Identifier: Apache-2.0
"""What listens where Docker should, and answers otherwise, or not at all: one sentence, and no exception of its own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiodocker
import pytest

from tests.waiting import until
from vllm_gateway.configuration.settings import Docker
from vllm_gateway.fleet.runtimes import RuntimeDown, docker_client
from vllm_gateway.fleet.runtimes.docker import DockerRuntime
from vllm_gateway.fleet.runtimes.docker_client import Calls, DockerClient
from vllm_gateway.fleet.runtimes.sockets import EngineSockets
from vllm_gateway.telemetry import events
from vllm_gateway.telemetry.log import get_logger


def reply(status: str, kind: str, body: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


JSON = "application/json"
ODD = {
    "nothing": b"",
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "an error of its own": reply("500 X", JSON, '{"message": "no space left on device"}'),
    "an error without a message": reply("500 X", JSON, "{}"),
    "an error that is no text": reply("500 X", JSON, '{"message": \xe9}'),
    "a page": reply("502 X", "text/html", "<html>"),
    "a page as if all were well": reply("200 OK", "text/html", "<html>"),
    "no JSON": reply("200 OK", JSON, "{x}"),
    "a list": reply("200 OK", JSON, "[]"),
    "no version": reply("200 OK", JSON, "{}"),
    "a refusal": reply("403 X", JSON, '{"message": "not for you"}'),
    "not there": reply("404 X", JSON, '{"message": "page not found"}'),
    "half an answer": reply("200 OK", JSON, '{"ApiVersion": "1.41"}')[:-3],
}


@asynccontextmanager
async def answering(path: Path, answer: bytes | None) -> AsyncIterator[str]:
    """The same to everybody, whatever is asked; None: nothing, ever."""
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        if answer is None:
            await over.wait()
        else:
            writer.write(answer)
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield f"unix://{path}"
    finally:
        over.set()
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize("odd", ODD)
async def test_a_first_call_that_fails_says_where_and_why(
    odd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with answering(tmp_path / "s", ODD[odd]) as url:
        monkeypatch.setenv("DOCKER_HOST", url)
        runtime = DockerRuntime(Docker(), "owner", sockets=EngineSockets(tmp_path / "engines"))
        with pytest.raises(RuntimeDown) as raised:
            await runtime.open()
        assert url in str(raised.value)
        await runtime.close()


async def test_what_is_not_answered_in_time_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    log = get_logger()
    monkeypatch.setattr(type(log), "emit", lambda _, event, **fields: told.append({"event": event.name, **fields}))
    monkeypatch.setattr(docker_client, "_LATE_S", 0.02)
    monkeypatch.setattr(docker_client, "ASK_S", 0.2)
    calls = Calls(log)
    async with answering(tmp_path / "s", None) as url:
        monkeypatch.setenv("DOCKER_HOST", url)
        client = DockerClient(calls)
        waiting = asyncio.create_task(client.containers.container("f" * 64).show())
        await until(calls.unanswered)
        assert calls.unanswered() == ["Docker has not answered GET version for 0 s"]
        with pytest.raises(TimeoutError):
            await waiting
        assert calls.unanswered() == []
        await client.close()
    assert told == [{"event": events.RUNTIME_SLOW.name, "runtime": "docker", "call": "GET version", "seconds": 0.02}]


async def test_a_crowd_of_calls_is_told_in_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_client, "_LATE_S", 0.0)
    calls = Calls(get_logger())

    async def call(number: int) -> None:
        with calls.under_way(f"GET {number}", 0.0):
            await asyncio.Event().wait()

    tasks = [asyncio.create_task(call(number)) for number in range(8)]
    await until(lambda: len(calls.unanswered()) == 6)
    assert calls.unanswered()[-1] == "nor 3 other calls"
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert calls.unanswered() == []


async def test_an_answer_without_sense_is_an_error_of_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with answering(tmp_path / "s", ODD["an error without a message"]) as url:
        monkeypatch.setenv("DOCKER_HOST", url)
        client = DockerClient(Calls(get_logger()))
        with pytest.raises(aiodocker.DockerError, match="makes no sense"):
            await client.version()
        await client.close()
