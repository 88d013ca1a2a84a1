# SPDX-License-Identifier: Apache-2.0
"""What the supervisor sees when it decides, and the steps that hearing and reconciling share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vllm_gateway.allocator.ledger import fits_beside
from vllm_gateway.allocator.types import Gpu, Policy, Resident
from vllm_gateway.fleet import events as e
from vllm_gateway.fleet import sleep
from vllm_gateway.fleet.instance import Instance, State
from vllm_gateway.fleet.models import ModelState, backoff_s
from vllm_gateway.fleet.registry import ContainerRegistry
from vllm_gateway.fleet.start_times import StartTimes
from vllm_gateway.routing import Activity, Refusal
from vllm_gateway.telemetry import events as log_events


@dataclass(slots=True)
class Board:
    """`effects` collects what is to be done about the event at hand, until it is taken."""

    registry: ContainerRegistry
    activity: Activity
    policy: Policy
    models: dict[str, ModelState]
    say: Callable[..., None]
    gpus: Sequence[Gpu] = ()
    runtime_away: bool = False
    effects: list[e.Effect] = field(default_factory=list)

    # seeing

    def live(self, model: str) -> list[Instance]:
        """Those that stay, sleepers among them."""
        return [one for one in self.registry.by_model(model) if not one.leaving]

    def awake(self, model: str) -> list[Instance]:
        """Those that serve, or are on their way to."""
        return [one for one in self.live(model) if not one.resting]

    def last_used(self, one: Instance) -> float:
        used = self.activity.last_used(one.instance_id)
        return max(one.used_at if used is None else used, one.ready_at)

    def gives_way(self, one: Instance, now: float) -> bool:
        """Whether it only starts, and nobody waits for that, nor has a moment ago: who has left may come back for it.

        A wake is soon over, and its end costs a start: it gives way only if it takes far too long.
        """
        state = self.models[one.model]
        hangs = one.state is State.WAKING and one.moving and now - one.launched_at > 2 * state.wakes.expected_s
        starts = one.state is State.STARTING and not one.adopted
        spared = not (starts or hangs) or one.external or state.spec.pinned
        left_just_now = one.launched and now - state.waited_for_at < self.policy.idle_s
        waited_for = self.activity.waiting(one.model) > 0 or left_just_now
        return not spared and not waited_for

    def resident(self, one: Instance, now: float) -> Resident:
        """A start that nobody waits for is in nobody's use, and the first to leave."""
        state = self.models[one.model]
        return Resident(
            one.instance_id,
            one.model,
            one.gpu_ids,
            one.promised_mib,
            busy=self.activity.in_flight(one.instance_id) > 0,
            waited_for=self.activity.waiting(one.model) > 0,
            pinned=state.spec.pinned,
            evictable=one.state in (State.READY, State.SLEEPING) or self.gives_way(one, now),
            changing=one.launched and _changes(one),
            leaving=one.leaving,
            asleep=one.state is State.SLEEPING,
            asleep_mib=sleep.asleep_mib(one, state) if self._may_sleep(one, state) else None,
            ready_since=one.ready_at,
            last_used=self.last_used(one),
        )

    def _may_sleep(self, one: Instance, state: ModelState) -> bool:
        """Not while another gateway may send requests to it: they would hang. Nor where that gives nothing back."""
        return self.activity.alone and not self.is_shared(one) and sleep.may_sleep(one, state, self.policy)

    def is_shared(self, one: Instance) -> bool:
        """Whether its GPUs have no memory but the machine's."""
        return any(gpu.shared and gpu.gpu_id in one.gpu_ids for gpu in self.gpus)

    def residents(self, now: float) -> list[Resident]:
        return [self.resident(one, now) for one in self.registry if one.gpu_ids]

    def evicted_for(self, one: Instance) -> list[Instance]:
        """Those of them that are still there."""
        return [other for other in map(self.registry.get, one.evicts) if other is not None]

    def is_promised_room(self, one: Instance) -> bool:
        """Whether it fits its GPUs beside everything else that is promised there."""
        return self._fits(one, lambda other: other.promised_mib)

    def is_room_free(self, one: Instance, gpu_ids: Sequence[str] = ()) -> bool:
        """Whether it fits its GPUs, or others, beside everything that is held there until it is gone or asleep."""
        return self._fits(one, lambda other: other.held_mib, gpu_ids)

    def changing(self, one: Instance, *, engines_only: bool = False) -> list[Instance]:
        """The others whose memory on one of its GPUs is on the move; `engines_only`: not by stops.

        One that is stuck keeps its room, but nobody waits for it.
        """
        there = set(one.gpu_ids)
        return [
            other
            for other in self.registry
            if other is not one
            and other.launched
            and (_changes(other) or (_ends(other) and not engines_only))
            and not there.isdisjoint(other.gpu_ids)
        ]

    def is_calm(self, gpu_id: str) -> bool:
        """Whether no memory is on the move there."""
        there = [one for one in self.registry if gpu_id in one.gpu_ids and one.launched]
        return not any(_changes(one) or _ends(one) for one in there)

    def is_quiet(self, one: Instance) -> bool:
        """Whether nothing changes on its GPUs but itself."""
        return not self.changing(one)

    def _fits(self, one: Instance, mib: Callable[[Instance], int], gpu_ids: Sequence[str] = ()) -> bool:
        """Asleep it needs no more than it has; else all that is reserved for it."""
        beside = [
            Resident(other.instance_id, other.model, other.gpu_ids, mib(other))
            for other in self.registry
            if other is not one
        ]
        own_mib = one.asleep_mib if one.asleep and one.leaving else one.reserved_mib
        return fits_beside(beside, gpu_ids or one.gpu_ids, own_mib, self.gpus, self.policy.margin_mib)

    def expected_start_s(self, model: str, now: float) -> float:
        """Until an instance of `model` is ready: as long as its last starts (or wakes) took, less what has passed."""
        state = self.models.get(model)
        if state is None:
            return 0.0
        times, began = self._next(state)
        pause_s = max(state.retry_at - now, 0.0) if times is state.starts else 0.0
        return pause_s + times.remaining_s(0.0 if began is None else now - began)

    def start_share(self, model: str, now: float) -> float | None:
        """How much of the start (or wake) of `model` is done, by those there were; None if nothing tells."""
        state = self.models.get(model)
        if state is None:
            return None
        times, began = self._next(state)
        return None if began is None else times.share(now - began)

    def _next(self, state: ModelState) -> tuple[StartTimes, float | None]:
        """What will make it ready: a wake where it sleeps, else a start; and since when that goes on."""
        live = self.live(state.spec.name)
        coming = [one for one in live if one.launched and not one.resting and not one.waits_for_room]
        began = min((one.launched_at for one in coming), default=None)
        starts = any(one.state is State.STARTING for one in live)
        wakes = any(one.resting or one.state is State.WAKING for one in live)
        return (state.wakes if wakes and not starts else state.starts), began

    # stepping

    def take_effects(self) -> list[e.Effect]:
        taken, self.effects = self.effects, []
        return taken

    def drain(self, one: Instance, why: str, now: float) -> None:
        self.registry.move(one, State.DRAINING, why, now)
        self.say(log_events.INSTANCE_DRAINING, instance=one.name, model=one.model, reason=why)

    def put_to_bed(self, one: Instance, why: str, now: float) -> None:
        """No new requests; once those in flight are done, it falls asleep."""
        one.asleep_mib = sleep.asleep_mib(one, self.models[one.model])
        one.used_at = now if self.activity.in_flight(one.instance_id) else self.last_used(one)
        self.registry.move(one, State.FALLING_ASLEEP, why, now)
        self.say(log_events.INSTANCE_DRAINING, instance=one.name, model=one.model, reason=why)

    def end_start(self, one: Instance, why: str, now: float) -> None:
        """It has not been ready, so there is nothing to be finished."""
        if one.moving:
            self.drain(one, why, now)
        elif one.launched:
            self.registry.move(one, State.STOPPING, why, now)
            self.say(log_events.INSTANCE_STOPPING, instance=one.name, model=one.model, reason=why)
            self.effects.append(e.Stop(one.instance_id))
        else:
            self.cancel(one, now)

    def cancel(self, one: Instance, now: float) -> None:
        """Gives up a start or wake that holds only its reservation; those that were to make room stay, if they can."""
        if one.state is State.WAKING:
            self.registry.move(one, State.SLEEPING, "its room is needed no more, or not there any more", now)
        else:
            self.registry.remove(one)
        for other in self.evicted_for(one):
            self._reprieve(other, now)
        one.evicts = ()

    def _reprieve(self, one: Instance, now: float) -> None:
        state = self.models[one.model]
        in_time = one.state is State.DRAINING or (one.state is State.FALLING_ASLEEP and not one.moving)
        beside = self.live(one.model) if one.asleep else self.awake(one.model)
        missed = len(beside) < state.spec.instances and not state.removed
        if in_time and missed and not one.suspect and one.sick is None and self.is_promised_room(one):
            why = "reprieved: nobody waits for its room any more"
            self.registry.move(one, State.SLEEPING if one.asleep else State.READY, why, now)
            state.active = state.active or not one.asleep

    def back_off(self, state: ModelState, now: float) -> None:
        """After another failure, before the next start."""
        pause = backoff_s(state.failures) if state.start_failed or state.failures > 1 else 0.0
        state.failed_at, state.retry_at = now, now + pause
        if pause:
            self.say(log_events.MODEL_BACKOFF, model=state.spec.name, seconds=pause, failures=state.failures)

    def refuse(self, model: str, refusal: Refusal) -> None:
        """Ends the requests that wait for it."""
        self.effects.append(e.Refuse(model, refusal))

    def refuse_failed(self, state: ModelState, what: str, now: float) -> None:
        """Clients are told in short; what the engine said is for operators, who find it by its id."""
        message = f"{what}: {state.told} (failure {state.failure_id}: the gateway's log and status say more)."
        wait = max(state.retry_at - now, 0.0) + (state.starts.typical_s or 0.0)
        self.refuse(state.spec.name, Refusal("model_start_failed", message, retry_after_s=wait))


def _changes(one: Instance) -> bool:
    return one.state is State.STARTING or one.moving


def _ends(one: Instance) -> bool:
    return one.state in (State.STOPPING, State.FAILED) and not one.stuck
