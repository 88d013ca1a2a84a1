# SPDX-License-Identifier: Apache-2.0
"""A simulated engine inside the test's own process: the real server, engine and routes, without loading."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp

from vllm_gateway.simulator.application import Application, Context
from vllm_gateway.simulator.arguments import parse_arguments
from vllm_gateway.simulator.engine import Capacity, Engine, Speed
from vllm_gateway.simulator.faults import Faults
from vllm_gateway.simulator.http_server import HttpServer
from vllm_gateway.simulator.routes import routes
from vllm_gateway.simulator.settings import SimulationSettings


@dataclass
class InProcessEngine:
    client: aiohttp.ClientSession
    context: Context
    port: int

    @property
    def engine(self) -> Engine:
        return self.context.engine

    async def metric(self, name: str) -> float:
        async with self.client.get("/metrics") as reply:
            lines = (await reply.text()).splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"vllm:{name}"))


@asynccontextmanager
async def engine_in_process(
    argv: Sequence[str], *, tokens_per_s: float = 2000.0, kv_tokens: int = 65536
) -> AsyncIterator[InProcessEngine]:
    arguments = parse_arguments(argv)
    settings = SimulationSettings(name="test", tokens_per_s=tokens_per_s, developer_mode=True, wake_s=0.0)
    speed = Speed(tokens_per_s, settings.batch_slowdown, settings.prefill_tokens_per_s, settings.ttft_s)
    capacity = Capacity(arguments.max_num_seqs, kv_tokens, arguments.block_size, arguments.enable_prefix_caching)
    context = Context(arguments, settings, Engine(speed, capacity), Faults())
    server = HttpServer("127.0.0.1", 0, Application(context, routes(context)).handle)
    await server.listen()
    steps = asyncio.create_task(context.engine.run())
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as client:
            yield InProcessEngine(client, context, server.port)
    finally:
        steps.cancel()
        server.close()
