# SPDX-License-Identifier: Apache-2.0
"""The shell around the supervisor: carries its effects out and tells it what came of them."""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Sequence
from functools import partial

from vllm_gateway.allocator.footprints import FootprintStore
from vllm_gateway.allocator.probe import GpuProbe, ProbeError
from vllm_gateway.configuration.settings import Settings
from vllm_gateway.files.aside import aside
from vllm_gateway.fleet import engine_metrics
from vllm_gateway.fleet import events as e
from vllm_gateway.fleet.adoption import adopt, follow, gone, remove_strangers
from vllm_gateway.fleet.cards import Cards
from vllm_gateway.fleet.catalogue import Catalogue
from vllm_gateway.fleet.endpoints import Endpoints
from vllm_gateway.fleet.engine_keys import EngineKeys
from vllm_gateway.fleet.instance import Instance, State
from vllm_gateway.fleet.lives import Lives
from vllm_gateway.fleet.memory import GpuMemory
from vllm_gateway.fleet.models import ModelSpec
from vllm_gateway.fleet.pulls import Pull, Pulls
from vllm_gateway.fleet.registry import ContainerRegistry
from vllm_gateway.fleet.runtimes import Launch, Runtime, RuntimeDown
from vllm_gateway.fleet.supervisor import Supervisor
from vllm_gateway.fleet.tasks import Tasks
from vllm_gateway.fleet.watch import Watch
from vllm_gateway.routing import Activity, Traffic
from vllm_gateway.telemetry import events as log_events
from vllm_gateway.telemetry.secrets import mask_urls

TICK_S = 0.5
GPU_READ_S = 2.0
STRANGERS_S = 30.0  # how often containers of no instance are looked for
METRICS_AGAIN_S = 1.0
REST_S = 60.0  # for starts and stops under way when another gateway takes over


class Fleet:
    """Implements `Demand`. `attach` joins it to the request side before `open`."""

    def __init__(
        self,
        settings: Settings,
        runtime: Runtime,
        probe: GpuProbe | None,
        footprints: FootprintStore,
        emit: Callable[..., None],
        *,
        keys: EngineKeys,
        mask: Callable[[str], str] = mask_urls,
    ) -> None:
        """`mask` takes the secrets out of what runtimes and engines say."""
        self._runtime = runtime
        self._emit: Callable[..., None] = emit
        self._catalogue = Catalogue(settings, footprints, keys)
        self.footprints = footprints
        self.registry = ContainerRegistry(settings.docker.container_prefix)
        self.supervisor: Supervisor
        self._traffic: Traffic
        self._measured: Collection[str] = ()
        self._published = -1
        self._following: asyncio.Task[None] | None = None
        self._has_runtime = False
        self._tasks = Tasks(emit)
        self._memory = GpuMemory(probe, runtime, self._tasks, emit)
        self.cards = Cards(lambda: self._catalogue.settings)
        self._endpoints = Endpoints(self.registry, self._tasks, self._hear, self.cards.learn, emit=emit, mask=mask)
        self._pulls = Pulls(runtime, self._tasks, self._hear, mask)
        self._lives = Lives(
            runtime=runtime,
            memory=self._memory,
            tasks=self._tasks,
            hear=self._hear,
            learned=self.cards.learn,
            mask=mask,
        )

        self._watch: Watch
        self._mask = mask

    def attach(self, traffic: Traffic, activity: Activity, measured: Collection[str] = ()) -> None:
        """`measured`: the models whose engines are asked for their metrics."""
        self._traffic = traffic
        self._measured = measured
        settings = self._catalogue.settings
        self._watch = Watch(self.registry, activity, self._tasks, self._hear, settings=settings.health, mask=self._mask)
        self.supervisor = Supervisor(
            specs=self._catalogue.specs(),
            registry=self.registry,
            activity=activity,
            footprint_of=self._catalogue.footprint_of,
            policy=self._catalogue.policy(),
            start_timeout_s=settings.start_timeout_s,
            sick_limit_s=settings.health.replace_after_s,
            journal=self._emit,
        )

    async def open(self, *, in_use: bool = False) -> None:
        """Connects, reads the GPUs, adopts what still runs. Raises ProbeError, and RuntimeDown if it is needed.

        `in_use`: by another gateway, which hands over.
        """
        specs = self._catalogue.specs()
        try:
            await self._open_runtime(needed=any(spec.uses_gpu_memory for spec in specs.values()))
            adopted: list[Instance] = []
            if self._has_runtime:
                adopted = await adopt(self._runtime, self.registry, specs, self._now(), self._emit, in_use=in_use)
                self._hear(e.Inherited([gone(name) for name in {one.model for one in adopted} - specs.keys()]))
            await self._read_gpus_of(adopted)
            for one in adopted:
                assert one.running is not None
                one.discovery = one.model in specs and self._is_unmeasured(one, specs[one.model])
                self._lives.watch(one, one.running)
        except BaseException:
            await self._tasks.end()
            await self._runtime.close()
            raise
        self._endpoints.configure(specs, self._catalogue.settings)
        measures = partial(engine_metrics.follow, lambda: self._measured, self.registry, self._traffic.measured)
        self._tasks.repeat(measures, METRICS_AGAIN_S)
        self._watch.open()
        self._tasks.repeat(self._tick, TICK_S)
        self._tasks.repeat(self._look_at_gpus, GPU_READ_S)
        self._tasks.repeat(self._remove_strangers, TICK_S)

    async def _read_gpus_of(self, adopted: Sequence[Instance]) -> None:
        """A driver that fails keeps nobody from being served by what runs already. Raises ProbeError: nothing does."""
        try:
            await self._read_gpus()
        except ProbeError:
            if not adopted:
                raise
            self._memory.assume(adopted)
            await self._read_gpus()

    def _is_unmeasured(self, one: Instance, spec: ModelSpec) -> bool:
        """Whether it was started to be measured, by a gateway that ended before that."""
        known = self._catalogue.footprint_of(one.model, self.supervisor.gpus).known
        return spec.uses_gpu_memory and one.spec_hash == spec.spec_hash and not known

    async def _open_runtime(self, *, needed: bool) -> None:
        """Raises RuntimeDown if it is `needed` and is not there."""
        try:
            await self._runtime.open()
            self._has_runtime = True
        except RuntimeDown:
            if needed:
                raise

    async def prepare(self, probe: GpuProbe) -> None:
        """For the first model whose engines are to run here. Raises ProbeError or RuntimeDown, and changes nothing."""
        if not self._has_runtime:
            await self._open_runtime(needed=True)
            await remove_strangers(self._runtime, self.registry, self._emit)
        self._memory.probe = probe
        try:
            await self._read_gpus()
        except ProbeError:
            self._memory.probe = None
            raise

    async def hand_over(self) -> None:
        """Another gateway decides from now on; this one sees what comes of it, for the requests that it still has.

        Returns when nothing is being started or stopped, but for what cannot be stopped. Raises TimeoutError, and then
        decides again.
        """
        self._hear(e.HandOver(active=True))
        self._pulls.end()
        try:
            async with asyncio.timeout(REST_S):
                await self._lives.hand_over()
        except BaseException:
            self._lives.take_back()
            self._hear(e.HandOver(active=False))
            raise
        self._following = self._tasks.repeat(self._follow_successor, TICK_S)

    def take_back(self) -> None:
        if self._following is not None:
            self._following.cancel()
            self._following = None
            self._lives.take_back()
            self._hear(e.HandOver(active=False))

    async def _follow_successor(self) -> None:
        with contextlib.suppress(RuntimeDown):
            for one in await follow(self._runtime, self.registry, self._catalogue.specs(), self._now()):
                assert one.running is not None
                self._lives.watch(one, one.running)
        for one in [one for one in self.registry if one.state is State.SLEEPING]:
            await self._lives.look_for_the_woken(one)

    async def close(self, *, stop: bool = False) -> None:
        """Ends every task. Containers stay for the next gateway, unless they are to `stop`; child processes end."""
        await self._tasks.end()
        if stop:
            ours = [one.running.handle for one in self.registry if one.running and not one.external]
            grace_s = self._catalogue.settings.stop_grace_s
            await asyncio.gather(*(self._runtime.stop(handle, grace_s) for handle in ours), return_exceptions=True)
        await self._runtime.close()

    def check(self, settings: Settings) -> None:
        """Fails where `reconfigure` would, and changes nothing."""
        self._catalogue.specs(settings)

    def reconfigure(self, settings: Settings, measured: Collection[str]) -> None:
        """What runs with other settings is replaced, one instance after another."""
        self._catalogue.settings = settings
        self._measured = measured
        self._runtime.reconfigure(settings)
        specs, policy = self._catalogue.specs(), self._catalogue.policy()
        self._watch.configure(settings.health)
        self._hear(e.Reconfigured(specs, policy, settings.start_timeout_s, settings.health.replace_after_s))
        self._endpoints.configure(specs, settings)

    # Demand

    def wanted(self, model: str) -> None:
        self._hear(e.Wanted(model))

    def unwanted(self, model: str) -> None:
        self._hear(e.Unwanted(model))

    def start_share(self, model: str) -> float | None:
        return self.supervisor.start_share(model, self._now())

    def expected_start_s(self, model: str) -> float:
        return self.supervisor.expected_start_s(model, self._now())

    def why_none(self, model: str) -> str | None:
        return self._endpoints.why_none(model)

    def drained(self, instance_id: str) -> None:
        self._hear(e.Drained(instance_id))

    def suspect(self, instance_id: str, reason: str) -> None:
        self._hear(e.Suspected(instance_id, reason))

    def retry(self, model: str) -> None:
        """Now, whatever failed before."""
        self._hear(e.Retry(model))

    # hearing and doing

    def _hear(self, event: e.Event) -> None:
        """A bug costs one decision or one effect: whatever else was decided is done, and the next event is heard."""
        effects: Sequence[e.Effect] = ()
        with self._tasks.contain(f"hearing {type(event).__name__}"):
            effects = self.supervisor.on(event, self._now(), runtime_away=self._runtime.problem is not None)
        with self._tasks.contain("publishing the routing table"):
            if self.registry.version != self._published:
                self._published = self.registry.version
                self._traffic.publish(self.registry.table())
        for effect in effects:
            with self._tasks.contain(f"doing {type(effect).__name__}"):
                self._do(effect)

    def _do(self, effect: e.Effect) -> None:
        match effect:
            case e.Refuse(model, refusal):
                self._traffic.refuse(model, refusal)
            case e.KeepFootprint(model, mib):
                self._emit(log_events.FOOTPRINT_MEASURED, model=model, footprint_mib=mib, key=self._key(model))
                self._keep_footprint(model, mib)
            case e.CorrectFootprint(model, mib, was_mib):
                self._emit(log_events.FOOTPRINT_CORRECTED, model=model, footprint_mib=mib, was_mib=was_mib)
                self._keep_footprint(model, mib)
            case e.FetchImage(model, image):
                self._pulls.fetch(model, image)
            case e.LeaveImage(model, image):
                self._pulls.leave(model, image)
            case e.Start(instance_id):
                self._lives.start(self._instance(instance_id), self._launch_of)
            case e.Stop(instance_id):
                self._lives.stop(self._instance(instance_id), self._catalogue.settings.stop_grace_s)
            case e.Sleep(instance_id):
                self._lives.sleep(self._instance(instance_id))
            case e.Wake(instance_id):
                self._lives.wake(self._instance(instance_id))
            case e.Remove(instance_id):
                self._lives.remove(self._instance(instance_id))
            case e.CheckHealth(instance_id):
                self._lives.check(self._instance(instance_id))

    def _instance(self, instance_id: str) -> Instance:
        found = self.registry.get(instance_id)
        assert found is not None, instance_id
        return found

    def _launch_of(self, one: Instance) -> Launch:
        return self._catalogue.launch_of(one, self.supervisor.gpus)

    def _key(self, model: str) -> str:
        return self._catalogue.footprint_key(model, self.supervisor.gpus)

    def _keep_footprint(self, model: str, mib: int) -> None:
        self.footprints.put(self._key(model), mib)
        self._tasks.spawn(self._save_footprints())

    async def _save_footprints(self) -> None:
        try:
            await aside(self.footprints.save)
        except OSError as error:
            file = self._catalogue.settings.memory_footprint_file
            self._emit(log_events.FOOTPRINT_FILE_NOT_WRITTEN, file=file, problem=str(error))

    async def _remove_strangers(self) -> None:
        """When the runtime is back, and now and then: what it left behind, or could not remove before."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STRANGERS_S):
                await self._runtime.returned()
        if self._following is None:
            with contextlib.suppress(RuntimeDown):
                await remove_strangers(self._runtime, self.registry, self._emit)

    def pull_of(self, model: str) -> tuple[str, Pull] | None:
        """The image that is being pulled for it."""
        image = self.supervisor.models[model].image.fetching
        pull = self._pulls.of(image)
        return None if pull is None else (image, pull)

    def unfit_endpoints(self, model: str) -> str | None:
        """Those that get no requests, and why."""
        return self._endpoints.why_fewer(model)

    def problems(self) -> list[str]:
        """What is wrong with the machine; requests may be served nevertheless."""
        runtime = [self._runtime.problem] if self._runtime.problem else self._runtime.unanswered
        found = [f"runtime: {problem}" for problem in runtime]
        found += [f"GPU {gpu.index} ({gpu.gpu_id}): {gpu.problem}" for gpu in self.supervisor.gpus if gpu.problem]
        found += [self._stuck(one) for one in self.registry if one.stuck]
        models = self.supervisor.models.items()
        found += [
            f"{name}: {state.why_sick_stay}" for name, state in models if state.looks_sick and state.why_sick_stay
        ]
        found += [f"{name}: {why}" for name in self._catalogue.settings.models if (why := self.why_none(name))]
        found += [f"{one.name} cannot be removed: {one.problem}" for one in self.registry.leftovers.values()]
        return found

    def _stuck(self, one: Instance) -> str:
        holds = self._memory.holds(one)
        return f"{one.name} cannot be ended: {one.stuck}" + (f"; it holds {holds}" if holds else "")

    # time and GPUs

    async def _tick(self) -> None:
        self._hear(e.Tick())

    async def _look_at_gpus(self) -> None:
        """Apart from the ticks, which a driver that takes its time must not hold up."""
        with contextlib.suppress(ProbeError):  # nothing was ever read, and who wanted the first reading hears of it
            await self._read_gpus()

    async def _read_gpus(self) -> None:
        self._hear(e.GpusRead(await self._memory.gpus(self.registry, self.supervisor.gpus)))

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
