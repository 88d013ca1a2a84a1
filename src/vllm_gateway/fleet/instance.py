# SPDX-License-Identifier: Apache-2.0
"""One instance and the states it may go through."""

import re
from dataclasses import dataclass, field
from enum import Enum

from vllm_gateway.fleet.runtimes import Running


class State(Enum):
    STARTING = "starting"
    READY = "ready"
    SLEEPING = "sleeping"
    DRAINING = "draining"
    STOPPING = "stopping"
    FAILED = "failed"


# `draining -> ready` is a reprieve: the request that wanted the room has left before anything was stopped.
_NEXT = {
    State.STARTING: {State.READY, State.STOPPING, State.FAILED},
    State.READY: {State.SLEEPING, State.DRAINING, State.FAILED},
    State.SLEEPING: {State.READY, State.DRAINING, State.FAILED},
    State.DRAINING: {State.READY, State.STOPPING, State.FAILED},
    State.STOPPING: {State.FAILED},
    State.FAILED: set(),
}
LEAVING = frozenset({State.DRAINING, State.STOPPING, State.FAILED})


class IllegalTransition(Exception):
    """A bug of ours, never an operating error."""


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
    state: State = State.STARTING
    since: float = 0.0
    why: str = "wanted"
    launched: bool = False  # the runtime was told to start it; before that it only holds its reservation
    launched_at: float = 0.0
    ready_at: float = 0.0
    suspect: bool = False  # not routed until a health check has passed
    stuck: str | None = None  # why the runtime could not end it yet
    running: Running | None = None
    evicts: tuple[str, ...] = field(default=())  # instances that leave for it

    @property
    def leaving(self) -> bool:
        return self.state in LEAVING

    def move(self, to: State, why: str, now: float) -> None:
        """Raises IllegalTransition."""
        if to not in _NEXT[self.state]:
            raise IllegalTransition(f"{self.name}: {self.state.value} -> {to.value} ({why})")
        self.state, self.why, self.since = to, why, now
        if to is State.READY:
            self.ready_at = self.ready_at or now


def safe_name(model: str) -> str:
    """`model` as Docker allows it in a container's name."""
    return re.sub(r"[^a-zA-Z0-9_.-]+", "-", model).strip("-.") or "model"
