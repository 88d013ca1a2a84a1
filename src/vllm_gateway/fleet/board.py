# SPDX-License-Identifier: Apache-2.0
"""What the supervisor sees when it decides, and the steps that hearing and reconciling share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vllm_gateway.allocator.ledger import fits_beside
from vllm_gateway.allocator.types import Gpu, Policy, Resident
from vllm_gateway.fleet import events as e
from vllm_gateway.fleet.instance import Instance, State
from vllm_gateway.fleet.models import ModelState
from vllm_gateway.fleet.registry import ContainerRegistry
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
    effects: list[e.Effect] = field(default_factory=list)

    # seeing

    def live(self, model: str) -> list[Instance]:
        return [one for one in self.registry.by_model(model) if not one.leaving]

    def last_used(self, one: Instance) -> float:
        used = self.activity.last_used(one.instance_id)
        return one.ready_at if used is None else max(used, one.ready_at)

    def resident(self, one: Instance) -> Resident:
        return Resident(
            one.instance_id,
            one.model,
            one.gpu_ids,
            one.reserved_mib,
            busy=self.activity.in_flight(one.instance_id) > 0,
            waited_for=self.activity.waiting(one.model) > 0,
            pinned=self.models[one.model].spec.pinned,
            evictable=one.state is State.READY,
            leaving=one.leaving,
            ready_since=one.ready_at,
            last_used=self.last_used(one),
        )

    def residents(self) -> list[Resident]:
        return [self.resident(one) for one in self.registry if one.gpu_ids]

    def is_promised_room(self, one: Instance) -> bool:
        """Whether it fits its GPUs beside everything else that is promised there."""
        return self._fits(one, [other for other in self.registry if not other.leaving])

    def is_room_free(self, one: Instance) -> bool:
        """Whether it fits its GPUs beside everything that was launched there and is not yet gone."""
        return self._fits(one, [other for other in self.registry if other.launched])

    def changing(self, gpu_id: str, *, but: Instance, starts_only: bool = False) -> bool:
        """One that is stuck keeps its room, but nobody waits for it."""

        def changes(one: Instance) -> bool:
            ends = one.state in (State.STOPPING, State.FAILED) and not one.stuck
            return one.state is State.STARTING or (ends and not starts_only)

        return any(one is not but and gpu_id in one.gpu_ids and one.launched and changes(one) for one in self.registry)

    def _fits(self, one: Instance, others: Sequence[Instance]) -> bool:
        beside = [self.resident(other) for other in others if other is not one]
        return fits_beside(beside, one.gpu_ids, one.reserved_mib, self.gpus, self.policy.margin_mib)

    def expected_start_s(self, model: str, now: float) -> float:
        """Until an instance of `model` is ready: as long as its last starts took, less what has passed of this one."""
        state = self.models.get(model)
        if state is None:
            return 0.0
        began = self._start_began(model)
        return max(state.retry_at - now, 0.0) + state.starts.remaining_s(0.0 if began is None else now - began)

    def start_share(self, model: str, now: float) -> float | None:
        """How much of the start of `model` is done, by the starts there were; None if nothing tells."""
        state = self.models.get(model)
        began = self._start_began(model)
        return None if state is None or began is None else state.starts.share(now - began)

    def _start_began(self, model: str) -> float | None:
        return min((one.launched_at for one in self.live(model) if one.launched), default=None)

    # stepping

    def take_effects(self) -> list[e.Effect]:
        taken, self.effects = self.effects, []
        return taken

    def drain(self, one: Instance, why: str, now: float) -> None:
        self.registry.move(one, State.DRAINING, why, now)
        self.say(log_events.INSTANCE_DRAINING, instance=one.name, model=one.model, reason=why)

    def cancel(self, one: Instance, now: float) -> None:
        """Gives up a start that holds only its reservation; those that were to leave for it stay, if they still can."""
        self.registry.remove(one)
        for other in filter(None, map(self.registry.get, one.evicts)):
            state = self.models[other.model]
            missed = len(self.live(other.model)) < state.spec.instances and not state.removed
            if other.state is State.DRAINING and missed and self.is_promised_room(other):
                self.registry.move(other, State.READY, "reprieved: nobody waits for its room any more", now)
                state.active = True

    def refuse(self, model: str, refusal: Refusal) -> None:
        """Ends the requests that wait for it."""
        self.effects.append(e.Refuse(model, refusal))

    def refuse_failed(self, state: ModelState, message: str, now: float) -> None:
        wait = max(state.retry_at - now, 0.0) + (state.starts.typical_s or 0.0)
        self.refuse(state.spec.name, Refusal("model_start_failed", message, retry_after_s=wait))
