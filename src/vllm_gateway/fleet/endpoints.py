# SPDX-License-Identifier: Apache-2.0
"""Engines that somebody else runs: in the routing table while their health check passes, never started or stopped."""

import asyncio
from collections.abc import Callable
from urllib.parse import urlsplit

from vllm_gateway.fleet import events as e
from vllm_gateway.fleet.health import Health
from vllm_gateway.fleet.instance import Instance
from vllm_gateway.fleet.models import ModelSpec
from vllm_gateway.fleet.registry import ContainerRegistry
from vllm_gateway.fleet.runtimes import Running

POLL_S = 1.0


async def follow(
    endpoint: str,
    number: int,
    spec: ModelSpec,
    *,
    registry: ContainerRegistry,
    health: Health,
    hear: Callable[[e.Event], None],
) -> None:
    """Runs until it is cancelled."""
    url = urlsplit(endpoint)
    running = Running("", url.hostname or "", url.port or 80)
    current = ""
    while True:
        healthy = await health.passes(running)
        known = registry.get(current)
        if healthy and known is None:
            current = registry.new_id()
            name = f"{spec.name}@{url.netloc}"
            one = Instance(
                current,
                name,
                spec.name,
                number,
                "",
                spec.max_in_flight,
                spec.weight_of(number),
                external=True,
                launched=True,
            )
            one.running, one.since = running, asyncio.get_running_loop().time()
            registry.add(one)
            hear(e.BecameReady(current))
        elif not healthy and known is not None:
            hear(e.Died(current, "its health check fails"))
        await asyncio.sleep(POLL_S)
