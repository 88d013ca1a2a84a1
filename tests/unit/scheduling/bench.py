# SPDX-License-Identifier: Apache-2.0
"""A queue on the test bench: instances by name, a fleet that only listens, requests that wait as tasks."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from tests.waiting import until
from vllm_gateway.configuration.settings import Retry
from vllm_gateway.routing import Address, Refusal, Route, RoutingTable
from vllm_gateway.scheduling import (
    InstanceView,
    ModelQueue,
    Outcome,
    Placement,
    Queues,
    QueueSettings,
    Refused,
    RequestInfo,
    Scheduler,
)


@dataclass
class RecordedDemand:
    said: list[tuple[str, str]] = field(default_factory=list)

    def wanted(self, model: str) -> None:
        self.said.append(("wanted", model))

    def unwanted(self, model: str) -> None:
        self.said.append(("unwanted", model))

    def why_none(self, model: str) -> str | None:
        return None

    def start_share(self, model: str) -> float | None:
        return None

    def expected_start_s(self, model: str) -> float:
        return 42.0

    def drained(self, instance_id: str) -> None:
        self.said.append(("drained", instance_id))

    def suspect(self, instance_id: str, reason: str) -> None:
        self.said.append(("suspect", instance_id))


class First:
    def __init__(self) -> None:
        self.ended: list[tuple[str, Outcome]] = []

    def choose(self, request: RequestInfo, instances: Sequence[InstanceView]) -> InstanceView:
        return instances[0]

    def finished(self, request: RequestInfo, instance: InstanceView, outcome: Outcome) -> None:
        self.ended.append((request.request_id, outcome))


def request(name: str = "r", client: str = "", **headers: str) -> RequestInfo:
    raw = [(key.replace("_", "-").encode(), value.encode()) for key, value in headers.items()]
    return RequestInfo(name, "m", "/v1/completions", False, b"{}", raw, client)


class Bench:
    """One model's queue, with what it said and whom it placed."""

    def __init__(
        self,
        strategy: Scheduler | None = None,
        *,
        size: int = 10,
        timeout_s: float = 60.0,
        same_after_s: float = 0.0,
    ) -> None:
        self.demand = RecordedDemand()
        self.strategy = strategy or First()
        self.errors: list[Exception] = []
        self.departed: list[str] = []
        self.silent: list[str] = []
        self.elsewhere: dict[str, int] = {}
        self.condemned: list[str] = []
        self.changes: list[tuple[str, bool]] = []
        self.queues = Queues(
            {"m": Placement(self.strategy, failed=self.errors.append, clock=time.monotonic)},
            self.demand,
            QueueSettings(
                size,
                timeout_s,
                {"high": 10, "normal": 0, "low": -10},
                Retry(attempts=3, floor=5, same_after_s=same_after_s),
            ),
            departed=lambda view: self.departed.append(view.instance_id),
            health_changed=lambda view, change: self.changes.append((view.name, change.ejected)),
            abandoned=lambda view, hung, ended: self.silent.append(view.instance_id),
            guilty=lambda request, view: self.condemned.append(request.request_id),
            elsewhere=lambda instance_id: self.elsewhere.get(instance_id, 0),
        )
        self.placed: list[str] = []

    @property
    def queue(self) -> ModelQueue:
        return self.queues.of("m")

    def publish(self, *names: str, places: int = 1, suspects: Sequence[str] = (), silent: Sequence[str] = ()) -> None:
        """A name that ends in `+` is that of an instance which has come back under another id."""
        routes = tuple(
            Route(name, name, "m", Address(path="/" + name.rstrip("+")), places, suspect=name in (*suspects, *silent))
            for name in names
        )
        self.queues.publish(RoutingTable({"m": routes}, frozenset(silent)))

    async def wait(
        self, *requests: str | RequestInfo, failed: frozenset[str] = frozenset(), never: frozenset[str] = frozenset()
    ) -> list["asyncio.Task[InstanceView]"]:
        """Requests that wait, in this order."""
        before = self.queue.waiting
        infos = [one if isinstance(one, RequestInfo) else request(one) for one in requests]
        tasks = [asyncio.create_task(self._acquire(info, failed, never)) for info in infos]
        await until(lambda: self.queue.waiting == before + len(requests))
        return tasks

    async def _acquire(self, info: RequestInfo, failed: frozenset[str], never: frozenset[str]) -> InstanceView:
        view = await self.queue.acquire(info, failed, never=never)
        self.placed.append(info.request_id)
        return view

    async def served(self, view: InstanceView, count: int) -> str:
        """The names of those who have the place one after the other, if each gives it back."""
        before = len(self.placed)
        for number in range(1, count + 1):
            self.queue.release(view, request(), Outcome.OK)
            await until(lambda number=number: len(self.placed) == before + number)  # type: ignore[misc]
        return "".join(self.placed[before:])

    def nothing_is_left(self) -> bool:
        return not self.queue.waiting and not any(view.in_flight for view in self.queue.views)


async def refusal_of(task: "asyncio.Task[InstanceView]") -> Refusal:
    with pytest.raises(Refused) as caught:
        await task
    return caught.value.refusal
