# SPDX-License-Identifier: Apache-2.0
"""The memory that requests on their way in take together: bounded, and the slowest senders make way."""

import contextlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from vllm_gateway.api.errors import ApiError

_RECENTLY_S = 5.0
"""Over about this time the speed of a sender is measured."""
_RETRY_AFTER_S = 5.0
_LITTLE_BYTES = 4096
"""Who holds no more makes way last: it would make no room."""


class Sender(Protocol):
    """Of something that is on its way in."""

    pace: "Pace | None"
    """None: nothing of it is here."""

    def make_way(self, error: ApiError) -> None:
        """Gives back what it holds, and ends."""


class Pace:
    """How much of a body has come, and how fast it comes."""

    __slots__ = ("_began", "_heard_at", "_recent", "held")

    def __init__(self, now: float) -> None:
        self.held = 0
        self._began = self._heard_at = now
        self._recent = 0.0  # bytes of the last _RECENTLY_S, older ones less and less

    def came(self, size: int, now: float) -> None:
        self._recent = self._recent * math.exp((self._heard_at - now) / _RECENTLY_S) + size
        self._heard_at = now
        self.held += size

    def bytes_per_s(self, now: float) -> float:
        seen_s = _RECENTLY_S * -math.expm1(-max(1.0, now - self._began) / _RECENTLY_S)
        return self._recent * math.exp((self._heard_at - now) / _RECENTLY_S) / seen_s


class Buffers:
    """Counts each byte of a body from when it comes until its request has ended, and what has come before its turn."""

    __slots__ = ("_clock", "_senders", "held", "limit")

    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        self.limit = limit
        self.held = 0
        self._clock = clock
        self._senders: dict[Sender, None] = {}

    def take(self, size: int) -> None:
        """A body has come as a whole. Raises ApiError buffers_full; `give` follows in any case."""
        self.held += size
        if self.held > self.limit:
            self._make_room()
            if self.held > self.limit:
                raise self._full()

    def give(self, size: int) -> None:
        """The request of so large a body has ended."""
        self.held -= size

    def came(self, sender: Sender, size: int) -> None:
        """A part of a body. If there is no room, somebody is refused, perhaps this one."""
        pace = sender.pace
        assert pace is not None
        self._senders[sender] = None
        pace.came(size, self._clock())
        self.held += size
        if self.held > self.limit:
            self._make_room()

    def keep(self, sender: Sender, size: int) -> None:
        """So much is here of a head, or of requests that are not read yet. Without room, somebody is refused."""
        pace = sender.pace
        if not size:
            self.left(sender)
        elif pace is None or size > pace.held:
            sender.pace = pace or Pace(self._clock())
            self.came(sender, size - sender.pace.held)
        else:
            self.held -= pace.held - size
            pace.held = size

    def whole(self, sender: Sender) -> None:
        """It is there: it stays until `give`."""
        self._senders.pop(sender, None)

    def left(self, sender: Sender) -> None:
        """Nothing of it is here any more."""
        self._senders.pop(sender, None)
        if pace := sender.pace:
            self.held -= pace.held
            sender.pace = None

    def _make_room(self) -> None:
        now = self._clock()
        while self.held > self.limit and self._senders:
            slowest = min(self._senders, key=lambda sender: self._staying(sender, now))
            slowest.make_way(self._full())
            self.left(slowest)

    @staticmethod
    def _staying(sender: Sender, now: float) -> tuple[bool, float]:
        """Who has more of it stays longer."""
        pace = sender.pace
        return (pace.held <= _LITTLE_BYTES, pace.bytes_per_s(now)) if pace else (False, 0.0)

    @staticmethod
    def _full() -> ApiError:
        text = "The bodies of all requests fill the memory for them (server.max_buffered_mib). Try again later."
        return ApiError("buffers_full", text, retry_after_s=_RETRY_AFTER_S)


_MOST_BY_DEFAULT = 2 << 30
_MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def buffered_bytes(set_mib: int | None) -> int:
    """What the setting says; by default a quarter of the memory that this process may use."""
    return set_mib << 20 if set_mib is not None else min(_MOST_BY_DEFAULT, _memory() // 4)


def _memory() -> int:
    """Of the machine, or of the container if that is less."""
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for file in _MEMORY_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # `max`: no limit
            found = min(found, int(Path(file).read_text("ascii")))
    return found
