# SPDX-License-Identifier: Apache-2.0
"""The thin shell around the supervisor: carries its effects out and tells it what came of them."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from vllm_gateway.allocator.estimate import estimate_mib
from vllm_gateway.allocator.footprints import FootprintStore, footprint_key
from vllm_gateway.allocator.probe import GpuProbe
from vllm_gateway.allocator.types import Gpu, Policy
from vllm_gateway.fleet import events as e
from vllm_gateway.fleet.engines import vllm
from vllm_gateway.fleet.instance import Instance, State
from vllm_gateway.fleet.memory import GpuMemory, Used
from vllm_gateway.fleet.registry import ContainerRegistry
from vllm_gateway.fleet.runtimes import Launch, Running, Runtime, RuntimeDown, StartError
from vllm_gateway.fleet.supervisor import Footprint, ModelSpec, Supervisor
from vllm_gateway.routing import Activity, Traffic
from vllm_gateway.settings import Settings
from vllm_gateway.telemetry import events as log_events
from vllm_gateway.telemetry.events import Event as LogEvent

HEALTH_POLL_S = 0.05
TICK_S = 0.5
GPU_READ_S = 2.0
ENDPOINT_POLL_S = 1.0


class Fleet:
    """Implements `Demand`. `attach` joins it to the request side before `open`."""

    def __init__(
        self,
        settings: Settings,
        runtime: Runtime,
        probe: GpuProbe | None,
        footprints: FootprintStore,
        emit: Callable[..., None],
    ) -> None:
        self._settings = settings
        self._runtime = runtime
        self._memory = GpuMemory(probe, runtime, emit)
        self.footprints = footprints
        self._emit: Callable[..., None] = emit
        self.registry = ContainerRegistry(settings.docker.container_prefix)
        self._traffic: Traffic
        self.supervisor: Supervisor
        self._published = -1
        self._tasks: set[asyncio.Task[None]] = set()
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._used_before: dict[str, Used] = {}
        self._http: aiohttp.ClientSession

    def attach(self, traffic: Traffic, activity: Activity) -> None:
        self._traffic = traffic
        self.supervisor = Supervisor(
            specs=self._specs(),
            registry=self.registry,
            activity=activity,
            footprint_of=self._footprint_of,
            policy=Policy(self._settings.gpus.margin_mib, self._settings.gpus.min_resident_s),
            start_timeout_s=self._settings.start_timeout_s,
            journal=self._journal,
        )

    async def open(self) -> None:
        """Connects, reads the GPUs, adopts what still runs. Raises RuntimeDown, ProbeError."""
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0))
        try:
            await self._runtime.open()
            await self._adopt()
            await self._read_gpus()
        except BaseException:
            await self._http.close()
            raise
        for name, model in self._settings.models.items():
            for number, endpoint in enumerate(model.endpoints, 1):
                self._spawn(self._follow_endpoint(name, number, endpoint))
        self._spawn(self._keep_time())

    async def close(self) -> None:
        """Ends every task; containers stay for the next gateway, child processes end."""
        tasks = [*self._tasks, *self._watches.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._runtime.close()
        await self._http.close()

    # Demand

    def wanted(self, model: str) -> None:
        self._hear(e.Wanted(model))

    def unwanted(self, model: str) -> None:
        self._hear(e.Unwanted(model))

    def drained(self, instance_id: str) -> None:
        self._hear(e.Drained(instance_id))

    def suspect(self, instance_id: str, reason: str) -> None:
        self._hear(e.Suspected(instance_id, reason))

    # hearing and doing

    def _hear(self, event: e.Event) -> None:
        effects = self.supervisor.on(event, self._now())
        if self.registry.version != self._published:
            self._published = self.registry.version
            self._traffic.publish(self.registry.table())
        for effect in effects:
            self._do(effect)

    def _do(self, effect: e.Effect) -> None:
        match effect:
            case e.Refuse(model, refusal):
                self._traffic.refuse(model, refusal)
            case e.KeepFootprint(model, mib):
                self._keep_footprint(model, mib)
            case e.Start(instance_id):
                self._watch(instance_id, self._start(self._instance(instance_id)))
            case e.Stop(instance_id):
                self._spawn(self._stop(self._instance(instance_id)))
            case e.Remove(instance_id):
                self._spawn(self._remove(self._instance(instance_id)))
            case e.CheckHealth(instance_id):
                self._spawn(self._check(self._instance(instance_id)))

    def _instance(self, instance_id: str) -> Instance:
        found = self.registry.get(instance_id)
        assert found is not None, instance_id
        return found

    async def _start(self, one: Instance) -> None:
        self._used_before[one.instance_id] = await self._memory.used()
        try:
            running = await self._runtime.start(self._launch_of(one))
        except (StartError, RuntimeDown) as error:
            self._hear(e.Died(one.instance_id, str(error)))
            return
        self._hear(e.Launched(one.instance_id, running))
        await self._until_death(one, running)

    async def _until_death(self, one: Instance, running: Running) -> None:
        """Polls its health until it is ready, and notices its death at any time."""
        death = asyncio.create_task(self._runtime.wait(running.handle))
        try:
            while not death.done() and not await self._healthy(running):
                await asyncio.wait([death], timeout=HEALTH_POLL_S)
            if not death.done():
                measured = await self._measured(one)
                self._hear(e.BecameReady(one.instance_id, measured))
            ended = await death
        finally:
            death.cancel()
        reason = "out of memory" if ended.out_of_memory else f"the engine ended with exit status {ended.code}"
        self._hear(e.Died(one.instance_id, reason, ended.log_tail, ended.code))

    async def _measured(self, one: Instance) -> int | None:
        return await self._memory.measure(one, self._used_before.get(one.instance_id, {})) if one.discovery else None

    async def _healthy(self, running: Running) -> bool:
        try:
            async with self._http.get(f"http://{running.host}:{running.port}/health") as reply:
                return reply.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def _check(self, one: Instance) -> None:
        """A suspect that does not answer is treated as dead: it is removed, and another one takes its place."""
        assert one.running is not None
        for _ in range(3):
            if await self._healthy(one.running):
                self._hear(e.Cleared(one.instance_id))
                return
            if one.state is not State.READY:
                return
            await asyncio.sleep(HEALTH_POLL_S)
        self._hear(e.Died(one.instance_id, "its health check fails"))

    async def _stop(self, one: Instance) -> None:
        if one.running is not None:
            pids, before = await self._memory.pids(one), await self._memory.used()
            await self._quietly(self._runtime.stop(one.running.handle, self._settings.stop_grace_s))
            await self._memory.back(one, pids, before)
        self._forget(one)

    async def _remove(self, one: Instance) -> None:
        if one.running is None and (watch := self._watches.get(one.instance_id)):
            watch.cancel()  # a start that has not come to an instance yet leaves nothing
        if one.running is not None and not one.external:
            await self._quietly(self._runtime.remove(one.running.handle))
            await self._memory.back(one, frozenset(), {})
        self._forget(one)

    async def _quietly(self, work: Coroutine[Any, Any, None]) -> None:
        """The engine behind the runtime may be away: the instance is found and removed at the next start."""
        try:
            await work
        except RuntimeDown as error:
            self._emit(log_events.RUNTIME_DOWN, runtime=self._settings.runtime, problem=str(error))

    def _forget(self, one: Instance) -> None:
        watch = self._watches.pop(one.instance_id, None)
        if watch and watch is not asyncio.current_task():
            watch.cancel()
        self._used_before.pop(one.instance_id, None)
        self._hear(e.Gone(one.instance_id))

    async def _follow_endpoint(self, model: str, number: int, endpoint: str) -> None:
        """An engine that somebody else runs: in the table while its health check passes."""
        url = urlsplit(endpoint)
        running = Running("", url.hostname or "", url.port or 80)
        current: str | None = None
        while True:
            healthy = await self._healthy(running)
            known = self.registry.get(current) if current else None
            if healthy and known is None:
                spec = self.supervisor.specs[model]
                one = Instance(self.registry.new_id(), f"{model}@{url.netloc}", model, number, "", spec.max_in_flight)
                one.external = one.launched = True
                one.running, one.since = running, self._now()
                current = self.registry.add(one).instance_id
                self._hear(e.BecameReady(current))
            elif not healthy and known is not None and current:
                self._hear(e.Died(current, "its health check fails"))
            await asyncio.sleep(ENDPOINT_POLL_S)

    # adoption

    async def _adopt(self) -> None:
        for found in await self._runtime.find():
            spec = self.supervisor.specs.get(found.model)
            running = found.running
            surplus = spec and len(self.registry.by_model(found.model)) >= spec.instances
            if not spec or running is None or found.spec_hash != spec.spec_hash or surplus:
                await self._runtime.remove(found.handle)
                self._emit(log_events.INSTANCE_REMOVED_STALE, instance=found.name, model=found.model)
                continue
            one = Instance(
                self.registry.new_id(), found.name, found.model, found.number, found.spec_hash, spec.max_in_flight
            )
            one.gpu_ids, one.reserved_mib, one.running = found.gpu_ids, found.footprint_mib, running
            one.launched, one.launched_at, one.since, one.why = True, self._now(), self._now(), "adopted"
            self.registry.add(one)
            self._emit(log_events.INSTANCE_ADOPTED, instance=one.name, model=one.model)
            self._watch(one.instance_id, self._until_death(one, running))

    # GPUs and memory

    async def _keep_time(self) -> None:
        last_read = self._now()
        while True:
            await asyncio.sleep(TICK_S)
            if self._now() - last_read >= GPU_READ_S:
                await self._read_gpus()
                last_read = self._now()
            self._hear(e.Tick())

    async def _read_gpus(self) -> None:
        self._hear(e.GpusRead(await self._memory.gpus(self.registry, self.supervisor.gpus)))

    def _footprint_of(self, name: str, gpus: Sequence[Gpu]) -> Footprint:
        model = self._settings.models[name]
        if model.footprint_mib:
            return Footprint(model.footprint_mib, known=True)
        if known := self.footprints.get(self._footprint_key(name, gpus)):
            return Footprint(known, known=True)
        smallest = min((gpu.total_mib for gpu in gpus), default=0)
        cache = self._settings.docker.cache_dir
        guess = estimate_mib(
            str(model.repository), Path(cache) if cache else None, model.tensor_parallel_size, smallest
        )
        return Footprint(guess, known=False)

    def _footprint_key(self, name: str, gpus: Sequence[Gpu]) -> str:
        model = self._settings.models[name]
        gpu_name = gpus[0].name if gpus else "no GPU"
        image = vllm.image_of(model, self._settings)
        return footprint_key(str(model.repository), image, vllm.arguments(name, model, share=None), gpu_name)

    def _keep_footprint(self, model: str, mib: int) -> None:
        key = self._footprint_key(model, self.supervisor.gpus)
        self._emit(log_events.FOOTPRINT_MEASURED, model=model, footprint_mib=mib, key=key)
        self.footprints.put(key, mib)
        self._spawn(asyncio.to_thread(self.footprints.save))

    # helpers

    def _launch_of(self, one: Instance) -> Launch:
        model = self._settings.models[one.model]
        totals = [gpu.total_mib for gpu in self.supervisor.gpus if gpu.gpu_id in one.gpu_ids]
        share = one.reserved_mib / min(totals) if totals else None
        return Launch(
            name=one.name,
            model=one.model,
            number=one.number,
            image=vllm.image_of(model, self._settings),
            arguments=vllm.arguments(one.model, model, share=share),
            environment=vllm.environment(model, self._settings),
            gpu_ids=one.gpu_ids,
            footprint_mib=one.reserved_mib,
            spec_hash=one.spec_hash,
        )

    def _specs(self) -> dict[str, ModelSpec]:
        settings = self._settings
        return {
            name: ModelSpec(
                name,
                len(model.endpoints) or model.instances,
                vllm.spec_hash(name, model, settings),
                model.tensor_parallel_size,
                model.max_in_flight or settings.max_in_flight,
                settings.idle_timeout_s if model.idle_timeout_s is None else model.idle_timeout_s,
                model.pinned,
                uses_gpu_memory=not model.endpoints,
            )
            for name, model in settings.models.items()
        }

    def _journal(self, event: LogEvent, **fields: object) -> None:
        self._emit(event, **fields)

    def _watch(self, instance_id: str, work: Coroutine[Any, Any, None]) -> None:
        task = self._watches[instance_id] = asyncio.create_task(work)
        task.add_done_callback(self._ended)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._emit(log_events.UNHANDLED_ERROR, error=repr(error), where=str(task.get_coro()))

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
