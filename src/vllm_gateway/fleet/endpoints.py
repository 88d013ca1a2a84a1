# SPDX-License-Identifier: Apache-2.0
"""Engines that somebody else runs: routed to while they are well and serve the model, never started or stopped."""

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
from vllm_gateway.telemetry import events
from vllm_gateway.telemetry.cut import cut

POLL_S = 1.0
_SHOWN = 5  # of the names that one lists
MOST_LOOKS_PER_S = 50
"""At all of them together: each costs as much as a few requests."""


class Endpoints:
    def __init__(
        self,
        registry: ContainerRegistry,
        tasks: Tasks,
        hear: Callable[[e.Event], None],
        learned: Callable[[Instance, Mapping[str, ModelCard]], None],
        *,
        emit: Callable[..., None],
        mask: Callable[[str], str],
    ) -> None:
        """`learned` is told what an engine lists."""
        self._emit: Callable[..., None] = emit
        self._mask = mask
        self._registry = registry
        self._tasks = tasks
        self._hear = hear
        self._learned = learned
        self._following: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._current: dict[tuple[str, str], str] = {}  # the instance that stands for it
        self._unfit: dict[tuple[str, str], str] = {}  # why it gets no requests
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
            self._unfit.pop(gone, None)
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
        if ailment is None and known is None:
            await self._take_in(place, url.netloc, running)
        elif ailment is not None and known is None:
            self._find_unfit(place, ailment.why)
        elif ailment is not None and known is not None:
            self._hear(e.Died(known.instance_id, self._mask(ailment.why)))
            self._find_unfit(place, ailment.why)

    async def _take_in(self, place: tuple[str, str], address: str, running: Running) -> None:
        """If it serves the model, or does not say what it serves."""
        listed, model = await health.listed(running.address), place[0]
        if isinstance(listed, health.Ailment):
            self._find_unfit(place, listed.why)
        elif listed is not None and model not in listed:
            self._find_unfit(place, f"it serves {_few(listed) or 'no model'}, and not {model}")
        else:
            self._unfit.pop(place, None)
            one = self._registry.add(self._instance(place, address, running))
            self._current[place] = one.instance_id
            self._hear(e.BecameReady(one.instance_id))
            if listed:
                self._learned(one, listed)

    def _find_unfit(self, place: tuple[str, str], why: str) -> None:
        """Told when it changes."""
        why = self._mask(why)
        if self._unfit.get(place) != why:
            self._unfit[place] = why
            self._emit(events.ENDPOINT_UNFIT, model=place[0], endpoint=place[1], reason=why)

    def why_fewer(self, model: str) -> str | None:
        """Why some of them get no requests."""
        return "; ".join(f"{url}: {why}" for (name, url), why in self._unfit.items() if name == model) or None

    def why_none(self, model: str) -> str | None:
        """In words for clients, who need not know where they are; None: one serves, or was not looked at yet."""
        places = [place for place in self._numbers if place[0] == model]
        if not places or any(place not in self._unfit for place in places):
            return None
        reasons = "; ".join(dict.fromkeys(self._unfit[place].partition(": ")[0] for place in places))
        whose = "Its endpoint" if len(places) == 1 else f"None of its {len(places)} endpoints"
        return f"{whose} {'cannot' if len(places) == 1 else 'can'} be used: {reasons}"

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


def _few(listed: Mapping[str, ModelCard]) -> str:
    """Some of the names, as they may be shown."""
    names = sorted(listed)
    return ", ".join(map(cut, names[:_SHOWN])) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
