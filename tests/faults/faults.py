# SPDX-License-Identifier: Apache-2.0
"""What a fault is: what it strikes, when, on which stage it is played, and what it may leave."""

import enum
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from tests.faults.outcomes import Promise
from tests.faults.phases import Phase
from tests.faults.scene import Scene

Act = Callable[[Scene], Awaitable[None]]


class Side(enum.Enum):
    ENGINE = "Engine"
    START = "Start of an instance"
    CLIENT = "Client"
    GATEWAY = "Gateway"
    MACHINE = "Docker and GPUs"


class Stage(enum.Enum):
    SHARED = "one gateway for all phases, with engines as child processes"
    ALONE = "a gateway of its own, with engines as child processes"
    DOCKER = "one gateway for all phases, with engines in containers"
    DOCKER_RESTARTS = "one gateway for all phases, with engines in containers of a Docker that restarts"
    DOCKER_ALONE = "a gateway of its own, with engines in containers"


@dataclass(frozen=True, slots=True)
class Fault:
    """`befalls_new`: only requests that come after it meet it, so that in every phase it is there first.
    `costs_engine`: it ends an instance, and the next cell must not pay for its model's back-off.
    """

    id: str
    name: str
    side: Side
    strike: Act
    promises: Mapping[Phase, Promise]
    stage: Stage = Stage.SHARED
    befalls_new: bool = False
    costs_engine: bool = False
    afterwards: Act = Scene.nothing_left
    model: Mapping[str, object] = field(default_factory=dict)
    """More settings of the cell's model."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """More of its engines' environment."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """More of the gateway's."""
    kinds: tuple[str, ...] = ()
    """Of the requests, if not all that the phase can have."""
    stays_held: bool = False
    """Requests are kept in their phase, also if the fault is there first; what ends them is the gateway."""

    @property
    def instances(self) -> int:
        """That are ready before anything happens: none where the fault is in the start itself."""
        return 0 if self.side is Side.START else 2

    def comes_first(self, phase: Phase) -> bool:
        """A start may fail at once: its requests are not to be found waiting first."""
        if self.side is Side.START:
            return True
        if phase is Phase.QUEUED:
            return False
        return self.befalls_new or (phase is Phase.CONNECTING and self.side is Side.ENGINE)


async def play(scene: Scene, fault: Fault, phase: Phase) -> None:
    """The cell as it happens, up to where every request has ended."""
    scene.phase = phase
    first = fault.comes_first(phase)
    if first:
        await fault.strike(scene)
    if phase is Phase.CONNECTING or (first and not fault.stays_held):
        scene.send(fault.kinds)
    else:
        await scene.bring_into(fault.kinds)
    if not first:
        await fault.strike(scene)
    if not fault.stays_held:
        await scene.release()
    await scene.ended()
