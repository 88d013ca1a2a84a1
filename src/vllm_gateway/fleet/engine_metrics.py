# SPDX-License-Identifier: Apache-2.0
"""Asks the engines for their metrics at a fixed pace, for the strategies that want them."""

import asyncio
from collections.abc import Callable, Collection

from vllm_gateway.fleet.engines import vllm_metrics
from vllm_gateway.fleet.engines.calls import CallFailed, call
from vllm_gateway.fleet.instance import Instance, State
from vllm_gateway.fleet.registry import ContainerRegistry
from vllm_gateway.routing import EngineMetrics

PACE_S = 1.0
MOST_BYTES = 4 << 20


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
        outcomes = await asyncio.gather(*(_ask(one, measured) for one in ready), return_exceptions=True)
        for error in outcomes:
            if error is not None:
                raise error  # nobody foresaw it; the others have been asked
        due = max(due + PACE_S, loop.time())
        await asyncio.sleep(due - loop.time())


async def _ask(one: Instance, measured: Callable[[str, EngineMetrics], None]) -> None:
    """A page is read beside the loop: it may be long. One that is none, or an engine that fails, costs nobody else."""
    if one.running is None:
        return
    try:
        answer = await call(one.running.address, "/metrics", limit_s=PACE_S, most_bytes=MOST_BYTES)
        if answer.status == 200:
            now = asyncio.get_running_loop().time()
            measured(one.instance_id, await asyncio.to_thread(vllm_metrics.parse, answer.body, now))
    except (CallFailed, ValueError):
        return
