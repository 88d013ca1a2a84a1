# SPDX-License-Identifier: Apache-2.0
"""While one gateway takes over from another, what the old one still has to do counts as if it were our own."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from vllm_gateway.fleet.instance import Instance
from vllm_gateway.fleet.registry import ContainerRegistry
from vllm_gateway.routing import Activity, Refusal, Traffic


class CannotTakeOver(Exception):
    """The running gateway cannot hand over, or does not answer. The text says why."""


@dataclass(slots=True)
class Work:
    """What a gateway still has to do: requests in flight by instance (`known_as`), and requests waiting by model."""

    in_flight: dict[str, int] = field(default_factory=dict)
    waiting: dict[str, int] = field(default_factory=dict)


def known_as(one: Instance) -> str:
    """To both gateways: by its container, or by its name where somebody else runs it."""
    return (one.running.handle if one.running else "") or one.name


class Predecessor(Protocol):
    """The gateway that is being taken over; `gone` once it has ended. It calls `heard` when its `work` has changed."""

    work: Work
    gone: bool
    heard: Callable[[], None]

    def refuse(self, model: str, refusal: Refusal) -> None:
        """Ends its requests that wait for `model`."""


def in_flight_of(predecessor: Predecessor, registry: ContainerRegistry, instance_id: str) -> int:
    """The requests that it has on an instance."""
    one = registry.get(instance_id)
    return predecessor.work.in_flight.get(known_as(one), 0) if one else 0


class WithPredecessor:
    """An `Activity` to which the requests that a predecessor still has belong too."""

    def __init__(self, own: Activity, predecessor: Predecessor, registry: ContainerRegistry) -> None:
        self._own = own
        self._predecessor = predecessor
        self._registry = registry

    @property
    def alone(self) -> bool:
        return self._predecessor.gone

    def waiting(self, model: str) -> int:
        return self._own.waiting(model) + self._predecessor.work.waiting.get(model, 0)

    def in_flight(self, instance_id: str) -> int:
        return self._own.in_flight(instance_id) + in_flight_of(self._predecessor, self._registry, instance_id)

    def last_used(self, instance_id: str) -> float | None:
        return self._own.last_used(instance_id)

    def heard_at(self, instance_id: str) -> float | None:
        return self._own.heard_at(instance_id)


class ToldToBoth:
    """A `Traffic` that lets a predecessor know whose wait is over."""

    def __init__(self, own: Traffic, predecessor: Predecessor) -> None:
        self.publish, self.measured = own.publish, own.measured
        self._own = own
        self._predecessor = predecessor

    def refuse(self, model: str, refusal: Refusal) -> None:
        self._own.refuse(model, refusal)
        self._predecessor.refuse(model, refusal)
