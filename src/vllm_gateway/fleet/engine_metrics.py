# SPDX-License-Identifier: Apache-2.0
"""Asks the engines for their metrics at a fixed pace, for the strategies that want them."""

import asyncio
from collections.abc import Callable, Collection

from vllm_gateway.fleet.engines import vllm_metrics
from vllm_gateway.fleet.engines.calls import FAILURES, call
from vllm_gateway.fleet.instance import Instance, State
from vllm_gateway.fleet.registry import ContainerRegistry
from vllm_gateway.routing import EngineMetrics

PACE_S = 1.0


async def follow(
    models: Callable[[], Collection[str]],
    registry: ContainerRegistry,
    measured: Callable[[str, EngineMetrics], None],
) -> None:
    """Runs until it is cancelled. An engine that does not answer keeps its last values, which grow old."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    while True:
        ready = [one for one in registry if one.model in models() and one.state is State.READY]
        await asyncio.gather(*(_ask(one, measured) for one in ready))
        due = max(due + PACE_S, loop.time())
        await asyncio.sleep(due - loop.time())


async def _ask(one: Instance, measured: Callable[[str, EngineMetrics], None]) -> None:
    if one.running is None:
        return
    try:
        async with call(one.running.address, "/metrics", limit_s=PACE_S) as reply:
            if reply.status == 200:
                page = await reply.read()
                measured(one.instance_id, vllm_metrics.parse(page, asyncio.get_running_loop().time()))
    except (*FAILURES, ValueError):
        return
