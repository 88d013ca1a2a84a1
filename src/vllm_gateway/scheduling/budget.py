# SPDX-License-Identifier: Apache-2.0
"""How many requests of a model may be tried again: a share of all, so that a sick fleet is not beaten to death."""

from vllm_gateway.configuration.settings import Retry

SLOTS = 12


class SlidingCount:
    """Events of about the last `window_s`, in slots. Time is passed in and never runs backwards. O(1) to count."""

    __slots__ = ("_counts", "_slot_s", "_tick", "_total")

    def __init__(self, window_s: float) -> None:
        self._slot_s = window_s / SLOTS
        self._counts = [0] * (SLOTS + 1)  # of the oldest one, a part lies within the window
        self._total = 0
        self._tick = 0

    def add(self, now: float) -> None:
        if (tick := int(now / self._slot_s)) != self._tick:
            self._turn_to(tick)
        self._counts[tick % (SLOTS + 1)] += 1
        self._total += 1

    def at_least(self, now: float) -> int:
        """All that it counts happened within the window; some of the oldest are left out."""
        if (tick := int(now / self._slot_s)) != self._tick:
            self._turn_to(tick)
        return self._total - self._counts[(tick + 1) % (SLOTS + 1)]

    def at_most(self, now: float) -> int:
        """All that happened within the window are counted, and some older ones."""
        if (tick := int(now / self._slot_s)) != self._tick:
            self._turn_to(tick)
        return self._total

    def _turn_to(self, tick: int) -> None:
        for passed in range(max(self._tick, tick - SLOTS - 1) + 1, tick + 1):
            slot = passed % (SLOTS + 1)
            self._total -= self._counts[slot]
            self._counts[slot] = 0
        self._tick = tick


class RetryBudget:
    """In any `window_s`, retries are at most `budget` times the first attempts in it, or `floor` if that is more."""

    __slots__ = ("_retries", "_settings", "first_attempts")

    def __init__(self, settings: Retry) -> None:
        self._settings = settings
        self.first_attempts = SlidingCount(settings.window_s)
        self._retries = SlidingCount(settings.window_s)

    def spend(self, now: float) -> bool:
        """Whether one more request may be tried again; if so it is counted."""
        allowed = max(self._settings.budget * self.first_attempts.at_least(now), self._settings.floor)
        if self._retries.at_most(now) + 1 > allowed:
            return False
        self._retries.add(now)
        return True
