# SPDX-License-Identifier: Apache-2.0
"""How long the next start of a model, or the next wake, will take, by the last ones."""

import statistics
from collections import deque

KEPT = 5
UNKNOWN_S = 60.0


class StartTimes:
    """The median of the last few: one start that had to fetch an image does not count for long."""

    __slots__ = ("_seconds", "_unknown_s")

    def __init__(self, unknown_s: float = UNKNOWN_S) -> None:
        self._unknown_s = unknown_s
        self._seconds: deque[float] = deque(maxlen=KEPT)

    def add(self, seconds: float) -> None:
        self._seconds.append(seconds)

    @property
    def typical_s(self) -> float | None:
        """None before the first one."""
        return statistics.median(self._seconds) if self._seconds else None

    @property
    def expected_s(self) -> float:
        return self._unknown_s if self.typical_s is None else self.typical_s

    def share(self, elapsed_s: float) -> float | None:
        """How much of a start is done; never all of it, as it is not ready. None before the first one."""
        typical_s = self.typical_s
        return None if not typical_s else min(elapsed_s / typical_s, 0.99)

    def remaining_s(self, elapsed_s: float) -> float:
        """One that takes longer than usual may end at any moment: never less than a second."""
        return max(1.0, self.expected_s - elapsed_s)
