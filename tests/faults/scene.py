# SPDX-License-Identifier: Apache-2.0
"""One cell of the matrix under way: a model with two instances, requests brought into a phase, a fault, and the end."""

import asyncio
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

from tests.engines import engine_pids, session
from tests.faults.docker_engine import DockerEngine
from tests.faults.engines import Engine
from tests.faults.footprint import Held, held, unsettled
from tests.faults.phases import WAYS, Phase
from tests.faults.requests import KINDS, Request
from tests.gateway import GatewayProcess
from tests.waiting import LIMIT_S

FOOTPRINT_MIB = 1000
GPU_RESERVED_MIB = 1000
"""More than the driver keeps for itself on a GPU of the lab."""
PLACES = 4
"""Requests at once on one instance."""


class Scene:
    """`target` is the instance that a fault of an engine befalls; the other one stays well."""

    def __init__(
        self, gateway: GatewayProcess, model: str, http: aiohttp.ClientSession, docker: DockerEngine | None
    ) -> None:
        self.gateway = gateway
        self.model = model
        self.docker = docker
        self.engines: list[Engine] = []
        self.requests: list[Request] = []
        self.blockers: list[Request] = []
        self.phase: Phase
        self.footprint_mib = FOOTPRINT_MIB
        self.lasts = AsyncExitStack()
        """What a strike keeps open until the end of the scene."""
        self.reference: dict[str, Request] = {}
        self._http = http
        self._before: Held
        self._wanted = 0

    @property
    def target(self) -> Engine:
        return self.engines[0]

    async def begin(self, controls: AsyncExitStack, instances: int, kinds: Sequence[str]) -> None:
        """They are ready, what undisturbed requests are told is known, and so is what the gateway holds."""
        self._wanted = instances
        if not instances:
            self._before = await self._idle()
            return
        self.reference = {kind: Request(self._http, self.model, kind) for kind in (*KINDS, *kinds)}
        await self._ended(list(self.reference.values()))
        page = await self.gateway.until(lambda page: page["models"][self.model]["running"] == instances)
        await self._probe_the_ejected()
        for name in page["active_models_by_id"][self.model]:
            address = page["active_containers_by_name"][name]["address"]
            control = await controls.enter_async_context(session(address))
            self.engines.append(Engine(name, address, self._pid_at(address), control))
        self._before = await self._idle()

    async def bring_into(self, kinds: Sequence[str] = ()) -> None:
        """Requests are in the phase and stay there."""
        phase, way = self.phase, WAYS[self.phase]
        if way.hold is None:
            return
        for engine in self.engines:
            await engine.set(f"hold_after_tokens={way.hold}")
        places = PLACES * len(self.engines)
        if phase is Phase.QUEUED:
            self.blockers = [Request(self._http, self.model, "chat") for _ in range(places)]
            await self._in_flight(places)
        self.send(kinds)
        if phase is Phase.QUEUED:
            await self.gateway.until(lambda page: page["models"][self.model]["queued"] == len(self.requests))
        elif phase is Phase.BEFORE:
            await self._in_flight(places)
        else:
            for request in self.requests:
                await request.until(way.hold)

    def send(self, kinds: Sequence[str] = (), headers: Mapping[str, str] | None = None) -> None:
        """As many as there are places, so that every instance has some."""
        kinds = kinds or WAYS[self.phase].kinds
        count = PLACES * max(len(self.engines), 1)
        self.requests = [Request(self._http, self.model, kinds[n % len(kinds)], headers=headers) for n in range(count)]

    async def more_come(self, headers: Mapping[str, str] | None = None) -> None:
        """It is these that the cell is about. They end while those that came before are still held."""
        self.blockers += self.requests
        self.send(headers=headers)
        await self._ended(self.requests)

    def ask(self, model: str) -> None:
        """Another one than the scene's."""
        self.blockers.append(Request(self._http, model, "chat"))

    async def release(self) -> None:
        """Engines go on; the fault stays."""
        for engine in self.engines:
            held_back = [fault for fault in engine.faults if fault.startswith("hold_")]
            if held_back:
                await engine.lift(*held_back)

    async def ended(self) -> None:
        """Every request has come to an end, whichever; raises TimeoutError if one hangs."""
        await self._ended([*self.requests, *self.blockers])

    async def nothing_left(self) -> None:
        """The gateway holds what it held before, and what runs is what its books say."""
        await self._settled(self._before)

    async def started(self) -> None:
        """The instances run after all, and the books fit what runs."""
        self._wanted = 2
        await self._settled()

    async def gateway_died(self) -> None:
        async with asyncio.timeout(LIMIT_S):
            await self.gateway.process.wait()

    async def gateway_ended(self) -> None:
        """The process is gone, and its engines with it."""
        async with asyncio.timeout(LIMIT_S):
            await self.gateway.process.wait()
            while any(Path(f"/proc/{engine.pid}").exists() for engine in self.engines):
                await asyncio.sleep(0.02)

    async def clean_up(self) -> None:
        """Also after a failure: the next scene finds every engine as it should be."""
        await self.lasts.aclose()
        for request in [*self.requests, *self.blockers]:
            await request.leave()
        for engine in self.engines:
            if engine.faults:
                with suppress(aiohttp.ClientError):
                    await engine.lift(*engine.faults)
            if engine.stopped:
                engine.signal(signal.SIGKILL)

    async def _probe_the_ejected(self) -> None:
        """An earlier scene may have left such; with one request at a time they do not have their share."""
        async with asyncio.timeout(LIMIT_S):
            while any(one["health"] != "healthy" for one in self._instances_in(await self.gateway.status())):
                await self._ended([Request(self._http, self.model, "chat", tokens=1)])

    def _instances_in(self, page: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [one for one in page["active_containers_by_name"].values() if one["model"] == self.model]

    async def _ended(self, requests: list[Request]) -> None:
        async with asyncio.timeout(LIMIT_S):
            await asyncio.gather(*(request.task for request in requests), return_exceptions=True)
        for request in requests:
            if not request.task.cancelled():
                request.task.result()

    async def _in_flight(self, count: int) -> None:
        await self.gateway.until(lambda page: count == sum(one["in_flight"] for one in self._instances_in(page)))

    def _pid_at(self, address: str) -> int:
        if self.docker:
            return self.docker.pid_of(self.docker.engines()[address])
        return engine_pids(self.gateway.process.pid)[address]

    def _running(self) -> set[str]:
        """The addresses of the engines that run."""
        return set(self.docker.engines() if self.docker else engine_pids(self.gateway.process.pid))

    async def _idle(self) -> Held:
        """The middle one of three looks: now and then a short task is among them."""
        return sorted([await self._settled() for _ in range(3)], key=lambda one: one.tasks)[1]

    async def _settled(self, wanted: Held | None = None) -> Held:
        """Waits until the books fit what runs and, where that is known, for what the gateway should hold."""
        now, wrong = None, ["never looked"]
        try:
            async with asyncio.timeout(LIMIT_S):
                while True:
                    page = await self.gateway.status()
                    wrong = unsettled(page, self._running(), self.footprint_mib)
                    if (ready := page["models"][self.model]["running"]) != self._wanted:
                        wrong.append(f"{ready} of {self._wanted} instances run")
                    if not wrong:
                        now = await held(self.gateway, page)
                        if wanted is None or now.no_more_than(wanted):
                            return now
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"{wrong or 'settled'}; held {now}, before {wanted}") from None


@asynccontextmanager
async def a_scene(
    gateway: GatewayProcess,
    model: str,
    *,
    instances: int = 2,
    kinds: Sequence[str] = (),
    docker: DockerEngine | None = None,
) -> AsyncIterator[Scene]:
    """Its clients' connections are closed with it: no two requests share one, so that none hides a leak."""
    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    async with (
        aiohttp.ClientSession(gateway.url, connector=connector) as http,
        AsyncExitStack() as controls,
    ):
        scene = Scene(gateway, model, http, docker)
        await scene.begin(controls, instances, kinds)
        try:
            yield scene
        finally:
            await scene.clean_up()
