# SPDX-License-Identifier: Apache-2.0
"""What the supervisor knows of each model: what is wanted, and how that went so far."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from vllm_gateway.allocator.types import Gpu
from vllm_gateway.fleet.start_times import StartTimes

FIRST_BACKOFF_S = 1.0
LONGEST_BACKOFF_S = 300.0
LONGEST_WAIT_S = 10.0  # for the end of a back-off; who would have to wait longer is told so
UNKNOWN_WAKE_S = 5.0


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
    footprint_mib: int | None = None  # as the operator declares it, and not to be corrected
    weights: tuple[float, ...] = ()
    sleeps: bool = False  # instead of being stopped, where that makes the room
    parameters_mib: int | None = None  # what its engines copy to the machine's memory; None: unknown
    image: str = ""  # that has to be there before it can be started

    def weight_of(self, number: int) -> float:
        """Instances are numbered from 1."""
        return self.weights[number - 1] if number <= len(self.weights) else 1.0


@dataclass(slots=True)
class Image:
    """What is known of the image that a model needs."""

    fetching: str = ""  # the one that is being fetched
    fetched: str = ""
    fetched_at: float = 0.0
    wanted_at: float = 0.0  # by a start


@dataclass(slots=True)
class ModelState:
    spec: ModelSpec
    active: bool = False  # asked for, and not put away since
    waits_since: float | None = None  # requests wait, and nothing is ready
    waited_for_at: float = -math.inf  # when requests were last seen to wait
    failures: int = 0  # in a row
    failed_at: float = 0.0
    retry_at: float = 0.0
    start_failed: bool = False  # the last of those failures was one of a start
    last_error: str | None = None
    told: str = ""  # of that to clients
    failure_id: str | None = None  # under which the log has it
    log_tail: tuple[str, ...] = ()  # of the last instance that failed
    corrections: int = 0  # of its footprint, since an instance of it was ready
    corrected_mib: int = 0  # what its footprint must at least be
    why_fewer: str | None = None  # why fewer run than wanted
    why_sick_stay: str | None = None  # why none of its sick instances is replaced now
    looks_sick: bool = False  # more than half of it
    ends_sick: bool = False  # an operator wants them replaced, however many there are
    used_at: float = 0.0
    removed: bool = False  # no longer in the configuration; kept until its last instance is gone
    starts: StartTimes = field(default_factory=StartTimes)
    wakes: StartTimes = field(default_factory=lambda: StartTimes(UNKNOWN_WAKE_S))
    asleep_mib: int | None = None  # what an instance of it held when it slept
    image: Image = field(default_factory=Image)

    def refuses(self, now: float) -> bool:
        """Whether its back-off is none to be waited for: as long as it works at all, a death costs a delay."""
        return self.retry_at > now and (self.start_failed or self.retry_at - now > LONGEST_WAIT_S)

    def why_fewer_at(self, now: float) -> str | None:
        """A pause is counted down, and over when it is over: what was said as it began would stay."""
        if self.active and self.retry_at > now:
            return f"waits {math.ceil(self.retry_at - now)} s after a failed start: {self.last_error}"
        return self.why_fewer

    def waited_s(self, now: float) -> float:
        return 0.0 if self.waits_since is None else now - self.waits_since


@dataclass(frozen=True, slots=True)
class Footprint:
    mib: int
    known: bool  # False: an estimate; the start is a discovery run


FootprintOf = Callable[[str, Sequence[Gpu]], Footprint]


def new_failure_id(what: str, now: float) -> str:
    """Under which clients are told that `what` has failed, and the log has it."""
    return blake2b(f"{what} {now!r}".encode(), digest_size=4).hexdigest()


def backoff_s(failures: int) -> float:
    """1, 2, 4, ... seconds, at most LONGEST_BACKOFF_S."""
    return min(FIRST_BACKOFF_S * 2.0 ** (failures - 1), LONGEST_BACKOFF_S)
