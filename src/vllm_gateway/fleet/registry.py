# SPDX-License-Identifier: Apache-2.0
"""ContainerRegistry: every instance and its state; the only place where state changes."""

from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass

from vllm_gateway.fleet.instance import Instance, Sickness, State, safe_name
from vllm_gateway.fleet.runtimes import Running
from vllm_gateway.routing import Route, RoutingTable


@dataclass(frozen=True, slots=True)
class Leftover:
    """A container of no instance that could not be removed yet, and why."""

    name: str
    problem: str


class ContainerRegistry:
    """Synchronous: a decision is made without an await in it. `version` grows with every change."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._instances: dict[str, Instance] = {}
        self._by_model: dict[str, list[Instance]] = {}  # asked for at every event and for every model
        self._serial = 0
        self.leftovers: dict[str, Leftover] = {}  # by handle
        self.version = 0

    def __iter__(self) -> Iterator[Instance]:
        return iter(self._instances.values())

    def __len__(self) -> int:
        return len(self._instances)

    def get(self, instance_id: str) -> Instance | None:
        return self._instances.get(instance_id)

    def by_name(self, name: str) -> Instance | None:
        return next((one for one in self if one.name == name), None)

    def by_model(self, model: str) -> list[Instance]:
        """In the order of their numbers."""
        return list(self._by_model.get(model, ()))

    def name_of(self, model: str, number: int) -> str:
        return f"{self._prefix}_{safe_name(model)}_instance_{number}"

    def free_number(self, model: str) -> int:
        """The lowest number that no instance's name takes, nor that of a leftover."""
        taken = {one.name for one in (*self, *self.leftovers.values())}
        number = 1
        while self.name_of(model, number) in taken:
            number += 1
        return number

    def new_id(self) -> str:
        self._serial += 1
        return f"i{self._serial}"

    def add(self, instance: Instance) -> Instance:
        assert self.by_name(instance.name) is None, instance.name
        self._instances[instance.instance_id] = instance
        insort(self._by_model.setdefault(instance.model, []), instance, key=_place)
        self.version += 1
        return instance

    def move(self, instance: Instance, to: State, why: str, now: float) -> None:
        """Raises IllegalTransition."""
        instance.move(to, why, now)
        self.version += 1

    def set_running(self, instance: Instance, running: Running) -> None:
        instance.running = running
        self.version += 1

    def set_share(self, instance: Instance, max_in_flight: int, weight: float) -> None:
        instance.max_in_flight, instance.weight = max_in_flight, weight
        self.version += 1

    def set_suspect(self, instance: Instance, suspect: bool) -> None:
        instance.suspect = suspect
        self.version += 1

    def set_sick(self, instance: Instance, sickness: Sickness | None) -> None:
        instance.sick, instance.misses = sickness, 0
        self.version += 1

    def set_stuck(self, instance: Instance, problem: str) -> None:
        instance.stuck = problem
        self.version += 1

    def remove(self, instance: Instance) -> None:
        if self._instances.pop(instance.instance_id, None) is not None:
            self._by_model[instance.model].remove(instance)
        self.version += 1

    def table(self) -> RoutingTable:
        """The ready instances, as the request side may see them."""
        routes: dict[str, tuple[Route, ...]] = {}
        for one in sorted(self, key=lambda one: (one.model, one.number)):
            if one.state is State.READY and one.running is not None:
                route = Route(
                    one.instance_id,
                    one.name,
                    one.model,
                    one.running.address,
                    one.max_in_flight,
                    one.weight,
                    ready_since=one.since,
                    suspect=one.suspect or one.sick is not None,
                )
                routes[one.model] = (*routes.get(one.model, ()), route)
        silent = [one for one in self if one.sick is not None or (one.external and one.state is State.FAILED)]
        hung = frozenset(one.instance_id for one in silent if one.sick is not None and one.sick.hung)
        ended = frozenset(one.instance_id for one in silent if one.state is State.FAILED and not one.external)
        return RoutingTable(routes, frozenset(one.instance_id for one in silent), hung, ended)


def _place(one: Instance) -> tuple[int, str]:
    """Among the instances of its model."""
    return one.number, one.instance_id
