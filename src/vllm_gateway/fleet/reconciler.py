# SPDX-License-Identifier: Apache-2.0
"""Brings what is wanted and what runs together: who starts, who leaves for it, what is stopped and launched now."""

from dataclasses import dataclass

from vllm_gateway.allocator.plan import plan
from vllm_gateway.allocator.types import Need, NoRoom, Placement
from vllm_gateway.fleet import events as e
from vllm_gateway.fleet import images, rollout, sleepers, turns
from vllm_gateway.fleet.board import Board
from vllm_gateway.fleet.instance import Instance, State
from vllm_gateway.fleet.models import Footprint, FootprintOf, ModelSpec, ModelState
from vllm_gateway.fleet.sleep import has_a_place, host_mib
from vllm_gateway.routing import Refusal
from vllm_gateway.telemetry import events as log_events


@dataclass(slots=True)
class Reconciler:
    board: Board
    footprint_of: FootprintOf

    def reconcile(self, now: float) -> None:
        board = self.board
        images.let_go_of_others(board)
        rollout.let_go(board, now)
        self._give_up_lost_room(now)
        waiting = self._waiting(now)
        for state in waiting:
            if not board.awake(state.spec.name) and self._may_start(state):
                self._start_first(state, now)
                if self._waits_for_room(state) and state.waited_s(now) >= board.policy.max_swap_wait_s:
                    break  # those who came later would take the room that it waits for
        self._start_elsewhere(now)
        somebody_waits_for_room = any(self._waits_for_room(state) and state.retry_at <= now for state in waiting)
        for state in board.models.values():
            if state.active and self._may_start(state):
                self._start_missing(state, now, blocked=somebody_waits_for_room)
                self._replace_outdated(state, now, blocked=somebody_waits_for_room)
        images.let_go_of_unwanted(board, now)
        sleepers.keep_to_host_memory(board, now)
        turns.make_way(board, now)
        self._stop_the_drained(now)
        sleepers.fall_asleep(board, now)
        self._launch(now)

    def _give_up_lost_room(self, now: float) -> None:
        """A reservation that others have taken the memory of, or whose GPU has failed, is planned anew."""
        board = self.board
        for one in list(board.registry):
            if one.waits_for_room and not board.is_promised_room(one):
                board.cancel(one, now)

    def _waiting(self, now: float) -> list[ModelState]:
        """The models that requests wait for while nothing of them is ready, the longest wait first."""
        board = self.board
        refused = {effect.model for effect in board.effects if isinstance(effect, e.Refuse)}
        found = []
        for name, state in board.models.items():
            if board.activity.waiting(name):
                state.waited_for_at = now
            ready = any(one.state is State.READY for one in board.registry.by_model(name))
            if ready or state.removed or name in refused or not board.activity.waiting(name):
                state.waits_since = None
                continue
            state.waits_since = now if state.waits_since is None else state.waits_since
            found.append(state)
        return sorted(found, key=lambda state: state.waited_s(now), reverse=True)

    def _may_start(self, state: ModelState) -> bool:
        return state.spec.uses_gpu_memory and not state.removed and bool(self.board.gpus)

    def _waits_for_room(self, state: ModelState) -> bool:
        """Who waits for an image as yet needs no room."""
        return self._may_start(state) and not state.image.fetching and not self.board.awake(state.spec.name)

    def _start_first(self, state: ModelState, now: float) -> None:
        name = state.spec.name
        if any(one.moving for one in self.board.live(name)) or self._wake(state, now, first=True):
            return  # what falls asleep can be woken soon
        if state.retry_at > now:
            if state.refuses(now):
                what = "failed to start" if state.start_failed else "keeps failing"
                self.board.refuse_failed(state, f"{name} {what} and is tried again later", now)
            return
        footprint = self._footprint(state)
        answer = self._plan(state.spec, footprint, now, first=True)
        if isinstance(answer, Placement):
            if not self._rather_waits_for_a_wake(state, answer, now) and images.is_there(self.board, state, now):
                self._reserve(state, footprint, answer, now)
            return
        if not answer.never:
            images.is_there(self.board, state, now)  # while it waits for room
        state.why_fewer = answer.reason
        if answer.never:
            self.board.say(log_events.MODEL_NO_ROOM, model=name, reason=answer.reason)
            state.active = False
            self.board.refuse(name, Refusal("no_room", f"{name} {answer.reason}"))

    def _start_missing(self, state: ModelState, now: float, *, blocked: bool) -> None:
        """Extra instances take free room only; the crashed first one of an active model comes back the same way."""
        spec = state.spec
        state.why_fewer = None if self.board.awake(spec.name) else state.why_fewer
        while (have := len(self.board.awake(spec.name))) < spec.instances:
            if not blocked and self._wake(state, now, first=False):
                continue
            footprint = self._footprint(state)
            if state.retry_at > now:
                state.why_fewer = None  # but for the pause, which `why_fewer_at` tells
            elif blocked:
                state.why_fewer = "another model waits for room"
            elif not footprint.known and have > len(rollout.outdated(self.board, state)):
                state.why_fewer = "its footprint is being measured on the first instance"
            else:
                answer = self._plan(spec, footprint, now, first=False)
                if isinstance(answer, NoRoom):
                    state.why_fewer = f"no room: {answer.reason}"
                elif images.is_there(self.board, state, now):
                    self._reserve(state, footprint, answer, now)
                    continue
            return

    def _replace_outdated(self, state: ModelState, now: float, *, blocked: bool) -> None:
        """A new one beside the old where there is room, and then the old one leaves; else the old one leaves first."""
        board, spec = self.board, state.spec
        old = rollout.outdated(board, state)
        if board.runtime_away or not old or not rollout.may_replace_next(board, state, now):
            return
        if len(board.awake(spec.name)) <= spec.instances:
            if blocked:
                return
            footprint = self._footprint(state)
            answer = self._plan(spec, footprint, now, first=False)
            if isinstance(answer, NoRoom) and answer.never:
                state.why_fewer = answer.reason
                return
            if not images.is_there(board, state, now):
                return
            if isinstance(answer, Placement):
                self._reserve(state, footprint, answer, now)
                return
        board.drain(old[0], "its settings have changed", now)

    def _footprint(self, state: ModelState) -> Footprint:
        found = self.footprint_of(state.spec.name, self.board.gpus)
        return Footprint(state.corrected_mib, known=True) if state.corrected_mib > found.mib else found

    def _plan(self, spec: ModelSpec, footprint: Footprint, now: float, *, first: bool) -> Placement | NoRoom:
        """A start that measures a footprint leaves the busy alone, unless they would let it wait for ever."""
        policy, waited_s = self.board.policy, self.board.models[spec.name].waited_s(now)
        need = Need(
            spec.name,
            footprint.mib,
            spec.gpu_count,
            may_evict=first and not self.board.runtime_away,
            may_drain_busy=footprint.known or waited_s >= policy.max_swap_wait_s,
            waited_s=waited_s,
        )
        return plan(need, self.board.gpus, self.board.residents(now), policy, now)

    def _wake(self, state: ModelState, now: float, *, first: bool) -> bool:
        """Wakes the sleeper for which the fewest make way, if there is one that has room where it sleeps.

        Sleeping and waking need no runtime; what it could not stop makes no room while it is away.
        """
        plans = self._wake_plans(state, now, first=first)
        found = [(one, answer) for one, answer in plans if isinstance(answer, Placement)]
        found = [(one, answer) for one, answer in found if not (answer.evict and self.board.runtime_away)]
        if not found:
            return False
        one, placement = min(found, key=lambda each: (len(each[1].evict), len(each[1].sleep)))
        self.board.registry.move(one, State.WAKING, "wanted", now)
        self._make_way(one, placement, now)
        return True

    def _wake_plans(self, state: ModelState, now: float, *, first: bool) -> list[tuple[Instance, Placement | NoRoom]]:
        board = self.board
        answers: list[tuple[Instance, Placement | NoRoom]] = []
        for one in board.registry.by_model(state.spec.name):
            if one.state is State.SLEEPING and one.sick is None:
                need = Need(
                    one.model,
                    one.reserved_mib,
                    len(one.gpu_ids),
                    may_evict=first,
                    waited_s=state.waited_s(now),
                    gpu_ids=one.gpu_ids,
                )
                others = [board.resident(other, now) for other in board.registry if other.gpu_ids and other is not one]
                answers.append((one, plan(need, board.gpus, others, board.policy, now)))
        return answers

    def _rather_waits_for_a_wake(self, state: ModelState, start: Placement, now: float) -> bool:
        """A start that others make way for is worth it only once the wait for a wake has been as long as a start."""
        plans = self._wake_plans(state, now, first=True)
        may_come = any(isinstance(answer, Placement) or not answer.never for _, answer in plans)
        return may_come and bool(start.evict or start.sleep) and state.waited_s(now) < state.starts.expected_s

    def _reserve(self, state: ModelState, footprint: Footprint, placement: Placement, now: float) -> None:
        board, spec = self.board, state.spec
        number = board.registry.free_number(spec.name)
        one = Instance(
            instance_id=board.registry.new_id(),
            name=board.registry.name_of(spec.name, number),
            model=spec.name,
            number=number,
            spec_hash=spec.spec_hash,
            max_in_flight=spec.max_in_flight,
            weight=spec.weight_of(number),
            gpu_ids=placement.gpu_ids,
            reserved_mib=footprint.mib,
            discovery=not footprint.known,
            since=now,
        )
        board.registry.add(one)
        board.say(
            log_events.INSTANCE_PLANNED,
            instance=one.name,
            model=one.model,
            gpus=list(one.gpu_ids),
            footprint_mib=one.reserved_mib,
            evicts=[other.name for other in map(board.registry.get, (*placement.evict, *placement.sleep)) if other],
        )
        self._make_way(one, placement, now)

    def _start_elsewhere(self, now: float) -> None:
        """What clients wait for does not wait for its room, or its turn, where it could start on other GPUs at once."""
        board = self.board
        for one in [one for one in turns.in_turn(board) if one.state is State.STARTING]:
            if not board.activity.waiting(one.model) or (board.is_quiet(one) and board.is_room_free(one)):
                continue
            makes_way = {gpu_id for other in board.evicted_for(one) for gpu_id in other.gpu_ids}  # who may stay then
            quiet = [gpu for gpu in board.gpus if gpu.gpu_id not in makes_way and board.is_calm(gpu.gpu_id)]
            need = Need(one.model, one.reserved_mib, len(one.gpu_ids), may_evict=False)
            plans = [other for other in board.registry if other.waits_for_room and board.gives_way(other, now)]
            others = [board.resident(other, now) for other in board.registry if other is not one and other not in plans]
            answer = plan(need, quiet, others, board.policy, now)
            if isinstance(answer, Placement) and board.is_room_free(one, answer.gpu_ids):
                for other in [one, *(other for other in plans if set(other.gpu_ids) & set(answer.gpu_ids))]:
                    board.cancel(other, now)
                footprint = Footprint(one.reserved_mib, known=not one.discovery)
                self._reserve(board.models[one.model], footprint, answer, now)

    def _make_way(self, one: Instance, placement: Placement, now: float) -> None:
        board, why = self.board, f"makes room for {one.model}"
        one.evicts = (*placement.evict, *placement.sleep)
        for other in board.evicted_for(one):
            asleep = other.instance_id in placement.sleep
            board.say(log_events.EVICTION, model=other.model, instance=other.name, for_model=one.model, asleep=asleep)
            if asleep:
                board.put_to_bed(other, why, now)
            elif other.state in (State.STARTING, State.WAKING):
                board.end_start(other, f"nobody waits for it; {why}", now)
            else:
                board.drain(other, why + self._why_not_asleep(other), now)
            if not board.awake(other.model):
                board.models[other.model].active = False

    def _why_not_asleep(self, one: Instance) -> str:
        """Where the operator may want to know."""
        state = self.board.models[one.model]
        if state.spec.sleeps and self.board.is_shared(one):
            return "; asleep it would give nothing back: its GPU has the machine's memory"
        if not state.spec.sleeps or has_a_place(one, state, self.board.policy):
            return ""
        return f"; asleep it would take {host_mib(one, state)} MiB of the machine's memory (host_memory_mib)"

    def _stop_the_drained(self, now: float) -> None:
        board = self.board
        for one in list(board.registry):
            if one.state is not State.DRAINING or board.activity.in_flight(one.instance_id):
                continue
            if not board.changing(one, engines_only=True):
                board.registry.move(one, State.STOPPING, one.why, now)
                board.say(log_events.INSTANCE_STOPPING, instance=one.name, model=one.model, reason=one.why)
                board.effects.append(e.Stop(one.instance_id))

    def _launch(self, now: float) -> None:
        """Starts and wakes what is reserved: one memory change at a time on a GPU, into room that is really there."""
        board = self.board
        for one in turns.in_turn(board):
            if not (turns.is_next(board, one) and board.is_quiet(one) and board.is_room_free(one)):
                continue
            one.launched_at = now
            if one.state is State.WAKING:
                one.moving, one.asleep = True, False
                board.say(log_events.INSTANCE_WAKING, instance=one.name, model=one.model, gpus=list(one.gpu_ids))
                board.effects.append(e.Wake(one.instance_id))
            else:
                one.launched = True
                board.say(log_events.INSTANCE_STARTING, instance=one.name, model=one.model, gpus=list(one.gpu_ids))
                board.effects.append(e.Start(one.instance_id))
