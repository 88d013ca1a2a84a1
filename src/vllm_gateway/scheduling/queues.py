# SPDX-License-Identifier: Apache-2.0
"""All queues together: takes the routing table, and tells the fleet how busy each instance is."""

from collections.abc import Callable, Mapping

from vllm_gateway.routing import Address, Demand, EngineMetrics, Refusal, Route, RoutingTable, not_served
from vllm_gateway.scheduling.health import Change
from vllm_gateway.scheduling.placement import Placement
from vllm_gateway.scheduling.queue import ModelQueue
from vllm_gateway.scheduling.types import InstanceView, RequestInfo
from vllm_gateway.scheduling.waiting import QueueSettings


class Queues:
    """Implements `Traffic` and `Activity` of the routing seam."""

    def __init__(
        self,
        placements: Mapping[str, Placement],
        demand: Demand,
        settings: QueueSettings,
        *,
        departed: Callable[[InstanceView], None],
        health_changed: Callable[[InstanceView, Change], None],
        guilty: Callable[[RequestInfo, InstanceView], None] = lambda request, view: None,
        elsewhere: Callable[[str], int] = lambda instance_id: 0,
        abandoned: Callable[[InstanceView, bool, bool], None] = lambda view, hung, ended: None,
        heard_at: Callable[[Address], float | None] = lambda address: None,
    ) -> None:
        """`guilty` hears of requests that end instances.

        `elsewhere`: how many requests another gateway has on an instance; `recount` tells that it has changed.

        `abandoned` hears of those that do not answer while another one does, and of those that are ended for it.
        `heard_at`: when a reply last went on there.
        """
        self._demand = demand
        self._elsewhere = elsewhere
        self._departed = departed
        self._health_changed = health_changed
        self._guilty = guilty
        self._abandoned = abandoned
        self._heard_at = heard_at
        self._views: dict[str, InstanceView] = {}
        self._listed: frozenset[str] = frozenset()
        self._queues: dict[str, ModelQueue] = {}
        self.configure(placements, settings)

    def configure(self, placements: Mapping[str, Placement], settings: QueueSettings) -> None:
        """Requests for models that are gone are refused if they wait, and end normally if they are in flight."""
        for model, placement in placements.items():
            if queue := self._queues.get(model):
                queue.configure(placement, settings)
            else:
                self._queues[model] = ModelQueue(
                    model,
                    placement,
                    self._demand,
                    settings,
                    left=self._left,
                    health_changed=self._health_changed,
                    guilty=self._guilty,
                )
        for model in self._queues.keys() - placements.keys():
            self._queues.pop(model).close(not_served(model))

    def close(self, refusal: Refusal) -> None:
        """Refuses all who wait or come."""
        for queue in self._queues.values():
            queue.close(refusal)

    @property
    def unfinished(self) -> int:
        """Requests in flight and waiting."""
        waiting = sum(queue.waiting for queue in self._queues.values())
        return waiting + sum(view.own for view in self._views.values())

    def of(self, model: str) -> ModelQueue:
        return self._queues[model]

    def publish(self, table: RoutingTable) -> None:
        self._listed = frozenset(route.instance_id for routes in table.routes.values() for route in routes)
        for model, queue in self._queues.items():
            queue.update(table.of(model), self._view, table.silent)
        for view in [view for view in self._views.values() if view.instance_id not in self._listed]:
            self._departed(view)
            if not view.own:
                self._forget(view)
        for view in filter(None, map(self._views.get, table.silent)):
            others = self._queues[view.model].views if view.model in self._queues else ()
            ended = view.instance_id in table.ended
            if view.own and (others or ended):
                self._abandoned(view, view.instance_id in table.hung, ended)

    def refuse(self, model: str, refusal: Refusal) -> None:
        if queue := self._queues.get(model):
            queue.refuse(refusal)

    def is_ejected(self, model: str, instance_id: str) -> bool:
        queue = self._queues.get(model)
        return queue is not None and queue.is_ejected(instance_id)

    @property
    def alone(self) -> bool:
        return True

    def waiting(self, model: str) -> int:
        queue = self._queues.get(model)
        return queue.waiting if queue else 0

    def in_flight(self, instance_id: str) -> int:
        """But for those of another gateway."""
        view = self._views.get(instance_id)
        return view.in_flight - view.elsewhere if view else 0

    def last_used(self, instance_id: str) -> float | None:
        view = self._views.get(instance_id)
        return view.last_used if view else None

    def heard_at(self, instance_id: str) -> float | None:
        view = self._views.get(instance_id)
        if view is None:
            return None
        heard_at = self._heard_at(view.address)
        return view.answered_at if heard_at is None else max(heard_at, view.answered_at or 0.0)

    def lists(self, instance_id: str) -> bool:
        """Whether it is there, be it as a suspect."""
        return instance_id in self._listed

    def view(self, instance_id: str) -> InstanceView | None:
        return self._views.get(instance_id)

    def _view(self, route: Route) -> InstanceView:
        view = self._views.get(route.instance_id)
        if view is None:
            view = InstanceView(route.instance_id, route.name, route.model, route.address, route.max_in_flight)
            self._count_what_runs_there(view)
            self._views[route.instance_id] = view
        view.ready_since, view.max_in_flight, view.weight = route.ready_since, route.max_in_flight, route.weight
        return view

    def _count_what_runs_there(self, view: InstanceView) -> None:
        """An engine that was out of the table for a moment has its work yet, whatever it is called now."""
        for before in map(InstanceView.latest, self._views.values()):
            is_same = before.model == view.model and before.address == view.address
            if is_same and before.instance_id not in self._listed:
                before.again = view
                view.in_flight = before.in_flight - before.elsewhere
                break
        view.elsewhere = self._elsewhere(view.instance_id)
        view.in_flight += view.elsewhere

    def recount(self) -> None:
        """What another gateway has on the instances has changed."""
        for view in self._views.values():
            before, view.elsewhere = view.elsewhere, self._elsewhere(view.instance_id)
            view.in_flight += view.elsewhere - before
        for queue in self._queues.values():
            queue.serve_waiters()

    def measured(self, instance_id: str, metrics: EngineMetrics) -> None:
        if view := self._views.get(instance_id):
            view.metrics = metrics

    def _forget(self, view: InstanceView) -> None:
        self._views.pop(view.instance_id, None)
        if queue := self._queues.get(view.model):
            queue.placement.departed(view.instance_id)

    def _left(self, view: InstanceView) -> None:
        if not view.own:
            self._forget(view)
            self._demand.drained(view.instance_id)
        if view.again is not None and (queue := self._queues.get(view.model)):
            queue.serve_waiters()
