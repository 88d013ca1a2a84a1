# SPDX-License-Identifier: Apache-2.0
"""What the supervisor hears (events) and what it asks for (effects)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllm_gateway.allocator.types import Gpu, Policy
from vllm_gateway.fleet.models import ModelSpec
from vllm_gateway.fleet.runtimes import Running
from vllm_gateway.routing import Refusal


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request of the model waits for an instance."""

    model: str


@dataclass(frozen=True, slots=True)
class Unwanted:
    """The last waiting request of the model has left."""

    model: str


@dataclass(frozen=True, slots=True)
class Drained:
    """A draining instance has no request left."""

    instance_id: str


@dataclass(frozen=True, slots=True)
class ImageFetched:
    """The image that a model needs is there."""

    model: str
    image: str


@dataclass(frozen=True, slots=True)
class ImageNotFetched:
    """It could not be fetched. `reason` is what clients may know; for operators alone: `detail`."""

    model: str
    image: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Launched:
    """The runtime has started it; it is not ready yet."""

    instance_id: str
    running: Running


@dataclass(frozen=True, slots=True)
class BecameReady:
    """Its health check passed. `measured_mib`: what it took on its fullest GPU, if that could be seen."""

    instance_id: str
    measured_mib: int | None = None


@dataclass(frozen=True, slots=True)
class FellAsleep:
    """Its engine sleeps. `measured_mib`: what it still holds on its fullest GPU, if that could be seen."""

    instance_id: str
    measured_mib: int | None = None


@dataclass(frozen=True, slots=True)
class WokeUp:
    """Its engine is awake again."""

    instance_id: str


@dataclass(frozen=True, slots=True)
class NotMoved:
    """It neither fell asleep nor woke up as it was told, or nobody knows whether it did."""

    instance_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Died:
    """It ended, or could not be started. `reason` is what clients may know.

    For operators alone: `detail`, what the runtime says of it, and `log_tail`, the engine's last lines.
    """

    instance_id: str
    reason: str
    log_tail: tuple[str, ...] = ()
    exit_code: int | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Gone:
    """It is removed and its memory has been seen to be free (or the limit for that has passed)."""

    instance_id: str


@dataclass(frozen=True, slots=True)
class Stuck:
    """The runtime could not end it this time."""

    instance_id: str
    problem: str


@dataclass(frozen=True, slots=True)
class Suspected:
    """A request could not reach it."""

    instance_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Cleared:
    """A suspect, or one that had missed health checks, has passed one."""

    instance_id: str


@dataclass(frozen=True, slots=True)
class Missed:
    """It did not pass a health check."""

    instance_id: str
    why: str


@dataclass(frozen=True, slots=True)
class Hung:
    """It has requests, nothing of them moves, and one of our own was not answered either."""

    instance_id: str
    why: str


@dataclass(frozen=True, slots=True)
class Works:
    """One that hung does not any more."""

    instance_id: str


@dataclass(frozen=True, slots=True)
class GpusRead:
    gpus: Sequence[Gpu]


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Reconfigured:
    """The configuration has changed."""

    specs: Mapping[str, ModelSpec]
    policy: Policy
    start_timeout_s: float
    sick_limit_s: float


@dataclass(frozen=True, slots=True)
class Inherited:
    """Models that are in the configuration no more, and still run: another gateway has requests there."""

    specs: Sequence[ModelSpec]


@dataclass(frozen=True, slots=True)
class Retry:
    """An operator wants a model that failed to be tried again now."""

    model: str


@dataclass(frozen=True, slots=True)
class HandOver:
    """Another gateway decides from now on (`active`), or does not after all."""

    active: bool


Event = (
    Wanted
    | Unwanted
    | Drained
    | ImageFetched
    | ImageNotFetched
    | Launched
    | BecameReady
    | FellAsleep
    | WokeUp
    | NotMoved
    | Died
    | Gone
    | Stuck
    | Suspected
    | Cleared
    | Missed
    | Hung
    | Works
    | GpusRead
    | Tick
    | Reconfigured
    | Inherited
    | HandOver
    | Retry
)


@dataclass(frozen=True, slots=True)
class FetchImage:
    """Tell when it is there, or cannot be fetched."""

    model: str
    image: str


@dataclass(frozen=True, slots=True)
class LeaveImage:
    """The model needs it no more."""

    model: str
    image: str


@dataclass(frozen=True, slots=True)
class Start:
    instance_id: str


@dataclass(frozen=True, slots=True)
class Stop:
    instance_id: str


@dataclass(frozen=True, slots=True)
class Sleep:
    instance_id: str


@dataclass(frozen=True, slots=True)
class Wake:
    instance_id: str


@dataclass(frozen=True, slots=True)
class Remove:
    """Clear away what is left of a failed instance."""

    instance_id: str


@dataclass(frozen=True, slots=True)
class CheckHealth:
    instance_id: str


@dataclass(frozen=True, slots=True)
class Refuse:
    model: str
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class KeepFootprint:
    model: str
    mib: int


@dataclass(frozen=True, slots=True)
class CorrectFootprint:
    """The engine could not start with the footprint that it had."""

    model: str
    mib: int
    was_mib: int


Effect = (
    FetchImage
    | LeaveImage
    | Start
    | Stop
    | Sleep
    | Wake
    | Remove
    | CheckHealth
    | Refuse
    | KeepFootprint
    | CorrectFootprint
)
