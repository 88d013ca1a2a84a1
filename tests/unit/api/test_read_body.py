# SPDX-License-Identifier: Apache-2.0
"""A body is read whole, up to its limit, whether or not its length is told."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from vllm_gateway.api.buffers import Buffers
from vllm_gateway.api.errors import ApiError
from vllm_gateway.api.guests import Bounds
from vllm_gateway.api.journal import Progress
from vllm_gateway.api.receiving import Receiving

LIMIT = 1 << 18


@pytest.fixture
async def client() -> AsyncIterator[TestClient[web.Request, web.Application]]:
    buffers = Buffers(1 << 30, asyncio.get_running_loop().time)

    async def answer(request: web.Request) -> web.Response:
        try:
            received = Receiving(request, buffers, limit=LIMIT, bounds=Bounds())
            return web.Response(body=bytes(await received.read()))
        except ApiError as error:
            return error.response(Progress("r", request.method, request.path, 0.0))

    app = web.Application()
    app.router.add_post("/", answer)
    async with TestClient(TestServer(app)) as made:
        yield made


async def in_chunks(size: int) -> AsyncIterator[bytes]:
    for start in range(0, size, 1 << 16):
        yield b"x" * min(1 << 16, size - start)


@pytest.mark.parametrize("size", [0, 1, LIMIT])
async def test_what_is_within_the_limit_is_read_whole(
    client: TestClient[web.Request, web.Application], size: int
) -> None:
    for data in (b"x" * size, in_chunks(size)):
        reply = await client.post("/", data=data)
        assert (reply.status, len(await reply.read())) == (200, size)


async def test_what_is_over_the_limit_is_refused(client: TestClient[web.Request, web.Application]) -> None:
    for data in (b"x" * (LIMIT + 1), in_chunks(LIMIT + 1)):
        reply = await client.post("/", data=data)
        assert reply.status == 413
        assert (await reply.json())["error"]["code"] == "body_too_large"
