# SPDX-License-Identifier: Apache-2.0
"""The seam between requests and fleet: what the request side may know, and what it reports back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol


class Guard(Protocol):
    """Knows who listens at an address that others could take."""

    def holds(self) -> bool:
        """Whether it is still the instance. Asked before and after a connection is opened; on the loop, and quick."""


class Address(NamedTuple):
    """Where an instance is reached: the path of a Unix socket, or else a host and a port."""

    host: str = ""
    port: int = 0
    path: str = ""
    key: str = ""  # what the instance wants to be shown; never logged
    guard: Guard | None = None

    @property
    def authority(self) -> str:
        """For the Host header."""
        if self.path:
            return "localhost"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return self.path or self.authority

    def __repr__(self) -> str:
        return f"Address({self})"


@dataclass(frozen=True, slots=True)
class Route:
    """One ready instance as the request side sees it. `instance_id` is never used again, `name` may be."""

    instance_id: str
    name: str
    model: str
    address: Address
    max_in_flight: int
    weight: float = 1.0
    ready_since: float = 0.0  # loop time
    suspect: bool = False  # takes no requests until its health check has passed


@dataclass(frozen=True, slots=True)
class EngineMetrics:
    """What an engine says of itself. The counters count tokens and only rise."""

    at: float  # loop time
    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0  # 0..1
    prefix_queries: int = 0
    prefix_hits: int = 0
    cache_tokens: int | None = None  # the capacity of its KV cache
    work: int | None = None  # tokens read and generated, and iterations: as long as this rises, it works


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What is known of a model beside its name; an engine says it, or the configuration does before one has."""

    root: str | None = None  # where its weights are from
    max_model_len: int | None = None  # tokens of prompt and reply together


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """An immutable snapshot: model -> its ready instances, in a stable order, suspects among them.

    `silent`: instances, listed or not, that do not answer, or hang; who waits there had better wait elsewhere. Of
    these, `hung`: those that do not work; `ended`: those that are being ended, where nobody may wait any longer.
    """

    routes: Mapping[str, tuple[Route, ...]] = field(default_factory=dict)
    silent: frozenset[str] = frozenset()
    hung: frozenset[str] = frozenset()
    ended: frozenset[str] = frozenset()

    def of(self, model: str) -> tuple[Route, ...]:
        return self.routes.get(model, ())


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the requests that wait for a model end now. `code` is one of the stable codes in `api.errors`."""

    code: str
    message: str
    retry_after_s: float | None = None


def not_served(model: str) -> Refusal:
    """To those who wait for it when it goes from the configuration."""
    return Refusal("model_not_found", f"{model} is no longer served here.")


class Demand(Protocol):
    """What the request side tells the fleet, and asks it. Every call is synchronous and cheap."""

    def wanted(self, model: str) -> None:
        """A request of `model` waits for an instance."""

    def unwanted(self, model: str) -> None:
        """The last waiting request of `model` has left."""

    def expected_start_s(self, model: str) -> float:
        """How long it will be until an instance of `model` is ready, by the starts there were."""

    def start_share(self, model: str) -> float | None:
        """How much of the start of `model` is done, by the starts there were; None if nothing tells."""

    def why_none(self, model: str) -> str | None:
        """Why nothing of `model` can serve although nothing is started for it, in words for clients; None: it may."""

    def drained(self, instance_id: str) -> None:
        """The last request of an instance that left the table has ended."""

    def suspect(self, instance_id: str, reason: str) -> None:
        """An instance failed a request: check it before it gets more."""


class Activity(Protocol):
    """What the fleet reads from the request side when it decides."""

    @property
    def alone(self) -> bool:
        """Whether no other gateway sends requests to the same instances."""

    def waiting(self, model: str) -> int: ...

    def in_flight(self, instance_id: str) -> int: ...

    def last_used(self, instance_id: str) -> float | None:
        """Loop time of the last begin or end of a request there; None if never."""

    def heard_at(self, instance_id: str) -> float | None:
        """Loop time of the last sign that its engine works: more of a reply, or a whole one; None if never."""


class Traffic(Protocol):
    """What the fleet tells the request side."""

    def publish(self, table: RoutingTable) -> None: ...

    def refuse(self, model: str, refusal: Refusal) -> None:
        """Ends every request that waits for `model`."""

    def measured(self, instance_id: str, metrics: EngineMetrics) -> None:
        """An engine was asked for its metrics."""
