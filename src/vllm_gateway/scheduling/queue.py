# SPDX-License-Identifier: Apache-2.0
"""The queue of one model: its ready instances, who is where, and who waits."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from vllm_gateway.routing import Demand, Refusal, Route
from vllm_gateway.scheduling.placement import Placement
from vllm_gateway.scheduling.types import InstanceView, Outcome, RequestInfo


class Refused(Exception):
    """The request gets no instance. `refusal` says why and what to do."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class _Waiter:
    __slots__ = ("place", "request")

    def __init__(self, request: RequestInfo, place: "asyncio.Future[InstanceView]") -> None:
        self.request = request
        self.place = place


class ModelQueue:
    """Binds late: a request is given its instance when a place is free, not before. First come, first served."""

    def __init__(
        self,
        model: str,
        placement: Placement,
        demand: Demand,
        *,
        size: int,
        timeout_s: float,
        drained: Callable[[InstanceView], None],
    ) -> None:
        self.model = model
        self.placement = placement
        self.served = 0
        self._demand = demand
        self._size = size
        self._timeout_s = timeout_s
        self._drained = drained
        self._views: list[InstanceView] = []
        self._ids: frozenset[str] = frozenset()
        self._waiters: deque[_Waiter] = deque()
        self._placed_by: dict[RequestInfo, Placement] = {}  # in flight: a strategy hears only of what it has placed
        self._closed: Refusal | None = None

    def configure(self, placement: Placement, *, size: int, timeout_s: float) -> None:
        """For every request that is placed from now on."""
        self.placement = placement
        self._size = size
        self._timeout_s = timeout_s

    @property
    def views(self) -> Sequence[InstanceView]:
        return self._views

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    async def acquire(self, request: RequestInfo) -> InstanceView:
        """The instance that takes `request`; give it back with `release`. Raises Refused."""
        if self._closed is not None:
            raise Refused(self._closed)
        if not self._waiters and (chosen := self._choose(request)) is not None:
            return chosen
        if len(self._waiters) >= self._size:
            text = f"{self._size} requests wait for {self.model} already. Try again later."
            raise Refused(Refusal("queue_full", text, retry_after_s=1.0))
        return await self._wait(request)

    async def _wait(self, request: RequestInfo) -> InstanceView:
        waiter = _Waiter(request, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        taken = False
        try:
            self._demand.wanted(self.model)
            async with asyncio.timeout(self._timeout_s):
                view = await waiter.place
            taken = True
            return view
        except TimeoutError:
            text = f"No instance of {self.model} was free within {self._timeout_s:g} s (queue_timeout_s)."
            raise Refused(Refusal("queue_timeout", text, retry_after_s=10.0)) from None
        finally:
            if not taken:
                self._give_up(waiter)
            if not self._waiters:
                self._demand.unwanted(self.model)

    def _give_up(self, waiter: _Waiter) -> None:
        """The place may have come in the same moment in which its request was given up."""
        place = waiter.place
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        if place.done() and not place.cancelled() and place.exception() is None:
            self.release(place.result(), waiter.request, Outcome.CLIENT_GONE)

    def release(self, view: InstanceView, request: RequestInfo, outcome: Outcome) -> None:
        """Gives a place back; the head of the queue takes it at once."""
        view.in_flight -= 1
        view.last_used = asyncio.get_running_loop().time()
        assert view.in_flight >= 0, view
        if outcome in (Outcome.UNREACHABLE, Outcome.BROKEN, Outcome.SERVER_ERROR):
            view.failures += 1
        self._placed_by.pop(request, self.placement).finished(request, view, outcome)
        if view.instance_id in self._ids:
            self._serve_waiters()
        elif view.in_flight == 0:
            self._drained(view)

    def update(self, routes: Sequence[Route], view_of: Callable[[Route], InstanceView]) -> None:
        """Takes the model's part of a new routing table."""
        self._views = [view_of(route) for route in routes]
        self._ids = frozenset(view.instance_id for view in self._views)
        self.placement.listed(self._views)
        self._serve_waiters()

    def close(self, refusal: Refusal) -> None:
        """Nobody gets a place any more; requests in flight end as they would."""
        self._closed = refusal
        self._views, self._ids = [], frozenset()
        self.refuse(refusal)

    def refuse(self, refusal: Refusal) -> None:
        waiters, self._waiters = self._waiters, deque()
        for waiter in waiters:
            if not waiter.place.done():
                waiter.place.set_exception(Refused(refusal))

    def _serve_waiters(self) -> None:
        while self._waiters:
            waiter = self._waiters[0]
            if waiter.place.done():
                self._waiters.popleft()
            elif (chosen := self._choose(waiter.request)) is not None:
                self._waiters.popleft()
                waiter.place.set_result(chosen)
            else:
                return

    def _choose(self, request: RequestInfo) -> InstanceView | None:
        open_to_all = tuple(view for view in self._views if view.in_flight < view.max_in_flight)
        if not open_to_all:
            return None
        chosen = self.placement.choose(request, open_to_all)
        self._placed_by[request] = self.placement
        chosen.in_flight += 1
        chosen.total += 1
        chosen.last_used = asyncio.get_running_loop().time()
        self.served += 1
        return chosen
