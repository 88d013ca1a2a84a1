# SPDX-License-Identifier: Apache-2.0
"""The deciding core of the fleet: events in, effects out; no clock, no I/O, no task of its own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import assert_never

from vllm_gateway.allocator.plan import plan
from vllm_gateway.allocator.types import Gpu, Need, NoRoom, Placement, Policy, Resident
from vllm_gateway.fleet import events as e
from vllm_gateway.fleet.instance import Instance, State
from vllm_gateway.fleet.registry import ContainerRegistry
from vllm_gateway.routing import Activity, Refusal
from vllm_gateway.telemetry import events as log_events
from vllm_gateway.telemetry.events import Event as LogEvent

FIRST_BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 300.0
STABLE_S = 60.0  # an instance that was ready for so long has proved its configuration


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What the supervisor needs to know of a model."""

    name: str
    instances: int
    spec_hash: str
    gpu_count: int
    max_in_flight: int
    idle_timeout_s: float  # 0: never
    pinned: bool
    uses_gpu_memory: bool  # False: no GPUs at all (external engines)


@dataclass(slots=True)
class ModelState:
    spec: ModelSpec
    active: bool = False  # asked for, and not put away since
    wanted_at: float | None = None  # since when requests wait while nothing is ready
    failures: int = 0
    retry_at: float = 0.0
    last_error: str | None = None
    why_fewer: str | None = None  # why fewer run than wanted
    used_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Footprint:
    mib: int
    known: bool  # False: an estimate; the start is a discovery run


FootprintOf = Callable[[str, Sequence[Gpu]], Footprint]


@dataclass(slots=True)
class Supervisor:
    """Brings what is wanted and what runs together. `footprint_of` must be pure and fast."""

    specs: Mapping[str, ModelSpec]
    registry: ContainerRegistry
    activity: Activity
    footprint_of: FootprintOf
    policy: Policy
    start_timeout_s: float
    journal: Callable[..., None]
    models: dict[str, ModelState] = field(init=False)
    gpus: tuple[Gpu, ...] = ()
    _effects: list[e.Effect] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.models = {name: ModelState(spec) for name, spec in self.specs.items()}

    def on(self, event: e.Event, now: float) -> list[e.Effect]:
        """What to do about `event`. Effects are to be carried out in their order."""
        self._effects = []
        self._hear(event, now)
        self._reconcile(now)
        return self._effects

    # hearing

    def _hear(self, event: e.Event, now: float) -> None:
        match event:
            case e.Wanted(model):
                state = self.models[model]
                state.active, state.used_at = True, now
                state.wanted_at = state.wanted_at if state.wanted_at is not None else now
            case e.Unwanted(model):
                self._nobody_waits(self.models[model], now)
            case e.Launched(instance_id, running):
                if one := self.registry.get(instance_id):
                    self.registry.set_running(one, running)
            case e.BecameReady(instance_id, measured_mib):
                self._ready(instance_id, measured_mib, now)
            case e.Died(instance_id, reason, log_tail, exit_code):
                self._died(instance_id, reason, log_tail, exit_code, now)
            case e.Gone(instance_id):
                if one := self.registry.get(instance_id):
                    self.registry.remove(one)
                    self._say(log_events.INSTANCE_STOPPED, instance=one.name, model=one.model)
            case e.Suspected(instance_id, reason):
                one = self.registry.get(instance_id)
                if one and one.state is State.READY and not one.suspect:
                    self.registry.set_suspect(one, True)
                    self.models[one.model].used_at = now
                    self._say(log_events.INSTANCE_SUSPECT, instance=one.name, model=one.model, reason=reason)
                    self._effects.append(e.CheckHealth(instance_id))
            case e.Cleared(instance_id):
                if one := self.registry.get(instance_id):
                    self.registry.set_suspect(one, False)
            case e.GpusRead(gpus):
                self.gpus = tuple(gpus)
            case e.Tick():
                self._put_idle_away(now)
                self._end_slow_starts(now)
            case e.Drained():
                pass  # reconciling stops what is drained
            case _:
                assert_never(event)

    def _nobody_waits(self, state: ModelState, now: float) -> None:
        """A start that holds only its reservation is given up, and those that were to leave for it stay."""
        state.wanted_at = None
        if any(one.state is State.READY for one in self.registry.by_model(state.spec.name)):
            return
        for one in self.registry.by_model(state.spec.name):
            if one.state is State.STARTING and not one.launched:
                self._cancel(one, now)
        state.active = bool(self._live(state.spec.name))

    def _cancel(self, one: Instance, now: float) -> None:
        self.registry.remove(one)
        for other in filter(None, map(self.registry.get, one.evicts)):
            state = self.models[other.model]
            missed = len(self._live(other.model)) < state.spec.instances
            if other.state is State.DRAINING and missed and self._room_stays(other):
                self.registry.move(other, State.READY, "reprieved: nobody waits for its room any more", now)
                state.active = True

    def _room_stays(self, leaving: Instance) -> bool:
        """Whether a draining instance can stay beside everything that is promised on its GPUs."""
        return all(
            self._promised(gpu.gpu_id) + leaving.reserved_mib <= self._capacity(gpu)
            for gpu in self.gpus
            if gpu.gpu_id in leaving.gpu_ids
        )

    def _ready(self, instance_id: str, measured_mib: int | None, now: float) -> None:
        one = self.registry.get(instance_id)
        if one is None or one.state is not State.STARTING:
            return
        if one.discovery:
            one.discovery = False
            if measured_mib:
                one.reserved_mib = measured_mib
                self._effects.append(e.KeepFootprint(one.model, measured_mib))
        self.registry.move(one, State.READY, "healthy", now)
        state = self.models[one.model]
        state.active, state.wanted_at, state.last_error = True, None, None
        state.used_at = max(state.used_at, now)
        self._say(
            log_events.INSTANCE_READY,
            instance=one.name,
            model=one.model,
            seconds=round(now - one.launched_at, 3) if one.launched_at else 0.0,
            address=f"{one.running.host}:{one.running.port}" if one.running else "",
        )

    def _died(self, instance_id: str, reason: str, tail: tuple[str, ...], exit_code: int | None, now: float) -> None:
        one = self.registry.get(instance_id)
        if one is None or one.state in (State.FAILED, State.STOPPING):
            return
        was = one.state
        proved = one.ready_at and now - one.ready_at >= STABLE_S
        self.registry.move(one, State.FAILED, reason, now)
        self._say(
            log_events.INSTANCE_FAILED,
            instance=one.name,
            model=one.model,
            reason=reason,
            exit_code=exit_code,
            log_tail=list(tail),
        )
        self._effects.append(e.Remove(instance_id))
        if was is State.DRAINING or one.external:
            return
        state = self.models[one.model]
        state.failures = 1 if proved else state.failures + 1
        pause = 0.0 if was is State.READY and state.failures == 1 else backoff_s(state.failures)
        state.retry_at = now + pause
        said = root_cause(tail)
        state.last_error = f"{reason}: {said}" if said else reason
        if pause:
            self._say(log_events.MODEL_BACKOFF, model=one.model, seconds=pause, failures=state.failures)
        if was is State.STARTING:
            for other in self.registry.by_model(one.model):
                if other.state is State.STARTING and not other.launched:
                    self._cancel(other, now)
            if not self._live(one.model):
                text = "\n".join(tail[-15:])
                self._refuse(state, now, f"{one.model} could not be started: {reason}" + (f"\n{text}" if text else ""))

    def _put_idle_away(self, now: float) -> None:
        for state in self.models.values():
            spec = state.spec
            ready = [one for one in self.registry.by_model(spec.name) if one.state is State.READY and not one.external]
            if not ready or spec.pinned or not spec.idle_timeout_s or self.activity.waiting(spec.name):
                continue
            if any(self.activity.in_flight(one.instance_id) for one in ready):
                continue
            if any(one.state is State.STARTING for one in self._live(spec.name)):
                continue  # once ready, it would bring the others back
            last = max([state.used_at, *(self._last_used(one) for one in ready)])
            if now - last >= spec.idle_timeout_s:
                state.active = False
                self._say(log_events.IDLE_STOP, model=spec.name, seconds=round(now - last, 1))
                for one in ready:
                    self._drain(one, "idle", now)

    def _end_slow_starts(self, now: float) -> None:
        for one in list(self.registry):
            if one.state is State.STARTING and one.launched and now - one.launched_at > self.start_timeout_s:
                self._died(
                    one.instance_id, f"not ready after {self.start_timeout_s:g} s (start_timeout_s)", (), None, now
                )

    # bringing together

    def _reconcile(self, now: float) -> None:
        refused = {effect.model for effect in self._effects if isinstance(effect, e.Refuse)}
        waiting = [s for s in self.models.values() if self.activity.waiting(s.spec.name) and s.spec.name not in refused]
        for state in sorted(waiting, key=lambda s: s.wanted_at or 0.0):
            if not self._live(state.spec.name) and self._may_start(state):
                self._start_first(state, now)
        somebody_waits_for_room = any(
            self._may_start(s) and not self._live(s.spec.name) and s.retry_at <= now for s in waiting
        )
        for state in self.models.values():
            if state.active and self._may_start(state):
                self._start_missing(state, now, blocked=somebody_waits_for_room)
        self._stop_the_drained(now)
        self._launch(now)

    def _may_start(self, state: ModelState) -> bool:
        return state.spec.uses_gpu_memory and bool(self.gpus)

    def _start_first(self, state: ModelState, now: float) -> None:
        if state.retry_at > now:
            self._refuse(state, now, f"{state.spec.name} failed to start and is tried again later. {state.last_error}")
            return
        footprint = self.footprint_of(state.spec.name, self.gpus)
        answer = self._plan(state.spec, footprint, now, first=True)
        if isinstance(answer, Placement):
            self._reserve(state, footprint, answer, now)
        elif answer.never:
            state.why_fewer = answer.reason
            self._say(log_events.MODEL_NO_ROOM, model=state.spec.name, reason=answer.reason)
            state.active = False
            self._effects.append(e.Refuse(state.spec.name, Refusal("no_room", f"{state.spec.name} {answer.reason}")))
        else:
            state.why_fewer = answer.reason

    def _start_missing(self, state: ModelState, now: float, *, blocked: bool) -> None:
        """Extra instances take free room only; the crashed first one of an active model comes back the same way."""
        spec = state.spec
        state.why_fewer = None if self._live(spec.name) else state.why_fewer
        while (have := len(self._live(spec.name))) < spec.instances:
            footprint = self.footprint_of(spec.name, self.gpus)
            if state.retry_at > now:
                state.why_fewer = f"waits {state.retry_at - now:.0f} s after a failed start: {state.last_error}"
            elif blocked:
                state.why_fewer = "another model waits for room"
            elif not footprint.known and have:
                state.why_fewer = "its footprint is being measured on the first instance"
            else:
                answer = self._plan(spec, footprint, now, first=False)
                if isinstance(answer, Placement):
                    self._reserve(state, footprint, answer, now)
                    continue
                state.why_fewer = f"no room: {answer.reason}"
            return

    def _plan(self, spec: ModelSpec, footprint: Footprint, now: float, *, first: bool) -> Placement | NoRoom:
        need = Need(spec.name, footprint.mib, spec.gpu_count, may_evict=first, may_drain_busy=footprint.known)
        return plan(need, self.gpus, self.residents(), self.policy, now)

    def _reserve(self, state: ModelState, footprint: Footprint, placement: Placement, now: float) -> None:
        spec = state.spec
        number = self.registry.free_number(spec.name)
        one = Instance(
            instance_id=self.registry.new_id(),
            name=self.registry.name_of(spec.name, number),
            model=spec.name,
            number=number,
            spec_hash=spec.spec_hash,
            max_in_flight=spec.max_in_flight,
            gpu_ids=placement.gpu_ids,
            reserved_mib=footprint.mib,
            discovery=not footprint.known,
            since=now,
            evicts=placement.evict,
        )
        self.registry.add(one)
        self._say(
            log_events.INSTANCE_PLANNED,
            instance=one.name,
            model=one.model,
            gpus=list(one.gpu_ids),
            footprint_mib=one.reserved_mib,
            evicts=[other.name for other in filter(None, map(self.registry.get, placement.evict))],
        )
        for other in filter(None, map(self.registry.get, placement.evict)):
            self._say(log_events.EVICTION, model=other.model, instance=other.name, for_model=spec.name)
            self._drain(other, f"makes room for {spec.name}", now)
            if not self._live(other.model):
                self.models[other.model].active = False

    def _drain(self, one: Instance, why: str, now: float) -> None:
        self.registry.move(one, State.DRAINING, why, now)
        self._say(log_events.INSTANCE_DRAINING, instance=one.name, model=one.model, reason=why)

    def _stop_the_drained(self, now: float) -> None:
        for one in list(self.registry):
            if one.state is not State.DRAINING or self.activity.in_flight(one.instance_id):
                continue
            if not any(self._changing(gpu_id, but=one, starts_only=True) for gpu_id in one.gpu_ids):
                self.registry.move(one, State.STOPPING, one.why, now)
                self._say(log_events.INSTANCE_STOPPING, instance=one.name, model=one.model, reason=one.why)
                self._effects.append(e.Stop(one.instance_id))

    def _launch(self, now: float) -> None:
        """Starts what is reserved, one memory change at a time on a GPU, and only into room that is really there."""
        for one in list(self.registry):
            if one.state is not State.STARTING or one.launched:
                continue
            quiet = not any(self._changing(gpu_id, but=one) for gpu_id in one.gpu_ids)
            if quiet and all(self._fits_now(gpu, one) for gpu in self.gpus if gpu.gpu_id in one.gpu_ids):
                one.launched, one.launched_at = True, now
                self._say(log_events.INSTANCE_STARTING, instance=one.name, model=one.model, gpus=list(one.gpu_ids))
                self._effects.append(e.Start(one.instance_id))

    # the books

    def residents(self) -> list[Resident]:
        return [
            Resident(
                one.instance_id,
                one.model,
                one.gpu_ids,
                one.reserved_mib,
                busy=self.activity.in_flight(one.instance_id) > 0,
                pinned=self.models[one.model].spec.pinned,
                evictable=one.state is State.READY,
                leaving=one.leaving,
                ready_since=one.ready_at,
                last_used=self._last_used(one),
            )
            for one in self.registry
            if one.gpu_ids
        ]

    def _live(self, model: str) -> list[Instance]:
        return [one for one in self.registry.by_model(model) if not one.leaving]

    def _last_used(self, one: Instance) -> float:
        used = self.activity.last_used(one.instance_id)
        return one.ready_at if used is None else max(used, one.ready_at)

    def _capacity(self, gpu: Gpu) -> int:
        return gpu.total_mib - self.policy.margin_mib - gpu.foreign_mib

    def _promised(self, gpu_id: str) -> int:
        return sum(one.reserved_mib for one in self.registry if gpu_id in one.gpu_ids and not one.leaving)

    def _fits_now(self, gpu: Gpu, starting: Instance) -> bool:
        held = sum(
            one.reserved_mib
            for one in self.registry
            if gpu.gpu_id in one.gpu_ids and one.launched and one is not starting
        )
        return held + starting.reserved_mib <= self._capacity(gpu)

    def _changing(self, gpu_id: str, *, but: Instance, starts_only: bool = False) -> bool:
        return any(
            one is not but
            and gpu_id in one.gpu_ids
            and one.launched
            and (one.state is State.STARTING or (not starts_only and one.state in (State.STOPPING, State.FAILED)))
            for one in self.registry
        )

    def _refuse(self, state: ModelState, now: float, message: str) -> None:
        wait = max(state.retry_at - now, 1.0)
        self._effects.append(e.Refuse(state.spec.name, Refusal("model_start_failed", message, retry_after_s=wait)))

    def _say(self, event: LogEvent, **fields: object) -> None:
        self.journal(event, **fields)


def root_cause(tail: Sequence[str]) -> str:
    """The line of an engine's last ones that says most: the last error that points to no other."""
    errors = [line for line in tail if "rror:" in line and "root cause" not in line]
    return next(reversed(errors or [line for line in tail if line.strip()]), "")


def backoff_s(failures: int) -> float:
    """1, 2, 4, ... seconds, at most LONGEST_BACKOFF_S."""
    return min(FIRST_BACKOFF_S * 2.0 ** (failures - 1), LONGEST_BACKOFF_S)
