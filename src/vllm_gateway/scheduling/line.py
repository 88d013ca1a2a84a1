# SPDX-License-Identifier: Apache-2.0
"""Who is next: by priority, then a turn for each client, then first come, first served; and who makes way.

Pure; O(1) for each call.
"""

from bisect import insort
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

PATIENCE = 8
"""How many places go to other priorities before one that waits has its turn."""


class Waiting(Protocol):
    """One that waits; each is a thing of its own (compared by identity)."""

    @property
    def priority(self) -> int: ...

    @property
    def client(self) -> Hashable: ...


W = TypeVar("W", bound=Waiting)


@dataclass(slots=True)
class _Level(Generic[W]):
    """Those of one priority: the clients in the order of their turns, each with its own in the order of arrival."""

    priority: int
    clients: "OrderedDict[Hashable, OrderedDict[W, None]]" = field(default_factory=OrderedDict)
    passed_over: int = 0
    by_number: dict[int, dict[Hashable, None]] = field(default_factory=dict)
    """The clients that have so many waiting; none for a number that none has."""
    most: int = 0

    def number_of(self, client: Hashable) -> int:
        own = self.clients.get(client)
        return len(own) if own else 0

    def count(self, client: Hashable, before: int, now: int) -> None:
        """The client's number has changed by one."""
        if before:
            same = self.by_number[before]
            del same[client]
            if not same:
                del self.by_number[before]
        if now:
            self.by_number.setdefault(now, {})[client] = None
        if now > self.most or self.most not in self.by_number:
            self.most = now

    def heaviest(self) -> Hashable:
        return next(iter(self.by_number[self.most]))


class FairLine(Generic[W]):
    """Nobody starves. With L priorities, one that waits has at least one of any PATIENCE + L places in a row; within a
    priority, a client has a second turn only after every other client that waits has had one.

    An `OrderedDict` gives its first key, moves one to the end and loses any in O(1); priorities are few and configured.
    """

    __slots__ = ("_levels", "length")

    def __init__(self) -> None:
        self.length = 0
        self._levels: list[_Level[W]] = []  # the highest priority first

    def add(self, waiter: W) -> None:
        level = self._level(waiter.priority)
        own = level.clients.setdefault(waiter.client, OrderedDict())
        own[waiter] = None
        level.count(waiter.client, len(own) - 1, len(own))
        self.length += 1

    def pop(self) -> W:
        """Takes out who is next; there must be somebody."""
        level = self._next_level()
        for other in self._levels:
            other.passed_over += bool(other.clients)
        level.passed_over = 0
        client, own = next(iter(level.clients.items()))
        waiter, _ = own.popitem(last=False)
        level.count(client, len(own) + 1, len(own))
        if own:
            level.clients.move_to_end(client)
        else:
            del level.clients[client]
        self.length -= 1
        return waiter

    def remove(self, waiter: W) -> None:
        """Takes out one that leaves, if it is still there."""
        level = self._level(waiter.priority)
        own = level.clients.get(waiter.client)
        if own is None or waiter not in own:
            return
        del own[waiter]
        level.count(waiter.client, len(own) + 1, len(own))
        self.length -= 1
        if not own:
            del level.clients[waiter.client]
            level.passed_over *= bool(level.clients)

    def make_way(self, client: Hashable, priority: int) -> W | None:
        """Takes out who makes way for one more of this client; None if nobody does.

        A lower priority makes way for a higher one; within a priority, who has most waiting for who has less even so.
        It is the last one that came of the client that has most waiting in the lowest priority.
        """
        lowest = next(level for level in reversed(self._levels) if level.clients) if self.length else None
        if lowest is None or lowest.priority > priority:
            return None
        if lowest.priority == priority and lowest.most <= lowest.number_of(client) + 1:
            return None
        waiter = next(reversed(lowest.clients[lowest.heaviest()]))
        self.remove(waiter)
        return waiter

    def clear(self) -> list[W]:
        """Takes out all."""
        everybody = [waiter for level in self._levels for own in level.clients.values() for waiter in own]
        self._levels.clear()
        self.length = 0
        return everybody

    def _level(self, priority: int) -> _Level[W]:
        for level in self._levels:
            if level.priority == priority:
                return level
        level = _Level(priority)
        insort(self._levels, level, key=lambda one: -one.priority)
        return level

    def _next_level(self) -> _Level[W]:
        waiting = [level for level in self._levels if level.clients]
        longest = max(waiting, key=lambda level: level.passed_over)
        return longest if longest.passed_over >= PATIENCE else waiting[0]
