# SPDX-License-Identifier: Apache-2.0
"""One instance and the states it may go through."""

import re
from dataclasses import dataclass, field
from enum import Enum

from vllm_gateway.fleet.runtimes import Running


class State(Enum):
    STARTING = "starting"
    READY = "ready"
    FALLING_ASLEEP = "falling_asleep"
    SLEEPING = "sleeping"
    WAKING = "waking"
    DRAINING = "draining"
    STOPPING = "stopping"
    FAILED = "failed"


# From `draining` and `falling_asleep` back to where it was is a reprieve, from `waking` to `sleeping` a wake given up:
# the request that wanted the room has left before anything was done. `starting -> sleeping` and `-> draining`: an
# earlier gateway's.
_NEXT = {
    State.STARTING: {State.READY, State.SLEEPING, State.DRAINING, State.STOPPING, State.FAILED},
    State.READY: {State.FALLING_ASLEEP, State.DRAINING, State.FAILED},
    State.FALLING_ASLEEP: {State.SLEEPING, State.READY, State.DRAINING, State.FAILED},
    State.SLEEPING: {State.WAKING, State.DRAINING, State.FAILED},
    State.WAKING: {State.READY, State.SLEEPING, State.DRAINING, State.FAILED},
    State.DRAINING: {State.READY, State.SLEEPING, State.STOPPING, State.FAILED},
    State.STOPPING: {State.FAILED},
    State.FAILED: set(),
}
LEAVING = frozenset({State.DRAINING, State.STOPPING, State.FAILED})
RESTING = frozenset({State.FALLING_ASLEEP, State.SLEEPING})


class IllegalTransition(Exception):
    """A bug of ours, never an operating error."""


@dataclass(frozen=True, slots=True)
class Sickness:
    """Why an instance that runs gets no requests."""

    why: str
    since: float
    counted_from: float  # the limit after which it is replaced
    hung: bool = False  # its health check passes, and it does not work


@dataclass(slots=True)
class Instance:
    """Changed only by the ContainerRegistry and, through it, by the supervisor."""

    instance_id: str  # unique in the life of the gateway
    name: str  # unique among the living
    model: str
    number: int
    spec_hash: str
    max_in_flight: int
    weight: float = 1.0
    gpu_ids: tuple[str, ...] = ()
    reserved_mib: int = 0  # on each of its GPUs
    discovery: bool = False  # its footprint is measured when it is ready
    external: bool = False  # somebody else runs it
    adopted: bool = False  # it was started by an earlier gateway
    age_s: float = 0.0  # when it was adopted
    state: State = State.STARTING
    since: float = 0.0
    why: str = "wanted"
    launched: bool = False  # the runtime was told to start it; before that it only holds its reservation
    launched_at: float = 0.0  # or, if that was later, told to wake
    ready_at: float = 0.0
    used_at: float = 0.0  # last, when it was put to bed
    moving: bool = False  # its engine was told to fall asleep or to wake, and has yet to answer
    asleep: bool = False  # its engine sleeps: it holds `asleep_mib` on each of its GPUs
    asleep_mib: int = 0
    host_mib: int = 0  # of the machine's memory, from its first sleep until it ends
    suspect: bool = False  # not routed until a health check has passed
    misses: int = 0  # of its health check, in a row
    sick: Sickness | None = None  # not routed until it answers and works again
    stuck: str | None = None  # why the runtime could not end it yet
    running: Running | None = None
    evicts: tuple[str, ...] = field(default=())  # instances that leave for it

    @property
    def leaving(self) -> bool:
        return self.state in LEAVING

    @property
    def resting(self) -> bool:
        return self.state in RESTING

    @property
    def waits_for_room(self) -> bool:
        """It holds a reservation, and nothing has been done for it yet."""
        return (self.state is State.STARTING and not self.launched) or (self.state is State.WAKING and not self.moving)

    @property
    def promised_mib(self) -> int:
        """On each of its GPUs, once everything that is under way is done."""
        if self.leaving:
            return 0
        return self.asleep_mib if self.resting else self.reserved_mib

    @property
    def held_mib(self) -> int:
        """On each of its GPUs at most, now."""
        if not self.launched:
            return 0
        return self.asleep_mib if self.asleep else self.reserved_mib

    @property
    def booked_mib(self) -> int:
        """On each of its GPUs: what nobody else may have."""
        return max(self.promised_mib, self.held_mib)

    def move(self, to: State, why: str, now: float) -> None:
        """Raises IllegalTransition."""
        if to not in _NEXT[self.state]:
            raise IllegalTransition(f"{self.name}: {self.state.value} -> {to.value} ({why})")
        if to is State.READY and (self.state is State.WAKING or not self.ready_at):
            self.ready_at = now
        self.state, self.why, self.since, self.moving = to, why, now, False


def safe_name(model: str) -> str:
    """`model` as Docker allows it in a container's name."""
    return re.sub(r"[^a-zA-Z0-9_.-]+", "-", model).strip("-.") or "model"
