# SPDX-License-Identifier: Apache-2.0
"""The simulated engine's server keeps connections as the real one does: idle ones for some seconds."""

import asyncio

import pytest

from tests.unit.simulator.in_process import engine_in_process
from tests.waiting import LIMIT_S
from vllm_gateway.simulator import http_server

BODY = b'{"prompt": "hello", "max_tokens": 1}'


async def test_only_a_connection_without_a_request_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "KEEP_ALIVE_S", 0.05)
    async with engine_in_process(["demo/m"]) as engine, asyncio.timeout(LIMIT_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", engine.port)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n"
        head += "Content-Type: application/json\r\n\r\n"
        writer.write(head.encode() + BODY[:9])
        await asyncio.sleep(0.2)
        writer.write(BODY[9:])
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        await reader.read()  # to its end: the engine closes what is idle now
        writer.close()
