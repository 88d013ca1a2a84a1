# SPDX-License-Identifier: Apache-2.0
"""The deciding core of the fleet: events in, effects out; no clock, no I/O, no task of its own."""

from collections.abc import Callable, Mapping, Sequence
from typing import assert_never

from vllm_gateway.allocator.types import Gpu, Policy
from vllm_gateway.fleet import events as e
from vllm_gateway.fleet import images, sick, sleep, turns
from vllm_gateway.fleet.board import Board
from vllm_gateway.fleet.endings import root_cause, was_silenced
from vllm_gateway.fleet.engines.vllm_memory import larger_footprint
from vllm_gateway.fleet.instance import Instance, State
from vllm_gateway.fleet.models import FootprintOf, ModelSpec, ModelState, new_failure_id
from vllm_gateway.fleet.reconciler import Reconciler
from vllm_gateway.fleet.registry import ContainerRegistry
from vllm_gateway.routing import Activity
from vllm_gateway.telemetry import events as log_events

STABLE_S = 10.0  # an instance that was ready for so long, and as long as a start takes, has proved its configuration
SHOWN_LINES = 40  # of what an engine said last
MOST_CORRECTIONS = 5  # of a footprint in a row
_COUNTED_ON = (State.STARTING, State.READY)  # the end of any other is missed by nobody


class Supervisor:
    """Hears what happened, then reconciles. `footprint_of` must be pure and fast."""

    def __init__(
        self,
        *,
        specs: Mapping[str, ModelSpec],
        registry: ContainerRegistry,
        activity: Activity,
        footprint_of: FootprintOf,
        policy: Policy,
        start_timeout_s: float,
        sick_limit_s: float,
        journal: Callable[..., None],
    ) -> None:
        models = {name: ModelState(spec) for name, spec in specs.items()}
        self._board = Board(registry, activity, policy, models, journal)
        self._reconciler = Reconciler(self._board, footprint_of)
        self._start_timeout_s = start_timeout_s
        self._sick_limit_s = sick_limit_s
        self._handed_over = False

    @property
    def models(self) -> Mapping[str, ModelState]:
        return self._board.models

    @property
    def policy(self) -> Policy:
        return self._board.policy

    @property
    def gpus(self) -> Sequence[Gpu]:
        return self._board.gpus

    def on(self, event: e.Event, now: float, *, runtime_away: bool = False) -> list[e.Effect]:
        """What to do about `event`. Effects are to be carried out in their order.

        While the runtime is away, what runs serves on, and makes way for nothing that could not be started anyway.
        Should it raise, what was decided before that is among the effects of the next event.
        """
        self._board.runtime_away = runtime_away
        self._hear(event, now)
        if not self._handed_over:
            self._reconciler.reconcile(now)
            return self._board.take_effects()
        for one in [one for one in self._board.registry if one.state is State.FAILED]:
            self._board.registry.remove(one)  # what is left of it is the other's to clear away
        return [effect for effect in self._board.take_effects() if isinstance(effect, e.CheckHealth)]

    def start_share(self, model: str, now: float) -> float | None:
        """How much of the start of `model` is done; None if nothing tells."""
        return self._board.start_share(model, now)

    def expected_start_s(self, model: str, now: float) -> float:
        """Until an instance of `model` is ready."""
        return self._board.expected_start_s(model, now)

    def waits_for(self, one: Instance) -> str | None:
        """What holds up its start or wake; None: nothing."""
        return turns.waits_for(self._board, one)

    def outlook(self, one: Instance, now: float) -> str | None:
        """What is wrong with it while it runs, and what comes next."""
        return sick.outlook(self._board, one, self._sick_limit_s, now)

    def _hear(self, event: e.Event, now: float) -> None:
        board = self._board
        match event:
            case e.Wanted(model):
                if state := board.models.get(model):
                    state.active, state.used_at = True, now
            case e.Unwanted(model):
                if state := board.models.get(model):
                    self._nobody_waits(state, now)
            case e.ImageFetched(model, image):
                if state := board.models.get(model):
                    images.fetched(state, image, now)
            case e.ImageNotFetched(model):
                if state := board.models.get(model):
                    images.not_fetched(board, state, event, now)
            case e.Launched(instance_id, running):
                if one := board.registry.get(instance_id):
                    board.registry.set_running(one, running)
            case e.BecameReady(instance_id, measured_mib):
                self._ready(instance_id, measured_mib, now)
            case e.FellAsleep(instance_id, measured_mib):
                self._asleep(instance_id, measured_mib, now)
            case e.WokeUp(instance_id):
                self._woken(instance_id, now)
            case e.NotMoved(instance_id, reason):
                self._not_moved(instance_id, reason, now)
            case e.Died():
                self._died(event, now)
            case e.Gone(instance_id):
                if one := board.registry.get(instance_id):
                    board.registry.remove(one)
                    board.say(log_events.INSTANCE_STOPPED, instance=one.name, model=one.model)
            case e.Stuck(instance_id, problem):
                self._stuck(instance_id, problem)
            case e.Suspected(instance_id, reason):
                self._suspected(instance_id, reason, now)
            case e.Cleared(instance_id):
                if one := board.registry.get(instance_id):
                    sick.answers(board, one, now)
            case e.Missed(instance_id, why):
                if one := board.registry.get(instance_id):
                    sick.missed(board, one, why, now)
            case e.Hung(instance_id, why):
                if one := board.registry.get(instance_id):
                    sick.hung(board, one, why, now)
            case e.Works(instance_id):
                if one := board.registry.get(instance_id):
                    sick.works(board, one, now)
            case e.GpusRead(gpus):
                board.gpus = tuple(gpus)
            case e.Retry(model):
                if state := board.models.get(model):
                    state.failures, state.retry_at, state.corrections = 0, 0.0, 0
                    state.active = not state.removed
                    state.ends_sick = True
            case e.HandOver(active):
                self._handed_over = active
                for state in board.models.values():
                    state.image.fetching = ""  # its pulls end with it
                for one in list(board.registry):
                    if active and one.waits_for_room:
                        board.cancel(one, now)
            case e.Tick() if self._handed_over:
                pass
            case e.Tick():
                self._put_idle_away(now)
                self._end_slow_starts(now)
                self._end_the_sick(now)
            case e.Reconfigured(specs, policy):
                board.policy = policy
                self._start_timeout_s, self._sick_limit_s = event.start_timeout_s, event.sick_limit_s
                self._reconfigured(specs)
            case e.Inherited(specs):
                board.models.update({spec.name: ModelState(spec, removed=True) for spec in specs})
            case e.Drained():
                pass  # reconciling stops what is drained
            case _:
                assert_never(event)

    def _reconfigured(self, specs: Mapping[str, ModelSpec]) -> None:
        """Reconciling lets go of what is not wanted any more, and replaces what has changed."""
        board = self._board
        for name, state in board.models.items():
            state.removed = name not in specs
            state.active = state.active and not state.removed
        for name, spec in specs.items():
            state = board.models.setdefault(name, ModelState(spec))
            if state.spec != spec:
                state.corrected_mib = 0
            if (state.spec.spec_hash, state.spec.footprint_mib) != (spec.spec_hash, spec.footprint_mib):
                state.failures, state.retry_at, state.last_error = 0, 0.0, None  # what failed may be put right
                state.asleep_mib = None
            state.spec = spec
            for one in board.registry.by_model(name):
                board.registry.set_share(one, spec.max_in_flight, spec.weight_of(one.number))

    def _nobody_waits(self, state: ModelState, now: float) -> None:
        """Starts that hold only their reservation are given up."""
        board, name = self._board, state.spec.name
        state.waited_for_at = now
        if any(one.state is State.READY for one in board.registry.by_model(name)):
            return
        for one in board.registry.by_model(name):
            if one.waits_for_room:
                board.cancel(one, now)
        state.active = bool(board.awake(name))

    def _ready(self, instance_id: str, measured_mib: int | None, now: float) -> None:
        board = self._board
        one = board.registry.get(instance_id)
        if one is None or one.state is not State.STARTING:
            return
        if one.discovery:
            one.discovery = False
            if measured_mib:
                one.reserved_mib = measured_mib
                board.effects.append(e.KeepFootprint(one.model, measured_mib))
        board.registry.move(one, State.READY, "healthy", now)
        sick.answers(board, one, now)
        state = board.models[one.model]
        state.active, state.last_error, state.corrections = True, None, 0
        state.used_at = max(state.used_at, now)
        if not (one.external or one.adopted):
            state.starts.add(now - one.launched_at)
        self._say_ready(one, now)

    def _say_ready(self, one: Instance, now: float) -> None:
        self._board.say(
            log_events.INSTANCE_READY,
            instance=one.name,
            model=one.model,
            seconds=round(now - one.launched_at, 3) if one.launched_at else 0.0,
            address=str(one.running.address) if one.running else "",
        )

    def _asleep(self, instance_id: str, measured_mib: int | None, now: float) -> None:
        """As it was told, or as an earlier gateway had told it."""
        board = self._board
        one = board.registry.get(instance_id)
        if one is None or one.state not in (State.FALLING_ASLEEP, State.STARTING):
            return
        state = board.models[one.model]
        if measured_mib is not None:
            state.asleep_mib = measured_mib
        one.asleep, one.asleep_mib = True, sleep.asleep_mib(one, state)
        one.host_mib = one.host_mib or sleep.host_mib(one, state)
        sick.answers(board, one, now)
        board.registry.move(one, State.SLEEPING, one.why, now)
        board.say(log_events.INSTANCE_ASLEEP, instance=one.name, model=one.model, asleep_mib=one.asleep_mib)

    def _woken(self, instance_id: str, now: float) -> None:
        board = self._board
        one = board.registry.get(instance_id)
        if one is not None and one.state is State.SLEEPING and self._handed_over:
            board.registry.move(one, State.WAKING, "another gateway has woken it", now)
            one.moving, one.asleep, one.launched_at = True, False, now
        if one is None or not (one.state is State.WAKING and one.moving):
            return
        board.registry.move(one, State.READY, "woken", now)
        state = board.models[one.model]
        state.active, state.used_at = True, max(state.used_at, now)
        if not self._handed_over:
            state.wakes.add(now - one.launched_at)
        self._say_ready(one, now)

    def _not_moved(self, instance_id: str, reason: str, now: float) -> None:
        """It is stopped, and started anew when it is wanted: nobody knows what it can do."""
        board = self._board
        one = board.registry.get(instance_id)
        if one is not None and one.moving:
            board.say(log_events.INSTANCE_NOT_MOVED, instance=one.name, model=one.model, reason=reason)
            board.registry.set_suspect(one, True)  # no reprieve brings it back
            board.drain(one, reason, now)

    def _died(self, event: e.Died, now: float) -> None:
        board, tail = self._board, event.log_tail
        one = board.registry.get(event.instance_id)
        if one is None or one.state in (State.FAILED, State.STOPPING):
            return
        was, reason = one.state, event.detail or event.reason
        was_starting = was is State.STARTING and one.sick is None
        failure_id = new_failure_id(event.instance_id, now)
        board.registry.move(one, State.FAILED, reason, now)
        board.say(
            log_events.INSTANCE_FAILED,
            instance=one.name,
            model=one.model,
            reason=reason,
            failure_id=failure_id,
            exit_code=event.exit_code,
            log_tail=list(tail[-SHOWN_LINES:]),
        )
        board.effects.append(e.Remove(event.instance_id))
        if was not in _COUNTED_ON or one.external:
            return
        state = board.models[one.model]
        state.log_tail, state.failure_id, state.told = tail[-SHOWN_LINES:], failure_id, event.reason
        may_tell = was_starting and not was_silenced(event.exit_code)
        larger_mib = self._larger_footprint(one, tail) if may_tell else None
        if larger_mib and state.spec.footprint_mib is None and state.corrections < MOST_CORRECTIONS:
            state.corrections, state.corrected_mib = state.corrections + 1, larger_mib
            board.effects.append(e.CorrectFootprint(one.model, larger_mib, one.reserved_mib))
            return  # the requests wait on
        said = root_cause(tail, event.exit_code)
        state.last_error = f"{reason}: {said}" if said else reason
        if larger_mib and state.spec.footprint_mib is not None:
            state.last_error += f" Its footprint_mib is {one.reserved_mib}; declare {larger_mib}, or none at all."
        state.start_failed = was_starting
        if was_starting:
            state.image.fetched = ""  # it may have been removed
        self._back_off(one, state, now)
        if state.start_failed:
            self._give_up_starts(state, now)

    def _back_off(self, one: Instance, state: ModelState, now: float) -> None:
        """One that had served is replaced at once, unless they keep failing."""
        proved = one.ready_at and now - one.ready_at >= max(STABLE_S, state.starts.typical_s or 0.0)
        again = one.launched_at >= state.failed_at  # not one of several that fail together
        state.failures = 1 if proved else max(state.failures + again, 1)
        self._board.back_off(state, now)

    def _give_up_starts(self, state: ModelState, now: float) -> None:
        """Those that hold only their reservation, and the requests, if nothing of the model is left."""
        board, name = self._board, state.spec.name
        for other in board.registry.by_model(name):
            if other.state is State.STARTING and not other.launched:
                board.cancel(other, now)
        if not board.live(name):
            board.refuse_failed(state, f"{name} could not be started", now)

    def _larger_footprint(self, one: Instance, tail: tuple[str, ...]) -> int | None:
        """What it should have, if it ended for want of memory and a GPU has more to give."""
        wanted = larger_footprint(one.reserved_mib, tail) if one.gpu_ids else None
        most = max((gpu.total_mib - self._board.policy.margin_mib for gpu in self._board.gpus), default=0)
        return min(wanted, most) if wanted and most > one.reserved_mib else None

    def _stuck(self, instance_id: str, problem: str) -> None:
        board = self._board
        one = board.registry.get(instance_id)
        if one is None:
            return
        if one.stuck is None:
            board.say(log_events.INSTANCE_STUCK, instance=one.name, model=one.model, problem=problem)
        board.registry.set_stuck(one, problem)

    def _suspected(self, instance_id: str, reason: str, now: float) -> None:
        board = self._board
        one = board.registry.get(instance_id)
        if one and one.state is State.READY and not one.suspect and one.sick is None:
            board.registry.set_suspect(one, True)
            board.models[one.model].used_at = now
            board.say(log_events.INSTANCE_SUSPECT, instance=one.name, model=one.model, reason=reason)
            board.effects.append(e.CheckHealth(instance_id))

    def _put_idle_away(self, now: float) -> None:
        board = self._board
        for state in board.models.values():
            spec = state.spec
            live = [one for one in board.live(spec.name) if not one.external]
            idle = [one for one in live if one.state in (State.READY, State.SLEEPING)]
            if board.runtime_away or not idle or spec.pinned or not spec.idle_timeout_s:
                continue
            if board.activity.waiting(spec.name):
                continue
            if any(board.activity.in_flight(one.instance_id) for one in idle):
                continue
            if len(idle) < len(live):
                continue  # once ready, it would bring the others back
            last = max([state.used_at, *(board.last_used(one) for one in idle)])
            if now - last >= spec.idle_timeout_s:
                state.active = False
                board.say(log_events.IDLE_STOP, model=spec.name, seconds=round(now - last, 1))
                for one in idle:
                    board.drain(one, "idle", now)

    def _end_slow_starts(self, now: float) -> None:
        """One that was adopted may have had most of its time already; it has as long yet as others to answer."""
        limit = self._start_timeout_s
        for one in list(self._board.registry):
            least_s = self._sick_limit_s if one.adopted else 0.0
            if one.state is State.STARTING and one.launched and now - one.launched_at > max(limit - one.age_s, least_s):
                self._died(e.Died(one.instance_id, f"not ready after {limit:g} s (start_timeout_s)"), now)

    def _end_the_sick(self, now: float) -> None:
        for one in sick.to_be_ended(self._board, self._sick_limit_s, now):
            assert one.sick is not None
            why = one.sick.why if one.sick.hung else f"{one.sick.why}, for {now - one.sick.since:.0f} s"
            self._died(e.Died(one.instance_id, why), now)
