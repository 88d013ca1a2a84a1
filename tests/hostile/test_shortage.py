# SPDX-License-Identifier: Apache-2.0
"""When the gateway itself may open no more files, that is no engine's failure and no start's."""

import asyncio
import contextlib
import os
import resource
import sys
from collections.abc import AsyncIterator, Iterator

import orjson
import pytest

from tests.integration.front.house import LANES, a_request, house
from tests.integration.relay.wire import OK, answering, instance
from tests.integration.runtimes.test_process_runtime import launch
from vllm_gateway.configuration.settings import Process
from vllm_gateway.fleet import health
from vllm_gateway.fleet.runtimes import RuntimeDown
from vllm_gateway.fleet.runtimes.process import ProcessRuntime
from vllm_gateway.fleet.runtimes.sockets import EngineSockets
from vllm_gateway.relay import Limits
from vllm_gateway.routing import Address

EXACT = pytest.mark.parametrize("lane", LANES)


@contextlib.contextmanager
def no_more_files() -> Iterator[None]:
    """Those that are open stay so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@EXACT
async def test_a_request_waits_for_a_descriptor_and_the_instance_is_not_suspected(lane: str) -> None:
    async with instance(answering(OK)) as engine, house(engine.port) as gateway:
        client = await gateway.connect()
        await client.ask(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        with no_more_files():
            await client.send(a_request(lane=lane))
            told = asyncio.create_task(client.message())
            assert not (await asyncio.wait([told], timeout=0.2))[0]
        assert (await told).status == 200
        assert gateway.fleet.heard == []


@EXACT
@pytest.mark.parametrize("stream", [b"", b',"stream":true'])
async def test_a_request_that_gets_none_is_told_so_and_the_instance_is_not_suspected(lane: str, stream: bytes) -> None:
    limits = Limits(connect_s=0.2)
    async with instance(answering(OK)) as engine, house(engine.port, limits=limits) as gateway:
        client = await gateway.connect()
        await client.ask(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        with no_more_files():
            reply = await client.ask(a_request(b'{"model":"m"%b}' % stream, lane=lane))
        assert (reply.status, reply.header("retry-after")) == (503, [b"1"])
        assert orjson.loads(reply.body)["error"]["code"] == "shortage"
        assert (await gateway.line(1))["outcome"] == "shortage"
        assert (await client.ask(a_request(lane=lane))).status == 200
        assert gateway.fleet.heard == []


async def test_an_engine_that_cannot_be_asked_for_its_health_is_not_found_ill() -> None:
    async with instance(answering(OK)) as engine:
        with no_more_files():
            asked = asyncio.create_task(health.passes(Address("127.0.0.1", engine.port)))
            assert not (await asyncio.wait([asked], timeout=0.2))[0]
        assert await asked


@pytest.fixture
async def runtime(sockets: EngineSockets) -> AsyncIterator[ProcessRuntime]:
    made = ProcessRuntime(Process(command=(sys.executable, "-c", "pass")), None, sockets=sockets)
    await made.open()
    yield made
    await made.close()


async def test_a_start_for_which_there_is_no_descriptor_is_tried_again(runtime: ProcessRuntime) -> None:
    with no_more_files(), pytest.raises(RuntimeDown, match="Too many open files"):
        await runtime.start(launch())
    running = await runtime.start(launch())
    assert (await runtime.wait(running.handle)).code is not None
