# SPDX-License-Identifier: Apache-2.0
"""Engines that somebody else runs: in the routing table while their health check passes, never started or stopped."""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from urllib.parse import urlsplit

from vllm_gateway.configuration.settings import Settings
from vllm_gateway.fleet import events as e
from vllm_gateway.fleet import health
from vllm_gateway.fleet.instance import Instance
from vllm_gateway.fleet.models import ModelSpec
from vllm_gateway.fleet.registry import ContainerRegistry
from vllm_gateway.fleet.runtimes import Running
from vllm_gateway.fleet.tasks import Tasks
from vllm_gateway.routing import Address, ModelCard

POLL_S = 1.0
MOST_LOOKS_PER_S = 50
"""At all of them together: each costs as much as a few requests."""


class Endpoints:
    def __init__(
        self,
        registry: ContainerRegistry,
        tasks: Tasks,
        hear: Callable[[e.Event], None],
        learned: Callable[[Instance, Mapping[str, ModelCard]], None],
    ) -> None:
        """`learned` is told what an engine lists."""
        self._registry = registry
        self._tasks = tasks
        self._hear = hear
        self._learned = learned
        self._following: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._current: dict[tuple[str, str], str] = {}  # the instance that stands for it
        self._specs: Mapping[str, ModelSpec] = {}
        self._numbers: Mapping[tuple[str, str], int] = {}

    def configure(self, specs: Mapping[str, ModelSpec], settings: Settings) -> None:
        """Follows those that `settings` name, and no others."""
        self._specs = specs
        models = settings.models.items()
        self._numbers = {(name, url): number for name, model in models for number, url in enumerate(model.endpoints, 1)}
        wanted = list(self._numbers)
        for gone in self._following.keys() - set(wanted):
            self._following.pop(gone).cancel()
            self._hear(e.Died(self._current.pop(gone, ""), "no longer in the configuration"))
        for index, place in enumerate(wanted):
            if place not in self._following:
                pace_s = max(POLL_S, len(wanted) / MOST_LOOKS_PER_S) * (1 + index / len(wanted) / 2)  # not all in step
                self._following[place] = self._tasks.repeat(partial(self._look, place), pace_s)

    async def _look(self, place: tuple[str, str]) -> None:
        url = urlsplit(place[1])
        running = Running("", Address(url.hostname or "", url.port or 80))
        ailment = await health.ailment(running.address)
        known = self._registry.get(self._current.get(place, ""))
        if known is not None and ailment is not None and ailment.silent:
            ailment = await health.ailment(running.address)  # once may be chance
        healthy = ailment is None
        if healthy and known is None:
            one = self._registry.add(self._instance(place, url.netloc, running))
            self._current[place] = one.instance_id
            self._hear(e.BecameReady(one.instance_id))
            if listed := await health.models(running.address):
                self._learned(one, listed)
        elif not healthy and known is not None:
            self._hear(e.Died(known.instance_id, "its health check fails"))

    def _instance(self, place: tuple[str, str], address: str, running: Running) -> Instance:
        spec, number = self._specs[place[0]], self._numbers[place]
        return Instance(
            self._registry.new_id(),
            f"{spec.name}@{address}",
            spec.name,
            number,
            "",
            spec.max_in_flight,
            spec.weight_of(number),
            external=True,
            launched=True,
            running=running,
            since=asyncio.get_running_loop().time(),
        )
