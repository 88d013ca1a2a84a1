# SPDX-License-Identifier: Apache-2.0
"""Who is next: by priority, then a turn for each client, then first come, first served. Pure; O(1) for each call."""

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
        level.clients.setdefault(waiter.client, OrderedDict())[waiter] = None
        self.length += 1

    def pop(self) -> W:
        """Takes out who is next; there must be somebody."""
        level = self._next_level()
        for other in self._levels:
            other.passed_over += bool(other.clients)
        level.passed_over = 0
        client, own = next(iter(level.clients.items()))
        waiter, _ = own.popitem(last=False)
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
        self.length -= 1
        if not own:
            del level.clients[waiter.client]
            level.passed_over *= bool(level.clients)

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
