# SPDX-License-Identifier: Apache-2.0
"""The queue of one model: its ready instances, who is where, and who waits."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from functools import partial

from vllm_gateway.routing import Demand, Refusal, Route
from vllm_gateway.scheduling.bound import GONE, Bound
from vllm_gateway.scheduling.budget import RetryBudget
from vllm_gateway.scheduling.health import Change, PassiveHealth
from vllm_gateway.scheduling.line import FairLine
from vllm_gateway.scheduling.placement import Placement
from vllm_gateway.scheduling.quarantine import DECIDED_S, Lost
from vllm_gateway.scheduling.retry_after import Turnover, retry_after_s
from vllm_gateway.scheduling.suspicion import Suspicion
from vllm_gateway.scheduling.types import InstanceView, Outcome, RequestInfo
from vllm_gateway.scheduling.waiting import NO_PAST, NORMAL, NotAgain, Past, QueueSettings, Refused, Waiter

_WITHOUT_WORK = frozenset({"/tokenize", "/detokenize"})
"""Answered by what stands in front of an engine: says nothing of it."""
_OK = Outcome.OK  # looked up for each request: as an attribute of the class it costs ten times as much
_FAILURES = frozenset({Outcome.UNREACHABLE, Outcome.BROKEN, Outcome.SERVER_ERROR})


class ModelQueue:
    """Binds late: a request is given its instance when a place is free, not before.

    The order of those who wait is `FairLine`'s. Before them come requests that an instance has failed already: they
    wait for an instance that has not failed them, as long as there is one. If there is none, they come back to one that
    has, after a pause: an engine that is ending is gone by then, and its successor awaited; but never to one where they
    have waited for as long as may be. They are few (`RetryBudget`), but for those of an instance that has died: what it
    had to do, others have to do, by way of `Quarantine`, as one of them may have been its end.
    Between two calls, nobody waits who could have a place.
    """

    def __init__(
        self,
        model: str,
        placement: Placement,
        demand: Demand,
        settings: QueueSettings,
        *,
        left: Callable[[InstanceView], None],
        health_changed: Callable[[InstanceView, Change], None],
        guilty: Callable[[RequestInfo, InstanceView], None],
    ) -> None:
        """`left` hears of each request that ends on an instance which is not listed any more.

        `guilty` hears of each that ends instances.
        """
        self.model = model
        self.placement = placement
        self.served = 0
        self.retries_denied = 0
        self._retries = RetryBudget(settings.retry)
        self._health = PassiveHealth(settings.ejection)
        self._demand = demand
        self._settings = settings
        self._left = left
        self._health_changed = health_changed
        self._suspicion = Suspicion(
            model, guilty=guilty, free=self._add, waiting=self._have_failed, serve=self.serve_waiters
        )
        self._quarantine = self._suspicion.quarantine
        self._views: list[InstanceView] = []
        self._ids: frozenset[str] = frozenset()
        self._listed: frozenset[str] = frozenset()  # suspects too
        self._alive: frozenset[str] = frozenset()  # of those listed; what the others had to do, others have to do
        self._line: FairLine[Waiter] = FairLine()
        self._again: OrderedDict[Past, OrderedDict[Waiter, None]] = OrderedDict()  # by who failed them
        self._undecided: dict[Waiter, None] = {}  # may come again if those who failed them are dead
        self._bound = Bound()
        self._placed: dict[RequestInfo, tuple[Placement, float]] = {}  # in flight: by which strategy, and when
        self._turnover = Turnover()
        self._closed: Refusal | None = None

    def configure(self, placement: Placement, settings: QueueSettings) -> None:
        """For every request that is placed from now on."""
        self.placement = placement
        if settings.retry != self._settings.retry:
            self._retries = RetryBudget(settings.retry)
        self._health.configure(settings.ejection)
        self._settings = settings

    @property
    def views(self) -> Sequence[InstanceView]:
        return self._views

    @property
    def waiting(self) -> int:
        again = sum(map(len, self._again.values()))
        return self._line.length + again + len(self._undecided) + len(self._quarantine) + len(self._bound)

    @property
    def quarantined(self) -> int:
        """How many wait because one of them may have ended an instance."""
        return len(self._quarantine)

    async def acquire(
        self,
        request: RequestInfo,
        failed: frozenset[str] = frozenset(),
        *,
        never: frozenset[str] = frozenset(),
        lost: Lost | None = None,
        waited_s: float = 0.0,
    ) -> InstanceView:
        """The instance that takes `request`; give it back with `release`. Raises Refused or NotAgain.

        `failed` are the instances that have failed this request, `never` those of them that it is not to come back to,
        even if there is no other; `lost` says more if the last one broke off; `waited_s` is what it has waited before.
        """
        if self._closed is not None:
            raise Refused(self._closed)
        if self._suspicion.poison.any:
            self._suspicion.check(request)
        if self._suspicion.cut.any and not failed:
            lost = self._suspicion.of_earlier_try(request)
        past = Past(failed, never) if failed else NO_PAST
        may_come = self._may_come_again(past, lost) if failed or lost else True
        if may_come is False:
            self.retries_denied += 1
            raise NotAgain
        suspected = lost is not None and self._quarantine.wants(lost)
        if may_come and not suspected and not self._line.length and (open_to_it := self._open(past)):
            return self._place(request, failed, open_to_it)
        waiter = Waiter(request, past, lost, self._priority(request))
        if self.waiting >= self._settings.size and not failed:
            self._make_room_for(waiter)
        if may_come:
            self._add(waiter)
        else:
            self._undecided[waiter] = None
        if suspected:
            self.serve_waiters()
        return await self._wait(waiter, waited_s)

    def acquire_at_once(self, request: RequestInfo) -> InstanceView | None:
        """As `acquire`, of a request that nothing has failed, while there is a place and nobody waits; else None."""
        if (
            self._closed is None
            and not self._suspicion.poison.any
            and not self._suspicion.cut.any
            and not self._line.length
            and (open_to_it := self._open())
        ):
            return self._place(request, frozenset(), open_to_it)
        return None

    async def acquire_at(self, instance_id: str, request: RequestInfo) -> InstanceView:
        """As `acquire`, for a request that only this instance can serve, and only once."""
        if self._closed is not None:
            raise Refused(self._closed)
        if self._suspicion.poison.any:
            self._suspicion.check(request)
        if instance_id not in self._listed:
            raise Refused(GONE)
        waiter = Waiter(request, Past(), None, self._priority(request))
        if self.waiting >= self._settings.size:
            self._make_room_for(waiter)
        self._bound.add(waiter, instance_id)
        self.serve_waiters()
        return await self._wait(waiter, 0.0) if waiter in self._bound else await waiter.place

    def _have_failed(self) -> list[Waiter]:
        return [*(waiter for same in self._again.values() for waiter in same), *self._undecided]

    def _make_room_for(self, newcomer: Waiter) -> None:
        """Raises Refused if nobody makes way."""
        out = self._line.make_way(newcomer.client, newcomer.priority)
        text = f"{self._settings.size} requests wait for {self.model} already. Try again later."
        refused = Refused(Refusal("queue_full", text, retry_after_s=self.retry_after_s()))
        if out is None:
            raise refused
        out.fail(refused)

    def has_tries_left(self, tries: int) -> bool:
        """Whether so many tries are not the last ones, if the budget allows."""
        return tries < self._settings.retry.attempts

    def is_ejected(self, instance_id: str) -> bool:
        return self._health.is_ejected(instance_id)

    @property
    def ejections(self) -> int:
        """How often an instance was ejected."""
        return self._health.ejections

    def retry_after_s(self) -> int:
        """When a client that is sent away should come again."""
        now = asyncio.get_running_loop().time()
        still_s = min((now - (view.last_used or now) for view in self._views), default=0.0)
        return retry_after_s(
            start_s=0.0 if self._views else self._demand.expected_start_s(self.model),
            waiting=self.waiting,
            served_per_s=self._turnover.per_s(still_s),
        )

    async def _wait(self, waiter: Waiter, waited_s: float) -> InstanceView:
        asked_s = waiter.asked_s
        limit_s = min(asked_s, self._settings.timeout_s)
        taken = False
        timers: list[asyncio.TimerHandle] = []
        if waiter.past.failed:
            loop, pause_s = asyncio.get_running_loop(), self._settings.retry.same_after_s
            timers.append(loop.call_later(pause_s, self._let_repeat, waiter))
        if waiter in self._undecided:
            timers.append(asyncio.get_running_loop().call_later(DECIDED_S, self._let_come, waiter))
        try:
            self._demand.wanted(self.model)
            async with asyncio.timeout(max(0.0, limit_s - waited_s)):
                view = await waiter.place
            taken = True
            return view
        except TimeoutError:
            raise Refused(self._late(asked_s)) from None
        finally:
            for timer in timers:
                timer.cancel()
            if not taken:
                self._give_up(waiter)
            if not self.waiting:
                self._demand.unwanted(self.model)

    def _late(self, asked_s: float) -> Refusal:
        limit_s = self._settings.timeout_s
        why = self._demand.why_none(self.model)
        more = f" {why}." if why else ""
        if asked_s < limit_s:
            text = f"No instance of {self.model} was free within {asked_s:g} s (X-Request-Timeout).{more}"
            return Refusal("request_timeout", text, retry_after_s=self.retry_after_s())
        text = f"No instance of {self.model} was free within {limit_s:g} s (queue_timeout_s).{more}"
        return Refusal("queue_timeout", text, retry_after_s=self.retry_after_s())

    def _priority(self, request: RequestInfo) -> int:
        priorities = self._settings.priorities
        name = request.header("x-priority") or NORMAL
        return priorities.get(name.lower(), priorities[NORMAL])

    # those who wait

    def _may_come_again(self, past: Past, lost: Lost | None) -> bool | None:
        """Whether a request that has failed may be tried again; None as long as it is not known.

        It is a repetition, of which there may be few, unless those who failed it are dead. Of a suspect that is known
        soon; if that broke off, the request might end others, too. If there is nobody whom it may come to, there must
        be a successor to wait for.
        """
        failed = past.failed
        if lost is not None and lost.instance_id in self._alive and lost.instance_id not in self._ids:
            return None
        if self._is_all(past.never):
            return None if self._alive - self._ids else False
        if failed.isdisjoint(self._alive) or self._retries.spend(asyncio.get_running_loop().time()):
            return True
        return None if failed & (self._listed - self._ids) else False

    def _is_all(self, instances: frozenset[str]) -> bool:
        """Whether there is one that answers, and no other but these."""
        return bool(instances) and bool(self._alive) and self._alive <= instances

    def _decide(self) -> None:
        """The table has changed: who is dead, and who is none."""
        for past in [past for past in self._again if self._is_all(past.never)]:
            self._undecided.update(self._again.pop(past))
        for waiter in list(self._undecided):
            self._decide_on(waiter)

    def _decide_on(self, waiter: Waiter) -> None:
        may_come = self._may_come_again(waiter.past, waiter.lost)
        if may_come is None:
            return
        del self._undecided[waiter]
        if may_come:
            self._add(waiter)
        elif not waiter.place.done():
            self.retries_denied += 1
            waiter.fail(NotAgain())

    def _let_come(self, waiter: Waiter) -> None:
        """Nobody can say whether the instance that had it lives: that is no reason to wait on."""
        if waiter in self._undecided:
            waiter.lost = None
            self._decide_on(waiter)
            self.serve_waiters()

    def _add(self, waiter: Waiter) -> None:
        if waiter.lost is not None and self._quarantine.wants(waiter.lost):
            self._quarantine.add(waiter, waiter.lost)
            return
        waiter.lost = None
        if waiter.past.failed:
            self._again.setdefault(waiter.past, OrderedDict())[waiter] = None
        else:
            self._line.add(waiter)

    def _remove(self, waiter: Waiter) -> None:
        if self._bound.remove(waiter):
            return
        if waiter.lost is not None:
            self._quarantine.remove(waiter)
        if not waiter.past.failed:
            self._line.remove(waiter)
        elif waiter in self._undecided:
            del self._undecided[waiter]
        elif same := self._again.get(waiter.past):
            same.pop(waiter, None)
            if not same:
                del self._again[waiter.past]

    def _give_up(self, waiter: Waiter) -> None:
        """The place may have come in the same moment in which its request was given up."""
        self._remove(waiter)
        place = waiter.place
        if place.done() and not place.cancelled() and place.exception() is None:
            self.release(place.result(), waiter.request, Outcome.CLIENT_GONE)

    def _let_repeat(self, waiter: Waiter) -> None:
        waiter.may_repeat = True
        self.serve_waiters()

    def serve_waiters(self) -> None:
        """A place may be free."""
        if self._quarantine.active:
            self._suspicion.serve(self._views, self._let_in)
        if self._bound.waiting:
            self._serve_bound()
        for past, waiters in list(self._again.items()) if self._again else ():
            while waiters and (open_to_it := self._open(past, may_repeat=next(iter(waiters)).may_repeat)):
                self._give(waiters.popitem(last=False)[0], open_to_it)
            if not waiters:
                del self._again[past]
        while self._line.length and (open_to_it := self._open()):
            self._give(self._line.pop(), open_to_it)

    def _serve_bound(self) -> None:
        views: Sequence[InstanceView] = self._views
        if self._quarantine.active:
            views = self._quarantine.others(views, asyncio.get_running_loop().time())
        while (found := self._bound.next(views)) is not None:
            waiter, view = found
            self._give(waiter, (view,))

    def _give(self, waiter: Waiter, open_to_it: Sequence[InstanceView]) -> None:
        if waiter.place.done():
            return
        if not (self._suspicion.poison.any and self._suspicion.is_refused(waiter)):
            waiter.place.set_result(self._place(waiter.request, waiter.past.failed, open_to_it))

    def _let_in(self, waiter: Waiter, view: InstanceView) -> None:
        waiter.place.set_result(self._place(waiter.request, waiter.past.failed, (view,)))

    def close(self, refusal: Refusal) -> None:
        """Nobody gets a place any more; requests in flight end as they would."""
        self._closed = refusal
        self._views, self._ids, self._listed, self._alive = [], frozenset(), frozenset(), frozenset()
        self.refuse(refusal)

    def refuse(self, refusal: Refusal) -> None:
        waiters = [*self._line.clear(), *(waiter for same in self._again.values() for waiter in same), *self._undecided]
        waiters += [*self._quarantine, *self._bound]
        self._bound.clear()
        self._again.clear()
        self._undecided.clear()
        self._quarantine.clear()
        for waiter in waiters:
            waiter.refuse(refusal)

    # places

    def release(self, view: InstanceView, request: RequestInfo, outcome: Outcome) -> None:
        """Gives a place back; who is next takes it at once."""
        view.ended()
        view.last_used = now = asyncio.get_running_loop().time()
        assert view.own >= 0, view
        placement, placed_at = self._placed.pop(request, (self.placement, now))
        if outcome is _OK:
            failed = False
            self._turnover.kept(now - placed_at)
            if request.path not in _WITHOUT_WORK:
                view.answered_at = now
        else:
            failed = outcome in _FAILURES
            view.failures += failed
        if failed or self._health.troubled:
            self._judge(view, request, outcome)
        quarantine = self._quarantine
        if failed or quarantine.active or quarantine.awaited or self._suspicion.cut.any:
            self._suspicion.ended(view, request, outcome, now - placed_at)
        placement.finished(request, view, outcome)  # a strategy hears only of what it has placed
        if view.instance_id not in self._listed:
            self._left(view)
        elif self._line.length or quarantine.active or self._again or self._bound.waiting:
            self.serve_waiters()

    def began(self, view: InstanceView, request: RequestInfo) -> Callable[[], None] | None:
        """Who wants to know of the first byte of a reply that is no error."""
        if self._health.troubled or self._quarantine.active:
            is_probe = self._health.is_probe(view.instance_id, request)
            if is_probe or self._quarantine.is_on_trial(request):
                return partial(self._answers, view, request)
        return partial(self.placement.first_byte, request, view) if self.placement.wants_first_byte else None

    def _answers(self, view: InstanceView, request: RequestInfo) -> None:
        """What it is in the middle of need not be waited for."""
        self.placement.first_byte(request, view)
        now = asyncio.get_running_loop().time()
        self._quarantine.begins(request, now)
        change = self._health.answers(view.instance_id, request, now)
        if change is not None:
            self._health_changed(view, change)
        self.serve_waiters()

    def _judge(self, view: InstanceView, request: RequestInfo, outcome: Outcome) -> None:
        loop = asyncio.get_running_loop()
        change = self._health.ended(view.instance_id, request, outcome, loop.time())
        if change is not None:
            self._health_changed(view, change)
            if change.ejected:
                loop.call_later(change.pause_s, self.serve_waiters)  # one of them may probe it

    def update(
        self,
        routes: Sequence[Route],
        view_of: Callable[[Route], InstanceView],
        silent: frozenset[str] = frozenset(),
    ) -> None:
        """Takes the model's part of a new routing table. `silent`: instances that do not answer."""
        self._views = [view_of(route) for route in routes if not route.suspect]
        self._ids = frozenset(view.instance_id for view in self._views)
        self._listed = frozenset(route.instance_id for route in routes)
        self._alive = self._listed - silent
        self._health.keep(self._listed)
        self._quarantine.listed(self._listed)
        self._bound.listed(self._listed)
        if self._views:
            self._turnover.places = sum(view.max_in_flight for view in self._views)
        self.placement.listed(self._views)
        self._decide()
        self.serve_waiters()

    def _open(self, past: Past | None = None, *, may_repeat: bool = False) -> Sequence[InstanceView]:
        """The instances with a free place that have not failed the request; if all have, they may repeat it in time."""
        views: Sequence[InstanceView] = self._views
        failed = past is not None and bool(past.failed)
        if past is not None and failed:
            barred = past.never if may_repeat and self._ids.issubset(past.failed) else past.failed
            views = [view for view in views if view.instance_id not in barred]
        if self._quarantine.active:
            views = self._quarantine.others(views, asyncio.get_running_loop().time())
        if self._health.troubled:
            views = self._sound(views, may_probe=not failed)
        return tuple([view for view in views if view.in_flight < view.max_in_flight])

    def _sound(self, views: Sequence[InstanceView], *, may_probe: bool) -> Sequence[InstanceView]:
        """Those that are not ejected; alone, one that is to be probed. If all are ejected: better a try than none."""
        health, now = self._health, asyncio.get_running_loop().time()
        for view in views if may_probe else ():
            if view.in_flight < view.max_in_flight and health.wants_probe(view.instance_id, now):
                return (view,)
        return [view for view in views if not health.is_ejected(view.instance_id)] or views

    def _place(self, request: RequestInfo, failed: Collection[str], open_to_it: Sequence[InstanceView]) -> InstanceView:
        chosen = self.placement.choose(request, open_to_it)
        now = asyncio.get_running_loop().time()
        self._placed[request] = (self.placement, now)
        if not failed:
            self._retries.first_attempts.add(now)
        if self._health.troubled:
            self._health.placed(chosen.instance_id, request)
        if self._quarantine.active:
            self._quarantine.placed(chosen, request)
        chosen.own += 1  # nobody is placed on what is listed anew
        chosen.in_flight += 1
        chosen.total += 1
        chosen.last_used = now
        self.served += 1
        return chosen
