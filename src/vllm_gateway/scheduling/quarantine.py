# SPDX-License-Identifier: Apache-2.0
"""Which request ends engines: those that were on one when it died are tried again a few at a time, away from others.

One of the instances is kept for them, the ward. There they are let in, the likeliest first: those that had been on an
engine for the shortest time. The next ones follow when those before have proved themselves: their reply has begun, or
they have outlived the time after which they would have ended the engine before. If the ward dies, it was the one that
had not; who was the only one is refused from then on, and all that died with it before are free. If it cannot be told,
all are tried again on the next ward.
"""

from bisect import insort
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from vllm_gateway.scheduling.types import InstanceView, RequestInfo

YOUNG_S = 2.0
"""Who was on an engine for less when it died is tried alone."""
MOST_AT_ONCE = 32
MARGIN_S = 2.0
PROOF_S = 0.1
"""A reply that has gone on for so long is one."""
LONGEST_TRIAL_S = 6.0
SETTLE_S = 5.0
"""After so long, what runs on the ward already is not what will end it."""
DOUBTED_S = 1.0
"""So soon an instance that broke off is suspected, if it is at all."""
DECIDED_S = 5.0
"""By then it is known whether an instance that broke off has died."""
KEPT_S = 20.0
"""For so long nobody else gets a place on the ward; then only while another instance has one."""
_KNOWN = 64


@dataclass(frozen=True, slots=True)
class Lost:
    """What a request has been through: instances that broke off while they had it."""

    instance_id: str  # the last of them
    ran_s: float  # for how long that had it
    all: frozenset[str]


class Waiting(Protocol):
    @property
    def request(self) -> RequestInfo: ...


W = TypeVar("W", bound=Waiting)


@dataclass(slots=True)
class Ward:
    view: InstanceView
    since: float
    there: set[RequestInfo] = field(default_factory=set)  # let in, and not ended yet
    unproved: dict[RequestInfo, Lost] = field(default_factory=dict)  # of those
    begun: set[RequestInfo] = field(default_factory=set)
    failed: dict[RequestInfo, Lost] = field(default_factory=dict)  # ended by the instance's failure, unproved
    tried_until: float = 0.0  # who lasts until then has proved itself
    group: int = 1
    mixed: bool = False  # others came, too
    missing_since: float | None = None
    doubted_until: float = 0.0  # once somebody has failed there

    def settles_at(self) -> float | None:
        """None: nobody else is there."""
        return None if self.view.in_flight <= len(self.there) else self.since + SETTLE_S


class Quarantine(Generic[W]):
    """`on_guilty` hears of who ended an engine alone, and who need not wait any more for that.

    Times are passed in; `again_at` says when to look again.
    """

    __slots__ = ("_explained", "_listed", "_number", "_on_guilty", "_waiting", "active", "again_at", "awaited", "ward")

    def __init__(self, on_guilty: Callable[[RequestInfo, InstanceView, Sequence[W]], None]) -> None:
        self.active = False
        self.ward: Ward | None = None
        self.again_at: float | None = None
        self._on_guilty = on_guilty
        self._waiting: list[_Suspect[W]] = []
        self._number = 0
        self._listed: Collection[str] = ()
        self._explained: OrderedDict[str, None] = OrderedDict()  # instances that died, and it is known of whom
        self.awaited: dict[str, Ward] = {}  # wards that died; who ended them has yet to end

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[W]:
        return (one.waiter for one in self._waiting)

    def wants(self, lost: Lost) -> bool:
        """Whether its engine has died, and it may have been its doing."""
        return lost.instance_id not in self._listed and lost.instance_id not in self._explained

    def add(self, waiter: W, lost: Lost) -> None:
        self._number += 1
        deaths = len(lost.all.difference(self._listed))
        insort(self._waiting, _Suspect(waiter, lost, deaths, self._number), key=_likeliest)
        self.active = True

    def remove(self, waiter: W) -> None:
        self._waiting = [one for one in self._waiting if one.waiter is not waiter]

    def clear(self) -> None:
        self._waiting = []

    def let_in(self, views: Sequence[InstanceView], now: float) -> list[W]:
        """Who gets a place on the ward now. `views`: the instances there are."""
        self.again_at = None
        ward = self._ward_among(views, now)
        if ward is not None and now >= ward.tried_until:
            ward.unproved.clear()
        if not self._waiting and not (self.ward and (self.ward.unproved or self.ward.failed)):
            self.ward, self.active = None, False
            return []
        if ward is None:
            return []
        if ward.failed:
            self._look_again(ward.doubted_until)
            return []
        if now < ward.since + KEPT_S:
            self._look_again(ward.since + KEPT_S)
        if ward.unproved:
            self._look_again(ward.tried_until)
            return []
        settles_at = ward.settles_at()
        if settles_at is not None and now < settles_at:
            self._look_again(settles_at)
            return []
        return self._next(ward, now)

    def _ward_among(self, views: Sequence[InstanceView], now: float) -> Ward | None:
        """Another one if nobody can say for long what has become of it."""
        ward = self.ward
        if ward is not None and ward.view in views:
            if ward.missing_since is not None or now >= ward.doubted_until:
                ward.failed.clear()  # it lives
            ward.missing_since = None
            if _has_place(ward.view) or ward.unproved or ward.failed or not any(map(_has_place, views)):
                return ward
            self.ward = ward = None  # it is full of those who have proved themselves
        if ward is not None:
            ward.missing_since = now if ward.missing_since is None else ward.missing_since
            self._look_again(ward.missing_since + DECIDED_S)
            if now < ward.missing_since + DECIDED_S:
                return None
            self.ward = None
        if views and self._waiting:
            self.ward = Ward(min(views, key=lambda view: view.in_flight), now)
        return self.ward

    def _look_again(self, at: float) -> None:
        self.again_at = at if self.again_at is None else min(at, self.again_at)

    def _next(self, ward: Ward, now: float) -> list[W]:
        first = self._waiting[0]
        alone = first.deaths > 1 or first.lost.ran_s < YOUNG_S
        ward.group = 1 if alone else min(2 * ward.group, MOST_AT_ONCE)
        size = max(0, min(ward.group, ward.view.max_in_flight - ward.view.in_flight))
        group, self._waiting = self._waiting[:size], self._waiting[size:]
        if group:
            ward.unproved = {one.waiter.request: one.lost for one in group}
            ward.begun.clear()
            ward.there.update(ward.unproved)
            ward.tried_until = now + min(max(one.lost.ran_s for one in group) + MARGIN_S, LONGEST_TRIAL_S)
            self._look_again(ward.tried_until)
        return [one.waiter for one in group]

    def others(self, views: Sequence[InstanceView], now: float) -> Sequence[InstanceView]:
        """Those of `views` that anybody else may have."""
        ward = self.ward
        if ward is None:
            return views
        rest = [view for view in views if view is not ward.view]
        is_kept = now < ward.since + KEPT_S or any(map(_has_place, rest))
        return rest if is_kept else views

    def placed(self, view: InstanceView, request: RequestInfo) -> None:
        if (ward := self.ward) is not None and view is ward.view and request not in ward.there:
            ward.mixed = True

    def is_on_trial(self, request: RequestInfo) -> bool:
        return self.ward is not None and request in self.ward.unproved

    def begins(self, request: RequestInfo, now: float) -> None:
        """A reply has begun; it may yet be an error, in the form of a reply."""
        ward = self.ward
        if ward is not None and request in ward.unproved:
            ward.begun.add(request)
            if ward.begun.issuperset(ward.unproved):
                ward.tried_until = min(ward.tried_until, now + PROOF_S)

    def ended(self, view: InstanceView, request: RequestInfo, now: float, *, failed: bool) -> None:
        ward = self.ward
        if ward is not None and view is ward.view:
            lost = ward.unproved.pop(request, None)
            if failed and lost is not None:
                ward.failed[request] = lost
                ward.doubted_until = now + DOUBTED_S
            ward.there.discard(request)
        elif (dead := self.awaited.get(view.instance_id)) and request in dead.unproved:
            del self.awaited[view.instance_id]
            if failed:
                self._condemn(request, view, dead.unproved[request])

    def listed(self, instance_ids: Collection[str]) -> None:
        """These are the instances there are, suspects among them. If the ward is gone, somebody has ended it."""
        self._listed, ward = instance_ids, self.ward
        if ward is None or ward.view.instance_id in instance_ids:
            return
        self.ward = None
        if len(ward.failed) + len(ward.unproved) != 1 or ward.mixed:
            return
        self._explain(ward.view.instance_id)
        for request, lost in ward.failed.items():
            self._condemn(request, ward.view, lost)
        if ward.unproved:
            self.awaited[ward.view.instance_id] = ward

    def _condemn(self, request: RequestInfo, view: InstanceView, lost: Lost) -> None:
        for instance_id in lost.all.difference(self._listed):
            self._explain(instance_id)
        free = [one for one in self._waiting if one.lost.instance_id in lost.all]
        self._waiting = [one for one in self._waiting if one.lost.instance_id not in lost.all]
        self._on_guilty(request, view, [one.waiter for one in free])

    def _explain(self, instance_id: str) -> None:
        self._explained[instance_id] = None
        if len(self._explained) > _KNOWN:
            self._explained.popitem(last=False)


@dataclass(frozen=True, slots=True)
class _Suspect(Generic[W]):
    waiter: W
    lost: Lost
    deaths: int  # of engines under it
    number: int


def _has_place(view: InstanceView) -> bool:
    return view.in_flight < view.max_in_flight


def _likeliest(one: _Suspect[W]) -> tuple[int, float, int]:
    return -one.deaths, one.lost.ran_s, one.number
